"""The page of int8's cost: what the draws of calibration videos give together."""

from __future__ import annotations

import re

import pytest

from results.benchmarks.exported import int8_cost
from results.benchmarks.page import render


def test_the_loss_of_static_int8_is_stated_with_the_spread_of_its_draws():
    maps = {"float32": 0.85, "int8": 0.848}
    maps |= {f"static-int8, draw {draw}": 0.849 - 0.001 * draw for draw in range(3)}
    facts = {"num_videos": 48, "steps": 200, "calibration_videos": 8, "calibration_frames": 24}
    found = {"boxes_pixels": (0.1, 1.0), "person_scores": (0.01, 0.1), "action_scores": (0.02, 0.2)}
    rows = [
        {"form": form, "map": value, "loses": 0.85 - value, "differences": None if form == "float32" else found}
        | {"megabytes": 9.0, "ms": 10.0, **facts}
        for form, value in maps.items()
    ]
    together = int8_cost.together(rows)
    assert (together["map"], together["loses"]) == (pytest.approx(0.848), pytest.approx(0.002))
    assert (together["least"], together["most"]) == (pytest.approx(0.001), pytest.approx(0.003))
    part = {"machine": "a machine, seed 0", "rounds": 3, "rows": [*rows, together | facts]}
    text = re.sub(" +", " ", render(int8_cost.HEADER, int8_cost.PARTS, {"side": 128, "dsta": part}))
    assert "| float32 | 85.00 | - | - |" in text and "| int8 | 84.80 | 0.20 | 0.10 / 1.00 |" in text
    assert "| static-int8, its draws | 84.80 | 0.20 (0.10 to 0.30) | - | - | - | - | - |" in text
    assert "48 validation videos; differences over 200 frames" in text and "seeds 0, 1 and 2" in text


def test_a_quick_run_measures_little():
    assert int8_cost.QUICK.videos == 1 and int8_cost.QUICK.steps < 10 and int8_cost.QUICK.calibration.videos == 1
