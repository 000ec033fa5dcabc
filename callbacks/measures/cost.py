"""Operations and time of one step of an experiment, as tables and monitors report them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import LightningModule, Trainer

from callbacks.measures.flops import FlopCount, count_gflops, evaluation_mode
from callbacks.measures.latency import Interleaved, interleave, synchronizer
from datamodules.errors import UserError
from lightning_modules.evaluation.benchmark import Benchmark

OWN, REFERENCE = "own", "reference"
"""Names of the two steps that are timed in turn."""


@contextmanager
def as_measured(trainer: Trainer, module: LightningModule) -> Iterator[Benchmark]:
    """Yield what a module offers to be measured, in evaluation mode, without gradients, in the run's precision.

    Raises:
        UserError: the module has no ``benchmark`` method.
    """
    offered = getattr(module, "benchmark", None)
    if offered is None:
        raise UserError(
            "cannot be measured: it has no method benchmark() -> lightning_modules.evaluation.benchmark.Benchmark",
            where=type(module).__name__,
            remedy="add one, or leave BenchmarkTable, GflopsMonitor and LatencyMonitor out of trainer.callbacks",
        )
    with torch.no_grad(), evaluation_mode(module), trainer.precision_plugin.forward_context():
        yield offered()


def operations(benchmark: Benchmark) -> FlopCount:
    """Count the operations of one call."""
    return count_gflops(benchmark.network, *benchmark.inputs)


def durations(benchmark: Benchmark, device: torch.device, warmup: int, repeats: int) -> Interleaved:
    """Time the step, in turn with its reference where there is one; names are ``OWN`` and ``REFERENCE``."""
    steps = {OWN: benchmark.step}
    if benchmark.reference is not None:
        steps = {REFERENCE: benchmark.reference, **steps}
    return interleave(steps, rounds=repeats, warmup=warmup, synchronize=synchronizer(device))
