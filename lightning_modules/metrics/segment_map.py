"""Segment mean average precision: how well actions are found in time (THUMOS14, ActivityNet).

The rules are those of ActionFormer and OpenTAD, which are the same:

- Ground truth: of segments of one video and class that start and end within a millisecond of each other the first
  counts. Segments shorter than a millisecond do not count.
- The detections of a class, those of all videos together, come by descending score. Each walks through the segments of
  its video and class in order of descending overlap. A segment below the threshold makes it a false positive, a taken
  one lets it try the next, a free one makes it a hit. Overlap is intersection over union of continuous times; exactly
  the threshold is a hit.
- Average precision is the area under the precision envelope at every point. A class without ground truth is left out, a
  class with ground truth and no detection has 0. The mean is over classes, then over thresholds.

Where scores are tied the references leave the order to an unstable sort. Here equal scores of a video come in order of
time, and those of several videos take turns, misses before hits (``settle_ties``). The references allow this order, and
it does not depend on the order of videos and rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .average_precision import envelope_area, match, settle_ties
from .row_metric import RowMetric, check_columns, concatenate

SAME_SECONDS = 1e-3
"""Ends of ground-truth segments that are no further apart are the same."""


class SegmentRows(NamedTuple):
    """N segments; numpy."""

    videos: np.ndarray
    """(N,) int64, number of the video."""
    classes: np.ndarray
    """(N,) int64."""
    segments: np.ndarray
    """(N, 2) float64, start and end in seconds."""
    scores: np.ndarray
    """(N,) float64; ground truth has ones."""

    def take(self, rows: np.ndarray | slice) -> SegmentRows:
        """The chosen rows, by index, mask or slice."""
        return SegmentRows(*(column[rows] for column in self))


def average_precisions(
    preds: SegmentRows, targets: SegmentRows, num_classes: int, tiou_thresholds: Sequence[float]
) -> np.ndarray:
    """AP at each threshold of each class: (thresholds, num_classes) float64, NaN for a class without ground truth.

    A video has one segment, 10 s to 20 s, and two detections: 10 s to 20 s scored 0.8, and 0 s to 5 s scored 0.9. The
    first by score is a false positive, the second a hit at precision 1/2, so AP is 1/2.
    """
    targets = unique_segments(targets)
    targets = targets.take(np.lexsort((*targets.segments.T[::-1], targets.videos, targets.classes)))
    # From here on the index of a detection of a class is its rank.
    preds = preds.take(np.lexsort((*preds.segments.T[::-1], -preds.scores, preds.classes)))
    classes = np.arange(num_classes + 1)
    found, there = np.searchsorted(preds.classes, classes), np.searchsorted(targets.classes, classes)
    result = np.full((len(tiou_thresholds), num_classes), np.nan)
    for index in np.flatnonzero(np.diff(there)):
        mine, truth = preds.take(slice(*found[index : index + 2])), targets.take(slice(*there[index : index + 2]))
        pred, target, tiou = overlapping_segments(mine, truth)
        for row, threshold in enumerate(tiou_thresholds):
            close = tiou >= threshold
            hits = match(pred[close], target[close], tiou[close], len(mine.scores), len(truth.scores))
            result[row, index] = envelope_area(settle_ties(hits, mine.scores, mine.videos), len(truth.scores))
    return result


def unique_segments(targets: SegmentRows) -> SegmentRows:
    """The rows without those shorter than ``SAME_SECONDS`` and without repetitions, in order of video and class."""
    length = targets.segments[:, 1] - targets.segments[:, 0]
    targets = targets.take(length >= SAME_SECONDS)
    # Stable: of repetitions the first to come is the one that stays, as in the references.
    targets = targets.take(np.lexsort((targets.classes, targets.videos)))
    fresh = np.r_[True, (np.diff(targets.videos) != 0) | (np.diff(targets.classes) != 0)][: len(targets.scores)]
    keep = np.ones(len(targets.scores), dtype=bool)
    bounds = np.r_[np.flatnonzero(fresh), len(targets.scores)]
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        for row in range(start + 1, stop):
            apart = np.abs(targets.segments[start:row] - targets.segments[row])[keep[start:row]]
            keep[row] = not (apart <= SAME_SECONDS).all(axis=1).any()
    return targets.take(keep)


def overlapping_segments(preds: SegmentRows, targets: SegmentRows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of one video that overlap: (detection ascending, target, tIoU). ``targets`` are in order of videos."""
    start = np.searchsorted(targets.videos, preds.videos, side="left")
    counts = np.searchsorted(targets.videos, preds.videos, side="right") - start
    left = np.repeat(np.arange(len(counts)), counts)
    right = np.arange(len(left)) + np.repeat(start - (np.cumsum(counts) - counts), counts)
    tiou = pairwise_tiou(preds.segments[left], targets.segments[right])
    overlap = np.flatnonzero(tiou)
    return left[overlap], right[overlap], tiou[overlap]


