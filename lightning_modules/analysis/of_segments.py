"""Analysis of segments: its summary, and its costliest errors on a line of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from ..metrics.segment_map import SegmentRows, unique_segments
from .costs import SingleError
from .error_pictures import ERROR, FOUND, TRUE, Bar, draw_timeline
from .kinds import SEGMENT_KINDS, Kind, find_errors
from .matched import Matched, match_segments
from .pages import Picture
from .properties import Property, thirds
from .summary import Step, Summary, summarise

MARGIN = 1.0
"""Margin drawn around a segment, in parts of its length."""
MOST_BARS = 12


def analyse_segments(
    name: str,
    videos: Sequence[Mapping[str, Tensor]],
    truth: Mapping[str, Mapping[str, Tensor]],
    class_names: Sequence[str],
    evaluated_on: str,
    threshold: float,
    num_pictures: int,
    step: Step,
) -> tuple[Summary, list[Picture]]:
    """Return the summary of a file, and pictures of its costliest errors.

    Args:
        name: what the file is called. evaluated_on: what the list of videos is called.
        videos: ``segments``, ``scores`` and ``labels`` of each video of ``truth``.
        threshold: overlap from which on a segment is a hit.
        step: called with what has been done.
    """
    preds, targets = _rows(videos), unique_segments(_rows(list(truth.values())))
    matched = match_segments(preds, targets, len(class_names), threshold)
    step("matching")
    errors = find_errors(matched, missed=Kind.MISSED_SEGMENT)
    step("kinds")
    said = f"segment mAP@tIoU {threshold:g} on {evaluated_on}"
    summary = summarise(name, said, matched, errors, SEGMENT_KINDS, segment_properties(targets), num_pictures, step)
    drawing = _Drawing(matched, preds, targets, list(truth), class_names)
    pictures = [
        Picture(f"error_{number:02}", drawing.picture(error), f"{number}. {drawing.caption(error)}")
        for number, error in enumerate(summary.costliest, start=1)
    ]
    step("pictures")
    return summary, pictures


def _rows(videos: Sequence[Mapping[str, Tensor]]) -> SegmentRows:
    counts = [len(video["labels"]) for video in videos]

    def column(name: str, empty: np.ndarray) -> np.ndarray:
        return np.concatenate([empty, *(video[name].numpy() for video in videos if name in video)])

    scores = column("scores", np.zeros(0))
    return SegmentRows(
        np.repeat(np.arange(len(videos)), counts),
        column("labels", np.zeros(0, np.int64)).astype(np.int64),
        column("segments", np.zeros((0, 2))).astype(np.float64),
        scores.astype(np.float64) if len(scores) == sum(counts) else np.ones(sum(counts)),
    )


def segment_properties(targets: SegmentRows) -> list[Property]:
    """Return the properties of true segments: their length, and how many their video has."""
    counts = np.bincount(targets.videos)[targets.videos] if len(targets.videos) else np.zeros(0)
    return [
        thirds("duration of the action", targets.segments[:, 1] - targets.segments[:, 0], "s"),
        thirds("segments in the video", counts.astype(float)),
    ]


class _Drawing:
    """Drawer of single errors of one file."""

    def __init__(
        self,
        matched: Matched,
        preds: SegmentRows,
        targets: SegmentRows,
        videos: Sequence[str],
        class_names: Sequence[str],
    ) -> None:
        self.matched, self.videos, self.class_names = matched, videos, class_names
        self.preds, self.targets = preds.take(matched.rows), targets

    def caption(self, error: SingleError) -> str:
        """Return what is wrong, and what it costs."""
        names, cost = self.class_names, f"costs {100 * error.cost:.3f} points"
        video, (start, end) = self._place(error)
        where = f"{self.videos[video]}, {start:.1f} to {end:.1f} s"
        true = names[self.matched.true_classes[error.true_row]] if error.true_row >= 0 else None
        if error.row < 0:
            return f"{error.kind.words}: {true}; {where}; {cost}"
        found = f"{names[self.matched.classes[error.row]]} {self.matched.scores[error.row]:.2f}"
        about = f", there is {true}" if true and true != names[self.matched.classes[error.row]] else ""
        return f"{error.kind.words}: {found}{about}; {where}; {cost}"

    def _place(self, error: SingleError) -> tuple[int, np.ndarray]:
        rows, at = (self.preds, error.row) if error.row >= 0 else (self.targets, error.true_row)
        return int(rows.videos[at]), rows.segments[at]

    def picture(self, error: SingleError) -> bytes:
        """The error, what is true around it, and what found that."""
        video, (start, end) = self._place(error)
        around = max(MARGIN * (end - start), 1e-3)
        span = (start - around, end + around)
        bars = []
        if error.row >= 0:
            text = f"{self.class_names[self.matched.classes[error.row]]} {self.matched.scores[error.row]:.2f}"
            bars.append(Bar(start, end, f"{error.kind.words}: {text}", ERROR))
        for true in _within(self.targets, video, span)[:MOST_BARS]:
            is_missed = error.row < 0 and true == error.true_row
            name = self.class_names[self.matched.true_classes[true]]
            bars.append(Bar(*self.targets.segments[true], f"true: {name}", ERROR if is_missed else TRUE))
            for row in np.flatnonzero(self.matched.taken == true).tolist():
                bars.append(Bar(*self.preds.segments[row], f"{name} {self.matched.scores[row]:.2f}", FOUND))
        return draw_timeline(bars, span)


def _within(rows: SegmentRows, video: int, span: tuple[float, float]) -> list[int]:
    """The segments of a video that are seen in a span."""
    overlaps = (rows.segments[:, 0] < span[1]) & (rows.segments[:, 1] > span[0])
    return np.flatnonzero((rows.videos == video) & overlaps).tolist()
