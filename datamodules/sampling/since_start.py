"""Age and remaining time of every annotated action, and speed of people: scores are split by them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datamodules.errors import UserError
from datamodules.sampling.indexing import keyframes_on_grid
from datamodules.sampling.windows import TimedVideo


def seconds_since_start(videos: Sequence[TimedVideo], grid: int) -> list[np.ndarray]:
    """Return (M, K) seconds for each keyframe of ``windows.true_keyframes``, NaN where the person does not do so.

    An action of a person starts at the first annotated moment that has it. It lasts as long as every further moment has
    it, on any grid. One that a video begins with starts with the video: that is when it can first be seen.
    """
    result = []
    for video in videos:
        of_video = _of_video(video)
        on_grid = keyframes_on_grid(video.frames, grid, len(video.facts.times))
        result += [of_video[position] for _, position in on_grid.tolist()]
    return result


def seconds_until_end(videos: Sequence[TimedVideo], grid: int) -> list[np.ndarray]:
    """Return (M, K) seconds for each keyframe of ``windows.true_keyframes``, NaN where the person does not do so.

    An action ends with the last annotated moment that has it: ``seconds_since_start`` with time turned round.
    """
    result = []
    for video in videos:
        columns = {name: getattr(video, name)[::-1] for name in ("labels", "tracks")}
        of_video = _of_video(video._replace(timestamps=-video.timestamps[::-1], **columns))[::-1]
        on_grid = keyframes_on_grid(video.frames, grid, len(video.facts.times))
        result += [of_video[position] for _, position in on_grid.tolist()]
    return result


def speeds(videos: Sequence[TimedVideo], grid: int) -> list[np.ndarray]:
    """Return (M,) for each keyframe of ``windows.true_keyframes``: heights of the box that its centre moves a second.

    Measured from the annotated moment before to the one after, as far as the person is there. NaN where there is
    neither, or where people are not identified.
    """
    result = []
    for video in videos:
        height, width = video.facts.size
        places: list[dict[int, np.ndarray]] = []
        for boxes, tracks in zip(video.boxes, video.tracks, strict=True):
            corners = boxes * np.asarray([width, height, width, height], np.float32)
            whose = [] if tracks is None else tracks.tolist()
            places.append({person: (box[:2] + box[2:]) / 2 for person, box in zip(whose, corners, strict=False)})
        for _, position in keyframes_on_grid(video.frames, grid, len(video.facts.times)).tolist():
            boxes, tracks = video.boxes[position], video.tracks[position]
            speed = np.full(len(boxes), np.nan)
            around = [at for at in (position - 1, position, position + 1) if 0 <= at < len(places)]
            for row, person in enumerate([] if tracks is None else tracks.tolist()):
                there = [at for at in around if person in places[at]]
                seconds = video.timestamps[there[-1]] - video.timestamps[there[0]]
                tall = (boxes[row, 3] - boxes[row, 1]) * height
                if seconds > 0 and tall > 0:
                    moved = places[there[-1]][person] - places[there[0]][person]
                    speed[row] = float(np.hypot(*moved)) / tall / seconds
            result.append(speed)
    return result


def _of_video(video: TimedVideo) -> list[np.ndarray]:
    """Return (M, K) seconds for each annotated moment of a video."""
    going_on: dict[tuple[int, int], float] = {}
    result = []
    for time, labels, tracks in zip(video.timestamps.tolist(), video.labels, video.tracks, strict=True):
        if tracks is None:
            raise UserError(
                f"boxes at {time:g} s without a person id, so the start of an action is unknown",
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
