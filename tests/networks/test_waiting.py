"""A step or a clip in eval mode never waits for a GPU, so that a CUDA graph can capture it: seen without a GPU.

Tensors on the GPU are fake here: they have a device and a shape, and no values. Every operator of a network goes by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_modules.networks.layers import constants
from lightning_modules.networks.streaming import select_lanes
from tests.networks.tiny import tiny_student, tiny_teacher

GPU = torch.device("cuda")
LANES = 2
WAITING = ("nonzero", "_local_scalar_dense", "masked_select", "_unique2", "unique_dim", "repeat_interleave")
"""Operators whose result depends on values on the GPU: the CPU waits for them."""


@pytest.fixture(autouse=True)
def _constants_that_are_there(monkeypatch):
    """Constants go to the GPU in the first step, before capture; fake tensors would make them in every one."""

    def there(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(np.shape(values), dtype=dtype, device=device)

    monkeypatch.setattr(constants, "_new", there)


class Waits(TorchDispatchMode):
    """Notes operators that make the CPU wait for a GPU, copies from one to the other above all."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.on_gpu = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, outputs)) if isinstance(leaf, Tensor)]
        name = func.overloadpacket.__name__
        # A number that lies in a tensor on the CPU is read there.
        devices = {each.device.type for each in tensors if each.dim() > 0 or each.device.type == "cuda"}
        self.on_gpu += "cuda" in devices
        by_mask = name in ("index", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if "cuda" in devices and ("cpu" in devices or name in WAITING or by_mask):
            self.found.append(str(func))
        return outputs


def waits_of(network: nn.Module, inputs: Callable[[], tuple[Any, ...]]) -> Waits:
    """Run a network on a fake GPU; ``inputs`` makes what it gets there."""
    with FakeTensorMode() as mode, torch.no_grad():
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        weights = {name: mode.from_tensor(tensor).to(GPU) for name, tensor in tensors.items()}
        given = inputs()
        with Waits() as waits:
            functional_call(network, weights, given)
    return waits


@pytest.mark.parametrize("temporal", ["tsa", "dsta"])
@pytest.mark.parametrize("changes", [{}, {"look_ahead": 2, "boxes_from": "next", "num_actors": 2}, {"window": 0}])
def test_a_step_of_a_student_does_not_wait(temporal, changes):
    network = tiny_student(temporal, roi_kernel="separable", **changes)

    def inputs() -> tuple[Any, ...]:
        state = network.initial_state(LANES, device=GPU)
        sizes = torch.empty(LANES, 2, dtype=torch.long, device=GPU)
        begins = torch.empty(LANES, dtype=torch.bool, device=GPU)
        return torch.empty(LANES, 1, 3, 64, 64, device=GPU), select_lanes(begins, state, state), sizes

    waits = waits_of(network, inputs)
    assert waits.on_gpu > 100 and waits.found == []


@pytest.mark.parametrize("keep_rates", [{}, {1: 0.8}])
def test_a_clip_of_the_teacher_does_not_wait(keep_rates):
    network = tiny_teacher(roi_kernel="separable", keep_rates=keep_rates)

    def inputs() -> tuple[Any, ...]:
        sizes = torch.empty(LANES, 2, dtype=torch.long, device=GPU)
        return torch.empty(LANES, 3, 8, 64, 64, device=GPU), sizes

    waits = waits_of(network, inputs)
    assert waits.on_gpu > 100 and waits.found == []


class Waiting(nn.Module):
    """A network that waits in the way that it is given."""

    def __init__(self, way: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.way = way

    def forward(self, values: Tensor) -> object:
        return self.way(values)


@pytest.mark.parametrize(
    "way",
    [
        lambda values: values * torch.tensor([1.0, 2.0], device=values.device),
        lambda values: values.new_tensor([1.0, 2.0]),
        lambda values: values.cpu(),
    ],
)
def test_a_copy_between_cpu_and_gpu_is_seen(way):
    waits = waits_of(Waiting(way), lambda: (torch.empty(2, device=GPU),))
    assert len(waits.found) == 1


@pytest.mark.parametrize("way", [lambda values: values.nonzero(), lambda values: values[values > 0]])
def test_a_shape_that_depends_on_values_is_refused_by_fake_tensors_themselves(way):
    with pytest.raises(torch._subclasses.fake_tensor.DynamicOutputShapeException):
        waits_of(Waiting(way), lambda: (torch.empty(2, device=GPU),))
