"""The benchmark of ``analyse`` at a part of AVA's size: what grows with the rows stays within the promised limits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
AVA_KEYFRAMES = 57_000
SECONDS, MEBIBYTES = 300, 4096
"""Promised at AVA's size."""


def measured(keyframes: int) -> dict:
    command = [sys.executable, "-m", "results.benchmarks.accuracy.error_analysis", "--keyframes", str(keyframes)]
    return json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


@pytest.fixture(scope="module")
def small() -> dict:
    return measured(30)


@pytest.mark.slow
def test_every_step_of_a_small_file_is_measured(small):
    found = small
    assert found["rows"] == 30 * 5 * 60 and 0 < found["map"] < 1 and found["pictures"] == 20
    first, *_, last = found["steps"]
    assert (first, last) == ("reading", "page")
    assert {"matching", "kinds", "costs of kinds", "properties", "costliest errors"} <= set(found["steps"])
    assert sum(found["steps"].values()) == pytest.approx(found["seconds"], abs=1)
    assert found["peak_mib"] >= found["peak_mib_before"] > 0


@pytest.mark.slow
def test_time_and_memory_of_a_tenth_of_ava_stay_within_a_tenth_of_the_limits(small):
    """Beside a part that is the same for every file: imports, pictures and the page."""
    tenth = measured(AVA_KEYFRAMES // 10)
    assert tenth["rows"] == 1_710_000
    assert tenth["seconds"] - small["seconds"] < SECONDS / 10
    assert tenth["peak_mib"] - small["peak_mib"] < (MEBIBYTES - small["peak_mib"]) / 10
