"""Boxes that go on as they came."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_modules.metrics.forecast import boxes_ahead
from lightning_modules.metrics.frame_ap import FrameRows

# Frame 0 and frame 1, 0.1 s later: one box moves 2 to the right and 1 down, one is new.
BOXES = np.asarray([[0, 0, 10, 20], [2, 1, 12, 21], [80, 80, 90, 90]], float)
PREDS = FrameRows(
    np.asarray([0, 1, 1]), BOXES, np.asarray([0, 1, 2]), np.asarray([3, 3, 4]), np.asarray([0.5, 0.6, 0.7])
)


def moved(seconds: float, source: int = 1, previous: int = 0) -> FrameRows:
    return boxes_ahead(PREDS, *(np.asarray([value]) for value in (source, previous, seconds, 0.1)))


def test_boxes_go_on_in_a_straight_line_and_new_ones_stay():
    found = moved(0.3)
    assert found.boxes.tolist() == [pytest.approx([8, 4, 18, 24]), pytest.approx([80, 80, 90, 90])]
    assert found.scores.tolist() == [0.6, 0.7] and found.classes.tolist() == [3, 4] and found.frames.tolist() == [0, 0]


def test_without_a_frame_before_or_time_nothing_moves():
    for found in (moved(0.3, previous=-1), moved(0.0)):
        assert found.boxes.tolist() == BOXES[1:].tolist()
    assert len(moved(0.3, source=-1).boxes) == 0
