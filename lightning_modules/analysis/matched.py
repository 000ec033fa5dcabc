"""Detections beside the ground truth that a protocol matched them to: the one form that all analyses take.

Boxes, segments and tubes are *items*; a box with scores for several actions is one item with several rows. People,
segments and tubes of the ground truth are *objects*; a person with several actions is one object with several true
rows. Analyses look at rows, true rows and the overlaps of items with objects, and know nothing of boxes and times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from ..metrics import frame_ap, segment_map, video_ap
from ..metrics.average_precision import envelope_area, first_best, settle_ties, taken_targets, trapezoid_area
from ..metrics.frame_ap import FrameMapSettings, FrameRows
from ..metrics.segment_map import SegmentRows
from ..metrics.video_ap import TubeRows, VideoProtocol


class Matched(NamedTuple):
    """R rows of I items, matched to M true rows of O objects; K classes. Rows are in order of class, then of rank."""

    classes: np.ndarray
    """(R,) int32."""
    scores: np.ndarray
    """(R,) float64, descending within a class."""
    items: np.ndarray
    """(R,) int32, whose row it is."""
    rows: np.ndarray
    """(R,) int32, positions in what was given to be matched."""
    taken: np.ndarray
    """(R,) int32, the true row that each is matched to; -1 for none."""
    groups: np.ndarray
    """(I,) int64, frame or video of each item."""
    true_classes: np.ndarray
    """(M,) int64."""
    true_objects: np.ndarray
    """(M,) int64."""
    object_groups: np.ndarray
    """(O,) int64."""
    pair_items: np.ndarray
    """(P,) int64, ascending: items and objects of one group that overlap."""
    pair_objects: np.ndarray
    """(P,) int64, ascending within an item."""
    overlaps: np.ndarray
    """(P,) float64, above 0."""
    num_classes: int
    threshold: float
    """Overlap from which on a row is a hit."""
    area: Callable[..., float]
    """Function from hits in order and the number of true rows to AP."""

    @property
    def bounds(self) -> np.ndarray:
        """(K + 1,) where the rows of each class begin and end."""
        return np.searchsorted(self.classes, np.arange(self.num_classes + 1))

    @property
    def true_counts(self) -> np.ndarray:
        """(K,) true rows of each class."""
        return np.bincount(self.true_classes, minlength=self.num_classes)

    def of_class(self, index: int, bounds: np.ndarray) -> slice:
        """The rows of a class."""
        return slice(int(bounds[index]), int(bounds[index + 1]))

    def average_precision(self, hits: np.ndarray, scores: np.ndarray, groups: np.ndarray, num_true: int) -> float:
        """AP of one class, from hits in order of rank; of a class without anything to find 1 if nothing is found."""
        if num_true == 0:
            return float(len(hits) == 0)
        return self.area(settle_ties(hits, scores, groups), num_true)

    def average_precisions(self) -> np.ndarray:
        """(K,) AP of each class, NaN without ground truth: what the metric gives."""
        result, bounds, counts = np.full(self.num_classes, np.nan), self.bounds, self.true_counts
        for index in np.flatnonzero(counts):
            rows = self.of_class(index, bounds)
            groups = self.groups[self.items[rows]]
            result[index] = self.average_precision(self.taken[rows] >= 0, self.scores[rows], groups, counts[index])
        return result


def match_boxes(
    preds: FrameRows, targets: FrameRows, num_frames: int, num_classes: int, settings: FrameMapSettings
) -> tuple[Matched, FrameRows]:
    """Match the rows of boxes as ``frame_mean_average_precision`` does.

    Returns:
        What was matched, and the detections that its ``rows`` and ``items`` are positions in.
    """
    preds, _ = frame_ap.counted_rows(preds, targets, num_frames, settings)
    if settings.protocol == "ava":
        preds = frame_ap.with_area(preds)
    rows, taken = [], []
    found = {
        matches.class_index: matches
        for matches in frame_ap.matches_by_class(preds, targets, num_classes, settings.iou_threshold, settings.protocol)
    }
    for index, of_class in enumerate(_by_class(preds.classes, num_classes)):
        if matches := found.pop(index, None):
            rows.append(matches.rows.astype(np.int32))
            taken.append(matches.taken.astype(np.int32))
        else:
            rows.append(of_class[np.argsort(-preds.scores[of_class], kind="stable")].astype(np.int32))
            taken.append(np.full(len(of_class), -1, np.int32))
    order = np.argsort(targets.frames, kind="stable")
    items, objects, overlaps = frame_ap.overlapping_pairs(
        preds.frames, preds.boxes, targets.frames[order], targets.boxes[order], settings.protocol
    )
    meeting = np.flatnonzero(overlaps)
    rows = np.concatenate([np.empty(0, np.int32), *rows])
    matched = Matched(
        classes=preds.classes[rows].astype(np.int32),
        scores=preds.scores[rows],
        items=preds.owners[rows].astype(np.int32),
        rows=rows,
        taken=np.concatenate([np.empty(0, np.int32), *taken]),
        groups=preds.frames,
        true_classes=targets.classes.astype(np.int64),
        true_objects=targets.owners,
        object_groups=targets.frames,
        pair_items=items[meeting],
        pair_objects=order[objects[meeting]],
        overlaps=overlaps[meeting],
        num_classes=num_classes,
        threshold=settings.iou_threshold,
        area=trapezoid_area if settings.protocol == "act" else envelope_area,
    )
    return matched, preds


def _by_class(classes: np.ndarray, num_classes: int) -> Iterator[np.ndarray]:
    order = np.argsort(classes.astype(np.min_scalar_type(num_classes)), kind="stable")
    yield from np.split(order, np.cumsum(np.bincount(classes, minlength=num_classes))[:-1])


def match_segments(preds: SegmentRows, targets: SegmentRows, num_classes: int, threshold: float) -> Matched:
    """Match segments as ``segment_map.average_precisions`` does. ``rows`` are positions in ``preds``.

    True rows are those of ``unique_segments(targets)`` in its order. Segments of one video that begin and end together
    are one object, or one item, with several actions.
    """
    targets = segment_map.unique_segments(targets)
    order = np.lexsort((*preds.segments.T[::-1], -preds.scores, preds.classes))
    ranked = preds.take(order)
    items, item_of = _same_segments(ranked)
    objects, true_objects = _same_segments(targets)
    pair_items, pair_objects, overlaps = segment_map.overlapping_segments(items, objects)

    def pairs(found: slice, true: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return segment_map.overlapping_segments(ranked.take(found), targets.take(true))

    return Matched(
        classes=ranked.classes.astype(np.int32),
        scores=ranked.scores,
        items=item_of.astype(np.int32),
        rows=order.astype(np.int32),
        taken=_taken(ranked.classes, targets.classes, _in_order(targets), num_classes, threshold, pairs, fallback=True),
        groups=items.videos,
        true_classes=targets.classes,
        true_objects=true_objects,
        object_groups=objects.videos,
        pair_items=pair_items,
        pair_objects=pair_objects,
        overlaps=overlaps,
        num_classes=num_classes,
        threshold=threshold,
        area=envelope_area,
    )


def _same_segments(rows: SegmentRows) -> tuple[SegmentRows, np.ndarray]:
    """Return the different segments, in order of videos, and (N,) which of them each row is."""
    unique, place = np.unique(np.column_stack([rows.videos, rows.segments]), axis=0, return_inverse=True)
    nothing = np.zeros(len(unique), np.int64)
    return SegmentRows(unique[:, 0].astype(np.int64), nothing, unique[:, 1:], nothing), place.reshape(-1)


def _in_order(targets: SegmentRows) -> np.ndarray:
    """Positions by video, then time, as the metric has them."""
    return np.lexsort((*targets.segments.T[::-1], targets.videos))


def match_tubes(
    preds: TubeRows, targets: TubeRows, num_classes: int, threshold: float, protocol: VideoProtocol
) -> tuple[Matched, TubeRows]:
    """Match tubes as ``video_ap.average_precisions`` does; both sides are as ``tube_rows`` gives them.

    Returns:
        What was matched, and the tubes that its ``rows`` and ``items`` are positions in: of ``act`` those that its
        suppression of duplicates leaves.
    """
    if protocol == "act":
        preds = preds.take(video_ap.without_duplicate_tubes(preds))
    order = np.argsort(targets.videos, kind="stable")
    items, objects, overlaps = video_ap.overlapping_tubes(preds, targets.take(order), protocol)
    item_of, true_objects = same_tubes(preds), same_tubes(targets)
    meeting = np.flatnonzero((overlaps > 0) & (item_of[items] == items))

    def pairs(found: slice, true: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return video_ap.overlapping_tubes(preds.take(found), targets.take(true), protocol)

    taken = _taken(
        preds.classes, targets.classes, order, num_classes, threshold, pairs, fallback=protocol != "multisports"
    )
    matched = Matched(
        classes=preds.classes.astype(np.int32),
        scores=preds.scores,
        items=item_of.astype(np.int32),
        rows=np.arange(len(preds.scores), dtype=np.int32),
        taken=taken,
        groups=preds.videos,
        true_classes=targets.classes,
        true_objects=true_objects,
        object_groups=targets.videos,
        pair_items=items[meeting],
        pair_objects=true_objects[order[objects[meeting]]],
        overlaps=overlaps[meeting],
        num_classes=num_classes,
        threshold=threshold,
        area=trapezoid_area if protocol == "act" else envelope_area,
    )
    return matched, preds


def same_tubes(tubes: TubeRows) -> np.ndarray:
    """(N,) the first of the tubes of a video that have the same frames and boxes: one person with several actions."""
    if not len(tubes.starts):
        return np.zeros(0, np.int64)
    ends = tubes.offsets + tubes.lengths - 1
    corners = (tubes.boxes[tubes.offsets], tubes.boxes[(tubes.offsets + ends) // 2], tubes.boxes[ends])
    key = np.column_stack([tubes.videos, tubes.starts, tubes.lengths, *corners])
    _, first, group = np.unique(key, axis=0, return_index=True, return_inverse=True)
    return first[group.reshape(-1)]


Pairing = Callable[[slice, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def _taken(
    classes: np.ndarray,
    true_classes: np.ndarray,
    order: np.ndarray,
    num_classes: int,
    threshold: float,
    pairs: Pairing,
    *,
    fallback: bool,
) -> np.ndarray:
    """(R,) the true row that each row takes, -1 for none; ``order`` is that of the true rows within a class."""
    taken = np.full(len(classes), -1, np.int32)
    bounds = np.searchsorted(classes, np.arange(num_classes + 1))
    for index in range(num_classes):
        found, true = slice(int(bounds[index]), int(bounds[index + 1])), order[true_classes[order] == index]
        if found.start == found.stop or not len(true):
            continue
        pred, target, overlap = pairs(found, true)
        if not fallback:
            best = first_best(pred, overlap)
            pred, target, overlap = pred[best], target[best], overlap[best]
        close = overlap >= threshold
        of_class = taken_targets(pred[close], target[close], overlap[close], found.stop - found.start, len(true))
        taken[found] = np.where(of_class >= 0, true[of_class], -1)
    return taken
