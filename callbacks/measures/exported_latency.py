"""Rows of the benchmark table for networks outside their experiment: in another runtime, timed in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from callbacks.benchmark.rows import BenchmarkRow
from callbacks.measures.latency import interleave, synchronizer
from lightning_modules.evaluation.benchmark import Step


class RuntimeStep(NamedTuple):
    """One call of a network in a runtime, from uint8 pixels to decoded detections on the CPU."""

    experiment: str
    """Name of its row."""
    step: Step
    weights: str
    precision: str
    parameters: int
    unit: str
    """Input of the call: "frame" or "clip"."""
    frame: tuple[int, int]
    """Height and width in pixels, padding included."""
    delay: int
    """Sampled frames that its predictions wait for."""
    state_mib: float | None = None
    reference: str | None = None
    """Experiment, one of the same measurement, that the speed-up is relative to."""


def runtime_rows(steps: Sequence[RuntimeStep], warmup: int = 5, repeats: int = 50) -> list[BenchmarkRow]:
    """Measure a row per step; accuracy is that of the experiment's own row.

    An untimed call precedes each timed one: where a network is used it runs alone, with its weights in the caches.
    """
    timed = interleave(
        {step.experiment: step.step for step in steps},
        rounds=repeats,
        warmup=warmup,
        synchronize=synchronizer("cpu"),
        untimed=1,
    )
    return [
        BenchmarkRow.of_latency(
            timed.latencies[step.experiment],
            experiment=step.experiment,
            weights=step.weights,
            protocol="-",
            map=None,
            parameters=step.parameters,
            gflops=None,
            gflops_unit=step.unit,
            frame="{} x {}".format(*step.frame),
            uncounted_operators=[],
            state_mib=step.state_mib,
            delay=step.delay,
            precision=step.precision,
            speedup=None if step.reference is None else timed.ratios[step.experiment] / timed.ratios[step.reference],
        )
        for step in steps
    ]
