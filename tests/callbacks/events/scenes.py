"""Frames with people for tests of events."""

from __future__ import annotations

import numpy as np

from lightning_modules.evaluation.tracked import TrackedFrame, TrackedPerson

CENTRED = (40.0, 20.0, 60.0, 80.0)
"""Box in a frame of 100x100 pixels: its foot is at (0.5, 0.8), its centre at (0.5, 0.5)."""


def person(score: float, track: int | None = 0, box=CENTRED, sure: float = 0.9, action: str = "wave") -> TrackedPerson:
    """Return somebody who does one of two actions."""
    return TrackedPerson(track, box, sure, {"walk": 0.0, "wave": 0.0} | {action: score})


def frame(
    seconds: float, *people: TrackedPerson, source: str = "cam", size=(100, 100), colour: int | None = None
) -> TrackedFrame:
    """Return a frame, with a picture of one grey where a colour is given."""
    picture = None if colour is None else np.full((*size, 3), colour, np.uint8)
    return TrackedFrame(source, seconds, None, size, people, picture)
