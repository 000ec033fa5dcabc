"""Linear layers by way of oneDNN: torch's values, and torch's own way wherever there is nothing to gain."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_modules.networks.layers import linear as module
from lightning_modules.networks.layers.linear import FEWEST_ROWS, Linear, Mlp, linear
from lightning_modules.networks.layers.prepared import prepare_for_inference

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.fixture
def convolutions(monkeypatch):
    """Counts the products that go to a convolution, on a machine where that is faster."""
    seen = []
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

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


@pytest.mark.parametrize(("capability", "threads"), [("AVX2", 2), ("DEFAULT", 2), ("AVX512", 1)])
def test_without_the_wider_half_or_with_one_thread_torch_does_it(convolutions, monkeypatch, capability, threads):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
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


@pytest.fixture
def prepared():
    layer = Linear(24, 40).eval()
    prepare_for_inference(nn.Sequential(layer))
    return layer


@pytest.fixture
def in_order(monkeypatch):
    """Counts the products that read a weight kept in oneDNN's order."""
    seen, operator = [], torch.ops.mkldnn._linear_pointwise

    def counted(*arguments):
        seen.append(arguments)
        return operator(*arguments)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counted)
    return seen


@needs_onednn
@pytest.mark.parametrize("shape", [(24,), (1, 24), (5, 24), (2, 3, 7, 24), (1, 1000, 24)])
@torch.no_grad()
def test_a_prepared_layer_gives_torchs_values(prepared, in_order, shape):
    inputs = torch.randn(shape)
    torch.testing.assert_close(prepared(inputs), F.linear(inputs, prepared.weight, prepared.bias))
    other = torch.randn(40)
    torch.testing.assert_close(prepared.with_bias(inputs, other), F.linear(inputs, prepared.weight, other))
    assert len(in_order) == 2


@needs_onednn
@torch.no_grad()
def test_rows_of_a_prepared_layer_that_are_not_contiguous_are_read_in_their_order(prepared, in_order):
    inputs = torch.randn(3, 24, 10).transpose(1, 2)
    torch.testing.assert_close(prepared(inputs), F.linear(inputs, prepared.weight, prepared.bias))
    assert len(in_order) == 1


@needs_onednn
@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.train().eval(),
        lambda layer: layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()}),
        lambda layer: layer.to(torch.float64).to(torch.float32),
    ],
    ids=["trained", "loaded", "moved"],
)
def test_a_layer_whose_weights_may_change_forgets_their_copy(prepared, in_order, change):
    change(prepared)
    with torch.no_grad():
        prepared.weight.mul_(2)
        inputs = torch.randn(5, 24)
        torch.testing.assert_close(prepared(inputs), F.linear(inputs, prepared.weight, prepared.bias))
    assert not in_order


@needs_onednn
def test_a_prepared_layer_has_gradients_and_checkpoints_like_any_other(prepared, in_order):
    inputs = torch.randn(5, 24, requires_grad=True)
    torch.testing.assert_close(
        torch.autograd.grad(prepared(inputs).sum(), inputs)[0], prepared.weight.sum(0).expand(5, 24)
    )
    assert set(prepared.state_dict()) == {"weight", "bias"}
    copied = copy.deepcopy(prepared)
    with torch.no_grad():
        torch.testing.assert_close(copied(inputs), prepared(inputs))
    assert len(in_order) == 1  # the copy has to be prepared by itself
