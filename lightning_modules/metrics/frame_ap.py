"""Frame mAP under the three protocols of the field, on plain arrays.

| protocol | boxes | a taken ground-truth box | average precision | used for |
|---|---|---|---|---|
| ``ava`` | continuous; detections without area dropped | false positive | area under the precision envelope | AVA |
| ``pascal`` | continuous | false positive | area under the precision envelope | UCF101-24, JHMDB (HIT) |
| ``act`` | +1 pixel on width and height | try the next-best free box | trapezoids, no envelope | the same (ACT, MOC) |

All of them take the detections of a class by descending score. Each is compared with the ground truth of its own frame
and class, and is a hit from ``IoU >= iou_threshold`` on. A class without ground truth is left out of the mean; a class
with ground truth and no detection has AP 0. On equal detections the protocols differ by up to some points, so a number
without its protocol says little.

Where scores are tied the references leave the order to an unstable sort. Here tied detections of a frame come in the
order of their corners, and those of several frames take turns, misses before hits (``settle_ties``). The references
allow this order, and it does not depend on the order of frames and rows or on names of videos.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np

from .average_precision import envelope_area, first_best, settle_ties, taken_targets, trapezoid_area

Protocol = Literal["ava", "pascal", "act"]
UnlabelledFrames = Literal["false_positives", "ignore"]
ENOUGH_TO_JUDGE_BY = 100_000


@dataclass(frozen=True)
class FrameMapSettings:
    """Settings that a frame mAP is named by.

    Args:
        protocol: ``ava``, ``pascal`` or ``act``; the last counts pixels and needs boxes in those of the original video.
        iou_threshold: overlap from which on a detection is a hit.
        unlabelled_frames: what detections on frames without ground truth are: ``false_positives`` (EVAD, PySlowFast,
            ACT), or ``ignore``, as in the ActivityNet challenge script: only annotated frames count. A frame is
            annotated by an action of any class; on one without an action that is scored, detections are false
            positives.
        max_rows_per_frame: cap on the detections of a frame, all classes together (50 in the challenge script).
    """

    protocol: Protocol = "ava"
    iou_threshold: float = 0.5
    unlabelled_frames: UnlabelledFrames = "false_positives"
    max_rows_per_frame: int | None = None

    def __post_init__(self) -> None:
        for name, choices in (("protocol", Protocol), ("unlabelled_frames", UnlabelledFrames)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"{name} must be one of {get_args(choices)}, got {getattr(self, name)!r}")
        if not 0 < self.iou_threshold <= 1:
            raise ValueError(f"iou_threshold must be in (0, 1], got {self.iou_threshold}")
        if self.max_rows_per_frame is not None and self.max_rows_per_frame < 1:
            raise ValueError(f"max_rows_per_frame must be at least 1 or None, got {self.max_rows_per_frame}")

    def __str__(self) -> str:
        """Name the protocol and all that is not default: ``act frame mAP@0.5, best 50 rows a frame``."""
        ignoring = ", labelled frames only" if self.unlabelled_frames == "ignore" else ""
        cap = "" if self.max_rows_per_frame is None else f", best {self.max_rows_per_frame} rows a frame"
        return f"{self.protocol} frame mAP@{self.iou_threshold:g}{ignoring}{cap}"


class FrameRows(NamedTuple):
    """N boxes and R rows, one an action of a box; numpy. A box with scores for 60 actions is stored once."""

    frames: np.ndarray
    """(N,) int64, number of the frame."""
    boxes: np.ndarray
    """(N, 4) float64, xyxy."""
    owners: np.ndarray
    """(R,) int64, whose row it is: positions in ``boxes``."""
    classes: np.ndarray
    """(R,) integers, position of the class in the class list."""
    scores: np.ndarray
    """(R,) float64; ground truth has ones."""

    def take(self, rows: np.ndarray) -> FrameRows:
        """The chosen rows, by index or by mask; boxes stay."""
        return self._replace(owners=self.owners[rows], classes=self.classes[rows], scores=self.scores[rows])


class FrameMap(NamedTuple):
    """Result of a frame mAP."""

    mean: float
    """A fraction; NaN without ground truth."""
    per_class: np.ndarray
    """(K,) float64, NaN for classes without ground truth."""
    num_frames: int
    """Frames evaluated."""
    num_boxes: int
    """Ground-truth rows."""
    num_classes: int
    """Classes with ground truth: those that the mean is over."""
    explanation: str
    """Reason why the mean is 0 or NaN; otherwise empty."""


def frame_mean_average_precision(
    preds: FrameRows, targets: FrameRows, num_frames: int, class_ids: Sequence[int], settings: FrameMapSettings
) -> FrameMap:
    """Mean AP over the classes, whose ids serve the explanation; frames are numbered 0..num_frames-1 on both sides."""
    if settings.protocol == "act" and len(targets.owners) and targets.boxes[targets.owners].max() <= 1:
        raise ValueError("protocol 'act' adds one pixel to every box but the ground truth is relative (0..1)")
    preds, num_frames = counted_rows(preds, targets, num_frames, settings)
    per_class = average_precisions(preds, targets, len(class_ids), settings.iou_threshold, settings.protocol)
    scored = per_class[~np.isnan(per_class)]
    mean = float(scored.mean()) if len(scored) else float("nan")
    explanation = "" if mean > 0 else _explain_zero(preds, targets, np.asarray(class_ids), settings)
    return FrameMap(mean, per_class, num_frames, len(targets.owners), len(scored), explanation)


def counted_rows(
    preds: FrameRows, targets: FrameRows, num_frames: int, settings: FrameMapSettings
) -> tuple[FrameRows, int]:
    """Return the detections that the protocol looks at, and on how many frames."""
    if settings.unlabelled_frames == "ignore":
        labelled = np.zeros(num_frames, dtype=bool)
        labelled[targets.frames] = True  # by boxes, not by rows: those of classes that are not scored have none
        preds, num_frames = preds.take(labelled[preds.frames][preds.owners]), int(labelled.sum())
    if settings.max_rows_per_frame is not None:
        preds = _best_rows_of_each_frame(preds, settings.max_rows_per_frame)
    return preds, num_frames


def with_area(preds: FrameRows) -> FrameRows:
    """Return the detections whose boxes have an area; AVA's protocol drops the others."""
    return preds.take((preds.boxes[:, 2:] > preds.boxes[:, :2]).all(axis=1)[preds.owners])


