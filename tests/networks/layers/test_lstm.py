"""The LSTM layer against torch's own, in both of its forms."""

import pytest
import torch
from torch import nn

from lightning_modules.networks.layers.lstm import LSTM


@pytest.fixture
def pair() -> tuple[LSTM, nn.LSTM]:
    torch.manual_seed(0)
    ours, theirs = LSTM(5).double(), nn.LSTM(5, 5, batch_first=True).double()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("form", ["forward", "_step_by_step"])
@pytest.mark.parametrize("steps", [1, 4])
def test_values_and_gradients_are_those_of_torch(pair, form, steps):
    ours, theirs = pair
    inputs = torch.randn(3, steps, 5, dtype=torch.float64, requires_grad=True)
    hidden, cell = torch.randn(2, 3, 5, dtype=torch.float64)
    outputs, *last = getattr(ours, form)(inputs, hidden, cell)
    expected, expected_last = theirs(inputs, (hidden[None], cell[None]))
    torch.testing.assert_close(outputs, expected)
    for one, other in zip(last, expected_last, strict=True):
        torch.testing.assert_close(one, other[0])
    gradients = torch.autograd.grad(outputs.square().sum(), [inputs, *ours.parameters()])
    expected_gradients = torch.autograd.grad(expected.square().sum(), [inputs, *theirs.parameters()])
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_parameters_start_where_torchs_do():
    torch.manual_seed(1)
    theirs = nn.LSTM(6, 6, batch_first=True).state_dict()
    torch.manual_seed(1)
    ours = LSTM(6).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_is_exported_has_no_recurrent_operator():
    program = torch.export.export(LSTM(4), (torch.randn(2, 1, 4), torch.randn(2, 4), torch.randn(2, 4)))
    assert "lstm" not in str(program.graph)
