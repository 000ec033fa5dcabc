"""A step of a tiny student on a CPU: how many operators it calls, and what it makes anew."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_modules.networks.layers.prepared import prepare_for_inference
from lightning_modules.networks.weights.configured import network_of
from results.benchmarks.student_networks import NETWORKS, normalised_frames

AT_MOST = 1100
"""Operators of one step, which takes 1,079, and took 1,531 with a RoIAlign of many small ones."""


class Calls(TorchDispatchMode):
    """Counts the operators that are called within."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operator, types, arguments=(), named=None):
        self.counts[str(operator)] += 1
        return operator(*arguments, **(named or {}))


@torch.no_grad()
def test_a_prepared_step_calls_few_operators_and_makes_no_constant_anew():
    student = network_of(NETWORKS / "dsta_tiny.yaml", 10, []).eval()
    prepare_for_inference(student)
    frames, state = normalised_frames(1, student.frame_size, torch.device("cpu")), student.initial_state(1)
    _, state = student(frames, state)
    with Calls() as calls:
        student(frames, state)
    assert 0 < sum(calls.counts.values()) <= AT_MOST
    assert calls.counts["aten.lift_fresh.default"] == 0  # what `torch.tensor` of numbers calls