def average_precisions(
    preds: FrameRows, targets: FrameRows, num_classes: int, iou_threshold: float, protocol: Protocol
) -> np.ndarray:
    """AP of each class, (num_classes,) float64, NaN for a class without ground truth.

    One frame has a ground-truth box and two detections of it, scored 0.9 and 0.8. The first is a hit (recall 1,
    precision 1), the second a false positive behind it, so AP is 1. With the scores swapped it is 1/2.
    """
    area = trapezoid_area if protocol == "act" else envelope_area
    result = np.full(num_classes, np.nan)
    for found in matches_by_class(preds, targets, num_classes, iou_threshold, protocol):
        hits = settle_ties(found.taken >= 0, found.scores, found.frames)
        result[found.class_index] = area(hits, len(found.targets))
    return result


class ClassMatches(NamedTuple):
    """The R detections of one class by rank, and the M true rows of it."""

    class_index: int
    taken: np.ndarray
    """(R,) int64, which true row each detection is matched to, a position in the rows of ``targets``; -1 for none."""
    scores: np.ndarray
    """(R,) descending."""
    frames: np.ndarray
    """(R,) int64."""
    targets: np.ndarray
    """(M,) int64, positions of the class's true rows."""
    rows: np.ndarray
    """(R,) int64, positions of the detections among those that were matched: of ``ava``, among ``with_area``."""


def matches_by_class(
    preds: FrameRows, targets: FrameRows, num_classes: int, iou_threshold: float, protocol: Protocol
) -> Iterator[ClassMatches]:
    """Match the detections of each class that has ground truth to it."""
    if protocol == "ava":
        preds = with_area(preds)
    place = _places_by_corners(preds.boxes)
    order = np.lexsort((*targets.boxes[targets.owners].T[::-1], targets.frames[targets.owners]))
    targets = targets.take(order)
    found, there = _by_class(preds.classes, num_classes), _by_class(targets.classes, num_classes)
    for index in range(num_classes):
        if not len(there[index]):
            continue
        # From here on the index of a detection is its rank.
        rows = found[index]
        rows = rows[np.lexsort((place[preds.owners[rows]], -preds.scores[rows]))]
        owners, true_owners = preds.owners[rows], targets.owners[there[index]]
        frames = preds.frames[owners]
        pred, target, iou = overlapping_pairs(
            frames, preds.boxes[owners], targets.frames[true_owners], targets.boxes[true_owners], protocol
        )
        if protocol != "act":
            best = first_best(pred, iou)
            pred, target, iou = pred[best], target[best], iou[best]
        close = iou >= iou_threshold
        taken = taken_targets(pred[close], target[close], iou[close], len(rows), len(true_owners))
        rows_taken = np.where(taken >= 0, order[there[index]][taken], -1)
        yield ClassMatches(index, rows_taken, preds.scores[rows], frames, order[there[index]], rows)


