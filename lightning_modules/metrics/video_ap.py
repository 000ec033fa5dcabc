"""Video mAP under the two protocols of the field, on plain arrays.

| protocol | overlap | before matching | a taken tube | AP | used for |
|---|---|---|---|---|---|
| ``act`` | counts frames and pixels (+1) | tube NMS 0.3 | try the next-best | trapezoids | UCF101-24, JHMDB (ACT) |
| ``multisports`` | continuous | nothing | false positive | envelope | MultiSports, HIT |

The overlap of two tubes is temporal IoU times the mean IoU of their boxes over the frames they share. For frames [a, b]
in common, temporal IoU is (b - a + 1) / (frames from the first start to the last end) in ``act``. ``multisports``
leaves out both +1, so tubes with one frame in common have overlap 0. Two tubes of one frame, 0 / 0 in its code, have 0
here.

The tubes of a class, those of all videos together, are matched by descending score; an overlap of exactly the
threshold is a hit. A class without ground truth is left out of the mean, a class with ground truth and no detection
has AP 0.

Where scores are tied the references leave the order to an unstable sort. Here tied tubes of a video come in the order
of their frames and corners. Those of several videos take turns, misses before hits (``settle_ties``). The references
allow this order, and it does not depend on the order of videos and tubes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from .average_precision import envelope_area, first_best, match, settle_ties, trapezoid_area
from .tubes import box_iou

VideoProtocol = Literal["act", "multisports"]
TUBE_NMS_THRESHOLD = 0.3
FRAMES_AT_A_TIME = 2_000_000
"""Bounds the memory in which overlaps are computed."""


class TubeRows(NamedTuple):
    """N tubes of F frames together; numpy."""

    videos: np.ndarray
    """(N,) int64, number of the video."""
    classes: np.ndarray
    """(N,) int64."""
    scores: np.ndarray
    """(N,) float64; ground truth has ones."""
    starts: np.ndarray
    """(N,) int64, first frame."""
    lengths: np.ndarray
    """(N,) int64, number of frames."""
    offsets: np.ndarray
    """(N,) int64, where a tube's boxes begin in ``boxes``."""
    boxes: np.ndarray
    """(F, 4) float64, xyxy."""

    @property
    def ends(self) -> np.ndarray:
        """(N,) last frames."""
        return self.starts + self.lengths - 1

    def take(self, rows: np.ndarray | slice) -> TubeRows:
        """The chosen tubes, by index, mask or slice; boxes stay."""
        return TubeRows(*(column[rows] for column in self[:-1]), self.boxes)


def tube_rows(
    videos: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    boxes: np.ndarray,
) -> TubeRows:
    """Tubes whose boxes follow each other, in an order that does not depend on the order given: class, descending
    score, video, then frames and corners."""
    offsets = np.cumsum(lengths) - lengths
    if len(lengths):
        means = np.add.reduceat(boxes, offsets, axis=0) / lengths[:, None]
        corners = np.concatenate([boxes[offsets], boxes[offsets + lengths - 1], means], axis=1)
    else:
        corners = np.empty((0, 12))
    order = np.lexsort((*corners.T[::-1], lengths, starts, videos, -scores, classes))
    return TubeRows(videos, classes, scores, starts, lengths, offsets, boxes).take(order)


def average_precisions(
    preds: TubeRows, targets: TubeRows, num_classes: int, iou_thresholds: Sequence[float], protocol: VideoProtocol
) -> np.ndarray:
    """AP at each threshold of each class: (thresholds, num_classes) float64, NaN for a class without ground truth.

    A video with one tube and two detections: one elsewhere, scored 0.8, and one exactly there, scored 0.7. The first is
    a false positive, the second a hit at precision 1/2 and recall 1. The trapezoid from precision 0 to 1/2 has area 1/4
    (``act``); the area under the envelope is 1/2 (``multisports``).
    """
    if protocol == "act":
        preds = preds.take(without_duplicate_tubes(preds, TUBE_NMS_THRESHOLD))
    bounds = np.arange(num_classes + 1)
    found, there = np.searchsorted(preds.classes, bounds), np.searchsorted(targets.classes, bounds)
    area = trapezoid_area if protocol == "act" else envelope_area
    result = np.full((len(iou_thresholds), num_classes), np.nan)
    for index in np.flatnonzero(np.diff(there)):
        mine, truth = preds.take(slice(*found[index : index + 2])), targets.take(slice(*there[index : index + 2]))
        # From here on the index of a detection is its rank.
        truth = truth.take(np.argsort(truth.videos, kind="stable"))
        pred, target, iou = overlapping_tubes(mine, truth, protocol)
        if protocol == "multisports":
            best = first_best(pred, iou)
            pred, target, iou = pred[best], target[best], iou[best]
        for row, threshold in enumerate(iou_thresholds):
            close = iou >= threshold
            hits = match(pred[close], target[close], iou[close], len(mine.scores), len(truth.scores))
            result[row, index] = area(settle_ties(hits, mine.scores, mine.videos), len(truth.scores))
    return result


