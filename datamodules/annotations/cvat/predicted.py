"""Predicted tracks, read from the JSON lines of ``predict``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.errors import UserError
from datamodules.text_files import open_text


class PredictedBox(NamedTuple):
    """A person in one frame."""

    frame: int
    """Number of the frame in the video, from 0."""
    corners: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels."""
    actions: frozenset[str]


class Predictions(NamedTuple):
    """Predictions on one video."""

    video: str
    frames: tuple[int, ...]
    """The frames that were looked at, ascending."""
    tracks: dict[int, list[PredictedBox]]
    """The boxes of each person by their number, in order of frames."""
    actions: tuple[str, ...]
    """All actions that a box has, in order of their first one."""


@dataclass(frozen=True)
class Thresholds:
    """Limits below which predictions are not worth an annotator's time.

    Args:
        action_score, person_score: lesser ones are left out.
        shortest_track: boxes that a track must have.
    """

    action_score: float = 0.0
    person_score: float = 0.0
    shortest_track: int = 1

    def __post_init__(self) -> None:
        for name in ("action_score", "person_score"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"must be from 0 to 1, got {getattr(self, name):g}", name)
        if self.shortest_track < 1:
            raise UserError(f"must be at least 1, got {self.shortest_track}", "shortest_track")


def read_predictions(path: str | Path, thresholds: Thresholds | None = None) -> Predictions:
    """Read the tracks of one video.

    Args:
        path: a ``jsonl`` file of ``predict``, of a detector that tracks.
        thresholds: boxes, actions and tracks below them are left out; by default nothing is.

    Raises:
        UserError: a line is not of that form, has no tracks, or is about another video or an earlier frame.
    """
    from tqdm import tqdm

    path = Path(path)
    read = _Read(path, thresholds or Thresholds())
    with (
        open_text(path, "file of predictions") as file,
        tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, leave=False) as progress,
    ):
        for number, text in enumerate(file, start=1):
            if text.strip():
                read.line(number, text)
            progress.update(len(text.encode()))
    return read.predictions()


@dataclass
class _Read:
    """Part of a file that has been read so far."""

    path: Path
    thresholds: Thresholds
    video: str | None = None
    frames: list[int] = field(default_factory=list)
    tracks: dict[int, list[PredictedBox]] = field(default_factory=dict)

    def line(self, number: int, text: str) -> None:
        try:
            line = json.loads(text)
            video, detections = line["video"], line["detections"]
            frame = line.get("frame")
            if not isinstance(video, str) or not isinstance(detections, list):
                raise TypeError
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            raise self._error(number, "is no line of predict's jsonl", "give a jsonl file of predict") from None
        if self.video not in (None, video):
            raise self._error(number, f"is about {video!r}, the lines before about {self.video!r}", "split the file")
        if not _is_whole(frame):
            problem = (
                "has no frame number, as of a detector that does not track" if frame is None else "has a bad frame"
            )
            raise self._error(number, problem, "predict with a student: a stream detector numbers frames and people")
        if self.frames and frame <= self.frames[-1]:
            raise self._error(number, f"is about frame {frame}, the line before about frame {self.frames[-1]}", None)
        self.video = video
        self.frames.append(frame)
        seen: set[int] = set()
        for track, box in self._boxes(number, frame, detections):
            if track in seen:
                raise self._error(number, f"has track {track} twice", None)
            seen.add(track)
            self.tracks.setdefault(track, []).append(box)

    def _boxes(self, number: int, frame: int, detections: list[Any]) -> Iterator[tuple[int, PredictedBox]]:
        for place, found in enumerate(detections, start=1):
            try:
                track, corners, person = found["track"], tuple(map(float, found["box"])), float(found["person"])
                scores = {str(name): float(score) for name, score in found["actions"].items()}
                if not _is_whole(track) or len(corners) != 4 or not all(map(math.isfinite, corners)):
                    raise ValueError
            except (ValueError, TypeError, KeyError, AttributeError):
                problem = f"detection {place} has no track, box, person score and actions as predict writes them"
                raise self._error(number, problem, "predict with a student: a stream detector tracks") from None
            if person >= self.thresholds.person_score:
                strong = frozenset(name for name, score in scores.items() if score >= self.thresholds.action_score)
                yield track, PredictedBox(frame, corners, strong)

    def _error(self, number: int, problem: str, remedy: str | None) -> UserError:
        return UserError(f"line {number} {problem}", self.path, remedy)

    def predictions(self) -> Predictions:
        if self.video is None:
            raise UserError("holds no predictions", self.path, "give a jsonl file of predict")
        tracks = {track: boxes for track, boxes in self.tracks.items() if len(boxes) >= self.thresholds.shortest_track}
        actions = dict.fromkeys(name for boxes in tracks.values() for box in boxes for name in sorted(box.actions))
        return Predictions(self.video, tuple(self.frames), tracks, tuple(actions))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