def _places_by_corners(boxes: np.ndarray) -> np.ndarray:
    """(N,) where each box stands when all are ordered by x1, then y1, x2, y2."""
    places = np.empty(len(boxes), dtype=np.int64)
    places[np.lexsort(boxes.T[::-1])] = np.arange(len(boxes))
    return places


def _by_class(classes: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """Return the rows of each class, in the order in which they come."""
    # Short integers are sorted in linear time.
    order = np.argsort(classes.astype(np.min_scalar_type(num_classes)), kind="stable")
    return np.split(order, np.cumsum(np.bincount(classes, minlength=num_classes))[:-1])


def overlapping_pairs(
    frames: np.ndarray, boxes: np.ndarray, target_frames: np.ndarray, target_boxes: np.ndarray, protocol: Protocol
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of one frame as (box index ascending, target index ascending within it, IoU); targets are in order."""
    start = np.searchsorted(target_frames, frames, side="left")
    counts = np.searchsorted(target_frames, frames, side="right") - start
    left = np.repeat(np.arange(len(frames)), counts)
    right = np.arange(len(left)) + np.repeat(start - (np.cumsum(counts) - counts), counts)
    return left, right, _pairwise_iou(boxes[left], target_boxes[right], 1.0 if protocol == "act" else 0.0)


def _pairwise_iou(a: np.ndarray, b: np.ndarray, extra: float) -> np.ndarray:
    """IoU of row i of ``a`` with row i of ``b``, both (P, 4); ``extra`` is added to every width and height."""
    inner = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + extra, 0, None).prod(axis=1)
    union = (a[:, 2:] - a[:, :2] + extra).prod(axis=1) + (b[:, 2:] - b[:, :2] + extra).prod(axis=1) - inner
    return np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)


def _best_rows_of_each_frame(rows: FrameRows, limit: int) -> FrameRows:
    """The ``limit`` best-scored rows of every frame, all classes together; the lower class, then corner, of equals."""
    frames = rows.frames[rows.owners]
    order = np.lexsort((_places_by_corners(rows.boxes)[rows.owners], rows.classes, -rows.scores, frames))
    frames = frames[order]
    rank = np.arange(len(order)) - np.searchsorted(frames, frames, side="left")
    return rows.take(np.sort(order[rank < limit]))


def _explain_zero(preds: FrameRows, targets: FrameRows, ids: np.ndarray, settings: FrameMapSettings) -> str:
    """Return in words why the mean is 0 or undefined."""
    if not len(targets.owners):
        return "no ground truth: no frame has a box of a scored class"
    if not len(preds.owners):
        return "no detection: nothing passed the detector's score threshold on the frames evaluated"
    expected, found = np.unique(targets.classes), np.unique(preds.classes)
    if not np.isin(expected, found).any():
        return (
            f"class never predicted: ground truth has the classes {ids[expected].tolist()}, "
            f"detections have {ids[found].tolist()}; check where labels start to count"
        )
    best = preds.owners[np.argsort(-preds.scores, kind="stable")[:ENOUGH_TO_JUDGE_BY]]
    there = targets.owners[np.argsort(targets.frames[targets.owners], kind="stable")]
    *_, iou = overlapping_pairs(
        preds.frames[best], preds.boxes[best], targets.frames[there], targets.boxes[there], settings.protocol
    )
    largest, threshold = iou.max(initial=0.0), settings.iou_threshold
    reach, true_reach = preds.boxes[best].max(), targets.boxes[there].max()
    if largest >= threshold:
        return f"no overlap >= {threshold} within a class: boxes overlap by up to {largest:.3f}, with other labels"
    return (
        f"no overlap >= {threshold}: the largest is {largest:.3f}; detections reach up to {reach:.4g}, ground truth up "
        f"to {true_reach:.4g}; check the unit of the boxes"
    )
