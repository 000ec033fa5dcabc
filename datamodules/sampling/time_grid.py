"""Choice of a stream's frames by their time stamps, for videos of any frame rate."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

EARLY = 0.09
"""Periods by which a frame may precede its moment and still be taken: cameras and time stamps jitter. No fraction
1/n: rounding would then decide between the frames of videos that divide a period evenly."""


class TimeGrid:
    """Choice of the first frame of a stream, and then of the first frame that is due at each moment of a time grid.

    Moments lie whole periods after the first frame, so that a frame that comes late, or not at all, delays no other.

    A period of 0.1 s on 25 frames per second takes frames 0, 3 (0.12 s), 5 (0.2 s), 8 (0.32 s), 10 (0.4 s):

    >>> grid = TimeGrid(0.1)
    >>> [frame for frame in range(11) if grid.takes(frame / 25)]
    [0, 3, 5, 8, 10]
    """

    def __init__(self, period_seconds: float) -> None:
        self.period_seconds = period_seconds
        self._start: float | None = None
        self._due = 0

    def takes(self, seconds: float) -> bool:
        """Return whether the frame shown at this moment is taken; moments must not go back."""
        if self._start is None:
            self._start = seconds
        periods = (seconds - self._start) / self.period_seconds + EARLY
        if periods < self._due:
            return False
        self._due = int(periods) + 1
        return True


def frames_on_grid(times: Iterable[float], period_seconds: float) -> np.ndarray:
    """Numbers of the frames that a stream takes of a whole video: (S,) int64."""
    grid = TimeGrid(period_seconds)
    return np.asarray([index for index, seconds in enumerate(times) if grid.takes(seconds)], np.int64)
