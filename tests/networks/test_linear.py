"""Linear layers by way of oneDNN: torch's values, and torch's own way wherever there is nothing to gain."""

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.networks import linear as module
from lightning_modules.networks.linear import FEWEST_ROWS, Linear, Mlp, linear


@pytest.fixture
def convolutions(monkeypatch):
    """Counts the products that go to a convolution."""
    seen = []

    def counted(*arguments):
        seen.append(arguments)
        return F.conv2d(*arguments)

    functional = type("functional", (), {"linear": staticmethod(F.linear), "conv2d": staticmethod(counted)})
    monkeypatch.setattr(module, "F", functional)
    return seen


@pytest.mark.parametrize("shape", [(FEWEST_ROWS, 24), (2, 3, FEWEST_ROWS, 24), (1, 1000, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_torch(convolutions, shape, bias):
    layer = Linear(24, 40, bias=bias)
    inputs = torch.randn(shape, requires_grad=True)
    given = [inputs, *layer.parameters()]
    ours, theirs = layer(inputs), F.linear(inputs, layer.weight, layer.bias)
    assert len(convolutions) == 1 and ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs)
    direction = torch.randn_like(theirs)
    for own, other in zip(
        torch.autograd.grad(ours, given, direction), torch.autograd.grad(theirs, given, direction), strict=True
    ):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


def test_rows_that_are_not_contiguous_are_read_in_their_order(convolutions):
    inputs, weight = torch.randn(24, 300).t(), torch.randn(8, 24)
    torch.testing.assert_close(linear(inputs, weight), inputs @ weight.t())
    inputs = torch.randn(300, 2, 24).transpose(0, 1)
    torch.testing.assert_close(linear(inputs, weight), inputs @ weight.t())
    assert len(convolutions) == 2


@pytest.mark.parametrize(
    ("rows", "dtype", "bf16"),
    [(FEWEST_ROWS - 1, torch.float32, False), (FEWEST_ROWS, torch.float64, False), (FEWEST_ROWS, torch.float32, True)],
    ids=["few rows", "double precision", "autocast"],
)
def test_few_rows_other_types_and_autocast_stay_with_torch(convolutions, rows, dtype, bf16):
    inputs, weight = torch.randn(rows, 8, dtype=dtype), torch.randn(4, 8, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        torch.testing.assert_close(linear(inputs, weight), F.linear(inputs, weight), rtol=0, atol=0)
    assert not convolutions


def test_without_onednn_torch_does_it(convolutions, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    linear(torch.randn(FEWEST_ROWS, 8), torch.randn(4, 8))
    assert not convolutions


def test_what_is_exported_stays_plain():
    program = torch.export.export(Linear(8, 4), (torch.randn(FEWEST_ROWS, 8),))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets == {"aten.linear.default"}


def test_no_rows_at_all_give_no_rows():
    assert linear(torch.zeros(0, 8), torch.zeros(4, 8)).shape == (0, 4)


def test_the_mlp_is_two_layers_around_gelu():
    mlp, tokens = Mlp(8, 20), torch.randn(2, FEWEST_ROWS, 8)
    assert {type(mlp.fc1), type(mlp.fc2)} == {Linear}
    hidden = tokens @ mlp.fc1.weight.t() + mlp.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(mlp(tokens), hidden @ mlp.fc2.weight.t() + mlp.fc2.bias)
