"""The parts of the benchmark, and their shares of its time."""

from __future__ import annotations

from collections.abc import Mapping

from results.benchmarks.gpu.processes import Measure
from results.benchmarks.gpu.steps import measure_compiled, measure_lanes, measure_steps
from results.benchmarks.gpu.training import measure_training

SHARES: Mapping[str, float] = {"steps": 0.2, "lanes": 0.25, "training": 0.25, "compiled": 0.3}
"""Part -> its share of the time; what a part leaves goes to those after it."""
MEASURES: Mapping[str, Measure] = {
    "steps": measure_steps,
    "lanes": measure_lanes,
    "training": measure_training,
    "compiled": measure_compiled,
}


def deadlines(parts: list[str], begin: float, seconds: float) -> dict[str, float]:
    """Deadlines of parts: the time is divided among them by their shares."""
    total, so_far, found = sum(SHARES[part] for part in parts), 0.0, {}
    for part in parts:
        so_far += SHARES[part]
        found[part] = begin + seconds * so_far / total
    return found
