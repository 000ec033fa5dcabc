"""How long every annotated action has been going on, for scores by the time since an action's start."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datamodules.errors import UserError
from datamodules.sampling.indexing import keyframes_on_grid
from datamodules.sampling.windows import TimedVideo


def seconds_since_start(videos: Sequence[TimedVideo], grid: int) -> list[np.ndarray]:
    """Return (M, K) seconds for each keyframe of ``windows.true_keyframes``, NaN where the person does not do so.

    An action of a person starts at the first annotated moment that has it, and goes on as long as every further one
    does, whatever the grid. One that a video begins with starts with the video: that is when it can first be seen.
    """
    result = []
    for video in videos:
        of_video = _of_video(video)
        on_grid = keyframes_on_grid(video.frames, grid, len(video.facts.times))
        result += [of_video[position] for _, position in on_grid.tolist()]
    return result


def _of_video(video: TimedVideo) -> list[np.ndarray]:
    """Return (M, K) seconds for each annotated moment of a video."""
    going_on: dict[tuple[int, int], float] = {}
    result = []
    for time, labels, tracks in zip(video.timestamps.tolist(), video.labels, video.tracks, strict=True):
        if tracks is None:
            raise UserError(
                f"boxes at {time:g} s without a person, so nobody can say since when an action goes on",
                where=video.path,
                remedy="annotate a person id, or score without the time since the start",
            )
        seconds, still = np.full(labels.shape, np.nan), {}
        for row, label in np.argwhere(labels).tolist():
            action = (int(tracks[row]), label)
            still[action] = going_on.get(action, time)
            seconds[row, label] = time - still[action]
        going_on = still
        result.append(seconds)
    return result
