"""Detections and ground truth made by hand and by chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_modules.analysis.kinds import Errors, Kind, find_errors
from lightning_modules.analysis.matched import Matched, match_boxes
from lightning_modules.metrics.frame_ap import FrameMapSettings, FrameRows

WALK, TALK, SIT = range(3)
NUM_FRAMES = 12


def frame_rows(boxes: Sequence[tuple[int, Sequence[float], dict[int, float]]]) -> FrameRows:
    """Each box has a frame, corners, and a score for each of its actions."""
    rows = [(owner, action, score) for owner, (*_, scores) in enumerate(boxes) for action, score in scores.items()]
    owners, classes, scores = zip(*rows, strict=True) if rows else ((), (), ())
    return FrameRows(
        np.asarray([frame for frame, *_ in boxes], np.int64),
        np.asarray([corners for _, corners, _ in boxes], np.float64).reshape(-1, 4),
        np.asarray(owners, np.int64),
        np.asarray(classes, np.int64),
        np.asarray(scores, np.float64),
    )


def explained(found, true, num_frames=1, num_classes=3, **settings) -> tuple[Matched, Errors]:
    """``found`` as ``frame_rows`` takes it; ``true`` with a list of actions instead of scores."""
    targets = frame_rows([(frame, corners, dict.fromkeys(actions, 1.0)) for frame, corners, actions in true])
    protocol = FrameMapSettings(**({"protocol": "pascal"} | settings))
    matched, _ = match_boxes(frame_rows(found), targets, num_frames, num_classes, protocol)
    return matched, find_errors(matched)


def counts(errors: Errors) -> dict[str, int]:
    """Return the number of errors of each kind that occurs."""
    return {kind.words: errors.count(kind) for kind in Kind if kind and errors.count(kind)}


def random_rows(
    seed: int, num_frames: int = NUM_FRAMES, num_classes: int = 4, actions: int = 1
) -> tuple[FrameRows, FrameRows]:
    """Detections on, near and far from people of whom each does ``actions`` things; every box has one row an action.

    RandomState, whose numbers are the same in every numpy.
    """
    random = np.random.RandomState(seed)
    found, true = [], []
    for frame in range(num_frames):
        for _ in range(random.randint(0, 4)):
            corner, size = random.uniform(0, 150, 2), random.uniform(20, 90, 2)
            box = np.concatenate([corner, corner + size])
            does = random.permutation(num_classes)[: random.randint(1, actions + 1)].tolist()
            true.append((frame, box, dict.fromkeys(does, 1.0)))
            for _ in range(random.randint(0, 4)):
                moved = box + random.normal(0, random.choice([2, 12, 40]), 4)
                moved[2:] = np.maximum(moved[2:], moved[:2] + 5)
                some = (
                    does if random.rand() < 0.7 else random.permutation(num_classes)[: random.randint(1, actions + 1)]
                )
                found.append((frame, moved, {int(action): random.rand() for action in some}))
        for _ in range(random.randint(0, 3)):
            corner = random.uniform(0, 200, 2)
            box = np.concatenate([corner, corner + random.uniform(10, 60, 2)])
            found.append((frame, box, {int(random.randint(num_classes)): random.rand()}))
    return frame_rows(found), frame_rows(true)