def pairwise_tiou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Temporal IoU of row i of ``a`` with row i of ``b``, both (P, 2): (P,)."""
    inner = np.clip(np.minimum(a[:, 1], b[:, 1]) - np.maximum(a[:, 0], b[:, 0]), 0, None)
    union = (a[:, 1] - a[:, 0]) + (b[:, 1] - b[:, 0]) - inner
    return np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)


def _explain_zero(preds: SegmentRows, targets: SegmentRows, threshold: float) -> str:
    """Return in words why the mean is 0 or undefined."""
    if not len(targets.scores):
        return "no ground truth: no video has a segment"
    if not len(preds.scores):
        return "no detection: nothing passed the detector's score threshold"
    expected, found = np.unique(targets.classes), np.unique(preds.classes)
    if not np.isin(expected, found).any():
        return (
            f"class never predicted: ground truth has the classes {expected.tolist()}, detections have "
            f"{found.tolist()}; check where labels start to count"
        )
    best = preds.take(np.argsort(-preds.scores, kind="stable")[:100_000])  # enough to judge by, and quick
    by_video = targets.take(np.argsort(targets.videos, kind="stable"))
    largest = overlapping_segments(best, by_video)[2].max(initial=0.0)
    if largest >= threshold:
        return f"no overlap >= {threshold:g} within a class: segments overlap by up to {largest:.3f}, with other labels"
    return (
        f"no overlap >= {threshold:g}: the largest is {largest:.3f}; detections end by {preds.segments.max():.4g} s, "
        f"ground truth by {targets.segments.max():.4g} s; check that both count seconds from the start of the video"
    )


class SegmentMeanAveragePrecision(RowMetric):
    """Segment mAP over all videos that ``update`` has seen; see the module's docstring for the rules.

    Args:
        num_classes: number of classes K; labels are 0..K-1.
        tiou_thresholds: overlaps from which on a detection is a hit; 0.3 to 0.7 for THUMOS14, 0.5 to 0.95 in steps of
            0.05 for ActivityNet.

    Videos are identified by position, so every video is passed exactly once: leave out what a distributed sampler
    repeats to even out its ranks. A video without ground truth counts; all its detections are false positives.
    """

    pred_counts: list[Tensor]
    pred_segments: list[Tensor]
    pred_scores: list[Tensor]
    pred_labels: list[Tensor]
    target_counts: list[Tensor]
    target_segments: list[Tensor]
    target_labels: list[Tensor]

    def __init__(
        self, num_classes: int, tiou_thresholds: Sequence[float] = (0.3, 0.4, 0.5, 0.6, 0.7), **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if not tiou_thresholds or not all(0 < threshold <= 1 for threshold in tiou_thresholds):
            raise ValueError(f"tiou_thresholds must be one or more numbers in (0, 1], got {tiou_thresholds}")
        self.num_classes = num_classes
        self.tiou_thresholds = tuple(float(threshold) for threshold in tiou_thresholds)
        self._start()

    @property
    def protocol(self) -> str:
        """Name of the protocol, as printed beside a number."""
        shown = ", ".join(f"{threshold:g}" for threshold in self.tiou_thresholds)
        return f"segment mAP@tIoU {shown} (ActionFormer/OpenTAD)"

    def _empty_states(self) -> dict[str, Tensor]:
        whole = torch.zeros(0, dtype=torch.int64, device=self.device)
        # In float32 an overlap of exactly 0.7 may come out below it, a miss.
        segments = torch.zeros(0, 2, dtype=torch.float64, device=self.device)
        return {
            "pred_counts": whole,
            "pred_segments": segments,
            "pred_scores": segments[:, 0],
            "pred_labels": whole,
            "target_counts": whole,
            "target_segments": segments,
            "target_labels": whole,
        }

    def update(self, preds: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]) -> None:
        """Add whole videos; entry i of both sequences belongs to the same video.

        Args:
            preds: one dict per video: ``segments`` (N, 2), start and end in seconds, ``scores`` (N,), ``labels`` (N,)
                int.
            targets: one dict per video: ``segments`` (M, 2), ``labels`` (M,) int.
        """
        if len(preds) != len(targets):
            raise ValueError(f"preds has {len(preds)} videos but targets has {len(targets)}")
        sides = ("pred", ("segments", "scores", "labels"), preds), ("target", ("segments", "labels"), targets)
        empty, new = self._empty_states(), {}
        for side, columns, videos in sides:
            counts = [
                check_columns(video, f"{side}s[{index}]", columns, 2, "start and end")
                for index, video in enumerate(videos)
            ]
            new[f"{side}_counts"] = torch.tensor(counts, dtype=torch.int64, device=self.device)
            for column in columns:
                rows = concatenate((video[column] for video in videos), empty[f"{side}_{column}"])
                new[f"{side}_{column}"] = rows
                self._check(rows, column, side)
        self._append(new)

    def _check(self, rows: Tensor, column: str, side: str) -> None:
        if not rows.numel():
            return
        if column != "labels":
            if not torch.isfinite(rows).all():
                raise ValueError(f"{side}s have NaN or infinite {column}")
            return
        lowest, highest = (int(value) for value in rows.aminmax())
        if not 0 <= lowest <= highest < self.num_classes:
            raise ValueError(
                f"{side} labels run from {lowest} to {highest} but num_classes={self.num_classes} means 0 to "
                f"{self.num_classes - 1}"
            )

    def compute(self) -> dict[str, Any]:
        """The result over all videos, of T thresholds.

        Returns:
            ``map``: scalar fraction, NaN without ground truth. ``map_per_threshold``: (T,). ``map_per_class``: (K,),
            means over the thresholds, NaN for classes without ground truth. ``classes``: (K,) their ids.
            ``num_videos``: videos evaluated. ``num_segments``: ground-truth segments that count. ``explanation``: in
            words why ``map`` is 0 or NaN, otherwise empty.
        """
        preds, targets = self._rows("pred"), self._rows("target")
        ap = average_precisions(preds, targets, self.num_classes, self.tiou_thresholds)
        scored = ~np.isnan(ap[0])
        per_threshold = ap[:, scored].mean(axis=1) if scored.any() else np.full(len(ap), np.nan)
        mean = per_threshold.mean()
        explanation = "" if mean > 0 else _explain_zero(preds, targets, min(self.tiou_thresholds))
        return {
            "map": torch.tensor(mean, dtype=torch.float64, device=self.device),
            "map_per_threshold": torch.tensor(per_threshold, device=self.device),
            "map_per_class": torch.tensor(ap.mean(axis=0), device=self.device),
            "classes": torch.arange(self.num_classes, device=self.device),
            "num_videos": torch.tensor(len(self._gathered("target", ["counts"])["counts"]), device=self.device),
            "num_segments": torch.tensor(len(unique_segments(targets).scores), device=self.device),
            "explanation": explanation,
        }

    def _rows(self, side: str) -> SegmentRows:
        """Return all rows of a side."""
        names = ("counts", "segments", "labels", *(("scores",) if side == "pred" else ()))
        columns = self._gathered(side, names)
        counts, labels = columns["counts"].numpy(), columns["labels"].numpy()
        scores = columns["scores"].double().numpy() if side == "pred" else np.ones(len(labels))
        videos = np.repeat(np.arange(len(counts)), counts)
        return SegmentRows(videos, labels, columns["segments"].double().numpy(), scores)
