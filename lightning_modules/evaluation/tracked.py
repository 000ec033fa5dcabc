"""Predictions in the form that programs use: people in a frame, their boxes and actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..networks.detection.outputs import ScoredBoxes


class TrackedPerson(NamedTuple):
    """A person in one frame."""

    track: int | None
    """The person's number in the video, counted from 0; None from detectors that do not track."""
    box: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels of the video."""
    person_score: float
    actions: dict[str, float]
    """Score of every action by name, in the order of the classes."""


class TrackedFrame(NamedTuple):
    """One frame and the people in it."""

    video_id: str
    seconds: float
    """Time stamp."""
    frame: int | None
    """Number in the video, counted from 0; None from detectors that do not know it."""
    size: tuple[int, int]
    """Height and width in pixels of the video."""
    people: tuple[TrackedPerson, ...]
    picture: np.ndarray | None = None
    """(h, w, 3) uint8, where the data gives it."""


def people_of(
    found: ScoredBoxes, class_names: Sequence[str], track_ids: Tensor | None = None
) -> tuple[TrackedPerson, ...]:
    """Return the detections of a frame as people, in their order."""
    tracks = [None] * len(found.boxes) if track_ids is None else track_ids.tolist()
    rows = zip(tracks, found.boxes.tolist(), found.person_scores.tolist(), found.scores.tolist(), strict=True)
    return tuple(
        TrackedPerson(track, tuple(box), person, dict(zip(class_names, scores, strict=True)))
        for track, box, person, scores in rows
    )
