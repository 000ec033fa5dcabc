"""Rows of the benchmark table for a network outside its experiment: another runtime beside PyTorch, timed in turn."""

from __future__ import annotations

from collections.abc import Mapping

from callbacks.benchmark.rows import BenchmarkRow
from callbacks.measures.latency import interleave, synchronizer
from lightning_modules.evaluation.benchmark import Step


def runtime_rows(
    experiment: str,
    weights: str,
    steps: Mapping[str, tuple[Step, str]],
    reference: Step | None,
    parameters: int,
    state_mib: float | None,
    warmup: int = 5,
    repeats: int = 50,
) -> list[BenchmarkRow]:
    """Measure one row per runtime, named ``<experiment> (<runtime>)``; accuracy is that of the experiment's row.

    Args:
        steps: runtime -> one new frame (clip) from uint8 pixels to decoded detections on the CPU, and its precision.
        reference: the step that the speed-up is relative to, see ``Benchmark.reference``.
    """
    timed_steps = {runtime: step for runtime, (step, _) in steps.items()}
    if reference is not None:
        timed_steps = {"reference": reference, **timed_steps}
    timed = interleave(timed_steps, rounds=repeats, warmup=warmup, synchronize=synchronizer("cpu"))
    return [
        BenchmarkRow.of_latency(
            timed.latencies[runtime],
            experiment=f"{experiment} ({runtime})",
            weights=weights,
            protocol="-",
            map=None,
            parameters=parameters,
            gflops=None,
            gflops_unit=None,
            uncounted_operators=[],
            state_mib=state_mib,
            precision=precision,
            speedup=None if reference is None else timed.ratios[runtime],
        )
        for runtime, (_, precision) in steps.items()
    ]