def overlapping_tubes(
    tubes: TubeRows, others: TubeRows, protocol: VideoProtocol
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of one video that share a frame, as (tube ascending, other ascending within it, overlap).

    ``others`` are in order of videos; classes are not looked at.
    """
    start = np.searchsorted(others.videos, tubes.videos, side="left")
    counts = np.searchsorted(others.videos, tubes.videos, side="right") - start
    left = np.repeat(np.arange(len(counts)), counts)
    right = np.arange(len(left)) + np.repeat(start - (np.cumsum(counts) - counts), counts)
    return left, right, _tube_iou(tubes, left, others, right, protocol)


def _tube_iou(a: TubeRows, rows_a: np.ndarray, b: TubeRows, rows_b: np.ndarray, protocol: VideoProtocol) -> np.ndarray:
    """Overlap (P,) of tube ``rows_a[i]`` of ``a`` with tube ``rows_b[i]`` of ``b``."""
    extra = 1 if protocol == "act" else 0
    starts, other_starts = a.starts[rows_a], b.starts[rows_b]
    ends, other_ends = a.ends[rows_a], b.ends[rows_b]
    first, last = np.maximum(starts, other_starts), np.minimum(ends, other_ends)
    inner = last - first + extra
    union = np.maximum(ends, other_ends) - np.minimum(starts, other_starts) + extra
    overlap = np.zeros(len(rows_a))
    meeting = np.flatnonzero((last >= first) & (inner > 0))
    shared = last - first + 1
    for part in _pieces(meeting, shared[meeting]):
        counts = shared[part]
        begins = np.cumsum(counts) - counts
        steps = np.arange(counts.sum()) - np.repeat(begins, counts)
        places = np.repeat(a.offsets[rows_a[part]] + first[part] - starts[part], counts) + steps
        other_places = np.repeat(b.offsets[rows_b[part]] + first[part] - other_starts[part], counts) + steps
        spatial = np.add.reduceat(box_iou(a.boxes[places], b.boxes[other_places], extra), begins) / counts
        overlap[part] = spatial * inner[part] / union[part]
    return overlap


def _pieces(pairs: np.ndarray, frames: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs in groups of no more than about ``FRAMES_AT_A_TIME`` shared frames."""
    if len(pairs):
        group = np.cumsum(frames) // FRAMES_AT_A_TIME
        yield from np.split(pairs, np.flatnonzero(np.diff(group)) + 1)


def without_duplicate_tubes(preds: TubeRows, threshold: float = TUBE_NMS_THRESHOLD) -> np.ndarray:
    """Greedy suppression inside each video and class: (N,) bool of what stays.

    A tube goes if it overlaps by more than ``threshold`` with one of a better score that stays.
    """
    stays = np.ones(len(preds.scores), dtype=bool)
    order = np.lexsort((preds.classes, preds.videos))  # stable: ranks stay in order
    for video in np.split(order, np.flatnonzero(np.diff(preds.videos[order])) + 1):
        tubes = preds.take(video)
        places = np.arange(len(video))
        counts = np.searchsorted(tubes.classes, tubes.classes, side="right") - places - 1
        better = np.repeat(places, counts)
        worse = better + 1 + np.arange(len(better)) - np.repeat(np.cumsum(counts) - counts, counts)
        duplicate = _tube_iou(tubes, better, tubes, worse, "act") > threshold
        for one, other in zip(video[better[duplicate]].tolist(), video[worse[duplicate]].tolist(), strict=True):
            stays[other] &= not stays[one]
    return stays


def explain_zero(preds: TubeRows, targets: TubeRows, threshold: float, protocol: VideoProtocol) -> str:
    """Return in words why the mean at a threshold is 0 or undefined."""
    if not len(targets.scores):
        return "no ground truth: no video has a tube"
    if not len(preds.scores):
        return "no tube: nothing passed the thresholds of the detector and of the linker"
    expected, found = np.unique(targets.classes), np.unique(preds.classes)
    if not np.isin(expected, found).any():
        return (
            f"class never predicted: ground truth has the classes {expected.tolist()}, tubes have {found.tolist()}; "
            "check where labels start to count"
        )
    by_video = targets.take(np.argsort(targets.videos, kind="stable"))
    left, right, iou = overlapping_tubes(preds, by_video, protocol)
    same = preds.classes[left] == by_video.classes[right]
    within, largest = iou[same].max(initial=0.0), iou.max(initial=0.0)
    if largest >= threshold:
        return (
            f"no overlap >= {threshold:g} within a class: tubes overlap by up to {largest:.3f}, with other labels; "
            f"with their own by {within:.3f}"
        )
    return (
        f"no overlap >= {threshold:g}: the largest is {largest:.3f}; tubes last up to {preds.lengths.max()} frames and "
        f"reach {preds.boxes.max():.4g}, ground truth up to {targets.lengths.max()} frames and "
        f"{targets.boxes.max():.4g}; check the units of frames and boxes"
    )
