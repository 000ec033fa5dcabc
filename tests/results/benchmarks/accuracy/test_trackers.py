"""The benchmark of trackers on people who walk, so that HOTA and IDF1 are known; needs ``trackeval``."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from lightning_modules.networks.detection.outputs import ScoredBoxes
from results.benchmarks.accuracy import trackers
from results.benchmarks.accuracy.trackers import Frame, Seen, grid, online, scores

LENGTH = 10


@pytest.fixture(autouse=True, scope="module")
def needs_trackeval():
    pytest.importorskip("trackeval")


def two_walkers() -> list[Frame]:
    """Two people side by side, found where they are."""
    frames = []
    for time in range(LENGTH):
        boxes = np.asarray([[time, 0, time + 20, 40], [time + 60, 0, time + 80, 40]], np.float32)
        found = ScoredBoxes(torch.from_numpy(boxes), torch.zeros(2, 3), torch.ones(2))
        frames.append(Frame(found, boxes, np.asarray([5, 9])))
    return frames


def numbered(ids_at):
    """Return what makes a tracker that sees every box and numbers them as it is said for each frame."""

    def make():
        times = iter(range(LENGTH))
        return lambda found: Seen(np.asarray(ids_at(next(times))), found.boxes.numpy())

    return make


def test_people_who_keep_their_number_give_100_percent():
    result = scores([two_walkers()] * 2, online, {})
    assert [result[name] for name in ("HOTA", "DetA", "AssA", "IDF1", "MOTA")] == pytest.approx([100.0] * 5)
    assert result["switches"] == 0


def test_numbers_that_change_at_half_time_halve_idf1():
    """Each person has one number for five of ten frames and another for five: half of the boxes keep their identity.

    A pair of frames' association is right with 5 of 10: AssA 1/2, DetA 1, HOTA the root of 1/2.
    """
    result = scores([two_walkers()], numbered(lambda time: [0, 1] if time < LENGTH // 2 else [2, 3]), {})
    assert result["IDF1"] == pytest.approx(50)
    assert (result["DetA"], result["AssA"]) == (pytest.approx(100), pytest.approx(50))
    assert result["HOTA"] == pytest.approx(100 * 0.5**0.5)
    assert result["switches"] == 2


def test_two_people_who_swap_their_numbers_are_two_switches():
    """A number is right for half of its frames: of each pair (5 true, 5 of the other) AssA is 5 / 15."""
    result = scores([two_walkers()], numbered(lambda time: [0, 1] if time < LENGTH // 2 else [1, 0]), {})
    assert result["IDF1"] == pytest.approx(50)
    assert result["AssA"] == pytest.approx(100 / 3)
    assert result["switches"] == 2


def test_a_grid_has_every_combination_once():
    assert grid(a=(1, 2), b=(3,)) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]


def test_a_new_page_keeps_what_follows_from_the_old_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        trackers, "frames_of", lambda weights, source, split, count: [two_walkers() for _ in range(count)]
    )
    monkeypatch.setattr(trackers.Puppets, "prepare", lambda self: None)
    page = tmp_path / "trackers.md"
    page.write_text("# Old\n\nold figures\n\n## What follows\n\n- the linker stays\n")
    name = "OnlineLinker, iou_threshold 0.1"
    trackers.main(["--videos", "2", "--training", "1", "--trackers", name, "--out", str(page)])
    text = page.read_text()
    assert "old figures" not in text and text.endswith("\n## What follows\n\n- the linker stays\n")
    command = f"python -m results.benchmarks.accuracy.trackers --videos 2 --training 1 --trackers '{name}'"
    assert f"`{command}`" in " ".join(text.split())
    row = rf"\| {name} +(\| +100\.0 ){{5}}\| +0 \|.* iou_threshold 0\.1 \| +1 \|"
    assert len(re.findall(row, text)) == 2 and "20 frames." in text and "6 frames." in text
