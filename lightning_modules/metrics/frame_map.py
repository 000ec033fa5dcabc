"""Frame mean average precision: how well single frames are detected, under the three protocols of the field.

| protocol | boxes | a taken ground-truth box | average precision | used for |
|---|---|---|---|---|
| ``ava`` | continuous; detections without area dropped | false positive | area under the precision envelope | AVA |
| ``pascal`` | continuous | false positive | area under the precision envelope | UCF101-24, JHMDB (HIT) |
| ``act`` | +1 pixel on width and height | try the next-best free box | trapezoids, no envelope | the same (ACT, MOC) |

All of them take the detections of a class by descending score, let each look at the ground truth of its own frame and
class, and count a hit from ``IoU >= iou_threshold`` on. A class without ground truth is left out of the mean; a class
with ground truth and no detection has AP 0. On equal detections the protocols differ by up to some points, so a number
without its protocol says little.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

Protocol = Literal["ava", "pascal", "act"]
UnlabelledFrames = Literal["false_positives", "ignore"]


class FrameRows(NamedTuple):
    """N boxes, one row an action; numpy, float64."""

    frames: np.ndarray
    """(N,) int64, number of the frame."""
    classes: np.ndarray
    """(N,) int64, position of the class in the class list."""
    boxes: np.ndarray
    """(N, 4), xyxy."""
    scores: np.ndarray
    """(N,); ground truth has ones."""

    def take(self, rows: np.ndarray) -> FrameRows:
        """The chosen rows, by index or by mask."""
        return FrameRows(*(column[rows] for column in self))


def average_precisions(
    preds: FrameRows, targets: FrameRows, num_classes: int, iou_threshold: float, protocol: Protocol
) -> np.ndarray:
    """AP of each class, (num_classes,) float64, NaN for a class without ground truth.

    One frame with a ground-truth box and two detections of it, scores 0.9 and 0.8: the first is a hit (recall 1,
    precision 1), the second a false positive behind it, so AP is 1. With the scores swapped it is 1/2.
    """
    if protocol == "ava":
        preds = preds.take((preds.boxes[:, 2:] > preds.boxes[:, :2]).all(axis=1))
    # From here on the index of a detection is its rank. The sort is stable: tied scores keep the order of arrival.
    preds = preds.take(np.lexsort((-preds.scores, preds.classes)))
    targets = targets.take(np.lexsort((targets.classes, targets.frames)))

    key = preds.frames * num_classes + preds.classes
    target_key = targets.frames * num_classes + targets.classes
    pred, target, iou = _overlapping_pairs(key, preds.boxes, target_key, targets.boxes, protocol)
    if protocol != "act":
        best = _first_best(pred, iou)
        pred, target, iou = pred[best], target[best], iou[best]
    close_enough = iou >= iou_threshold
    hits = _match(pred[close_enough], target[close_enough], iou[close_enough], len(preds.scores), len(targets.scores))

    num_targets = np.bincount(targets.classes, minlength=num_classes)
    bounds = np.searchsorted(preds.classes, np.arange(num_classes + 1))
    area = _trapezoid_area if protocol == "act" else _envelope_area
    result = np.full(num_classes, np.nan)
    for index in np.flatnonzero(num_targets):
        result[index] = area(hits[bounds[index] : bounds[index + 1]], num_targets[index])
    return result


def _overlapping_pairs(
    key: np.ndarray, boxes: np.ndarray, target_key: np.ndarray, target_boxes: np.ndarray, protocol: Protocol
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of equal key as (box index ascending, target index ascending within it, IoU); ``target_key`` is sorted."""
    start = np.searchsorted(target_key, key, side="left")
    counts = np.searchsorted(target_key, key, side="right") - start
    left = np.repeat(np.arange(len(key)), counts)
    right = np.arange(len(left)) + np.repeat(start - (np.cumsum(counts) - counts), counts)
    return left, right, _pairwise_iou(boxes[left], target_boxes[right], 1.0 if protocol == "act" else 0.0)


def _pairwise_iou(a: np.ndarray, b: np.ndarray, extra: float) -> np.ndarray:
    """IoU of row i of ``a`` with row i of ``b``, both (P, 4); ``extra`` is added to every width and height."""
    inner = np.clip(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + extra, 0, None).prod(axis=1)
    union = (a[:, 2:] - a[:, :2] + extra).prod(axis=1) + (b[:, 2:] - b[:, :2] + extra).prod(axis=1) - inner
    return np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)


def _first_best(pred: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """Indices of each detection's pair of largest IoU, the first of equals; ``pred`` is sorted."""
    if not len(pred):
        return np.zeros(0, dtype=np.int64)
    starts = np.flatnonzero(np.r_[True, pred[1:] != pred[:-1]])
    largest = np.maximum.reduceat(iou, starts)
    ties = np.flatnonzero(iou == np.repeat(largest, np.diff(np.r_[starts, len(pred)])))
    return ties[np.r_[True, pred[ties][1:] != pred[ties][:-1]]]


def _match(pred: np.ndarray, target: np.ndarray, iou: np.ndarray, num_preds: int, num_targets: int) -> np.ndarray:
    """Let detections, in the order of their index, each take its best free target among its pairs: (num_preds,) hits.

    Rather than one detection after the other, a round settles every detection that nobody before it can still
    interfere with; the first of each frame and class always is one, and few rounds remain after the first.
    """
    order = np.lexsort((target, -iou, pred))
    pred, target = pred[order], target[order]
    hits = np.zeros(num_preds, dtype=bool)
    taken = np.zeros(num_targets, dtype=bool)
    while len(pred):
        first_claim = np.full(num_targets, num_preds)
        np.minimum.at(first_claim, target, pred)
        favourite = np.r_[True, pred[1:] != pred[:-1]]
        settled = favourite & (first_claim[target] == pred)
        hits[pred[settled]] = True
        taken[target[settled]] = True
        left = ~(hits[pred] | taken[target])
        pred, target = pred[left], target[left]
    return hits


def _envelope_area(hits: np.ndarray, num_targets: int) -> float:
    """All-point AP (Pascal VOC since 2010): precision made monotone from the right, summed where recall rises."""
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[hits].sum() / num_targets)


def _trapezoid_area(hits: np.ndarray, num_targets: int) -> float:
    """AP of ACT and MOC: trapezoids between the raw points, starting from recall 0 at precision 1."""
    precision = np.r_[1.0, np.cumsum(hits) / np.arange(1, len(hits) + 1)]
    steps = (precision[1:] + precision[:-1]) / 2
    return float(steps[hits].sum() / num_targets)


def _best_rows_of_each_frame(rows: FrameRows, limit: int) -> FrameRows:
    """The ``limit`` best-scored rows of every frame, all classes together, in the order of arrival."""
    order = np.lexsort((-rows.scores, rows.frames))
    frames = rows.frames[order]
    place = np.arange(len(order)) - np.searchsorted(frames, frames, side="left")
    return rows.take(np.sort(order[place < limit]))


def _explain_zero(
    preds: FrameRows, targets: FrameRows, ids: np.ndarray, iou_threshold: float, protocol: Protocol
) -> str:
    """Why the mean is 0 or undefined, in words."""
    if not len(targets.scores):
        return "no ground truth: no frame has a box of a scored class"
    if not len(preds.scores):
        return "no detection: nothing passed the detector's score threshold on the frames evaluated"
    expected, found = np.unique(targets.classes), np.unique(preds.classes)
    if not np.isin(expected, found).any():
        return (
            f"class never predicted: ground truth has the classes {ids[expected].tolist()}, "
            f"detections have {ids[found].tolist()}; check where labels start to count"
        )
    best = preds.take(np.argsort(-preds.scores, kind="stable")[:100_000])  # enough to judge by, and quick
    by_frame = targets.take(np.argsort(targets.frames, kind="stable"))
    *_, iou = _overlapping_pairs(best.frames, best.boxes, by_frame.frames, by_frame.boxes, protocol)
    largest = iou.max(initial=0.0)
    if largest >= iou_threshold:
        return f"no overlap >= {iou_threshold} within a class: boxes overlap by up to {largest:.3f}, with other labels"
    return (
        f"no overlap >= {iou_threshold}: the largest is {largest:.3f}; detections reach up to "
        f"{preds.boxes.max():.4g}, ground truth up to {targets.boxes.max():.4g}; check the unit of the boxes"
    )


class FrameMeanAveragePrecision(Metric):
    """Frame mAP over everything that ``update`` has seen; see the module's docstring for the protocols.

    Args:
        num_classes: number of classes K; labels are 0..K-1 unless ``class_ids`` says otherwise.
        iou_threshold: overlap from which on a detection is a hit.
        protocol: ``ava``, ``pascal`` or ``act``; the last counts pixels and needs boxes in pixels.
        class_ids: the ids to score, for lists with holes (60 of AVA's 80); rows of other ids are dropped on both
            sides, and results are keyed by id.
        unlabelled_frames: what detections on frames without ground truth are: ``false_positives`` (EVAD, PySlowFast,
            ACT), or ``ignore``, as in the ActivityNet challenge script.
        max_rows_per_frame: cap on the detections of a frame, all classes together (50 in the challenge script).

    Frames are told apart by position, so every frame is passed exactly once: leave out what a distributed sampler
    repeats to even out its ranks, and the frames that the data set excludes.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    pred_counts: list[Tensor]
    pred_boxes: list[Tensor]
    pred_scores: list[Tensor]
    pred_labels: list[Tensor]
    target_counts: list[Tensor]
    target_boxes: list[Tensor]
    target_labels: list[Tensor]

    def __init__(
        self,
        num_classes: int,
        iou_threshold: float = 0.5,
        protocol: Protocol = "ava",
        class_ids: Sequence[int] | None = None,
        unlabelled_frames: UnlabelledFrames = "false_positives",
        max_rows_per_frame: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if not 0 < iou_threshold <= 1:
            raise ValueError(f"iou_threshold must be in (0, 1], got {iou_threshold}")
        if protocol not in get_args(Protocol):
            raise ValueError(f"protocol must be one of {get_args(Protocol)}, got {protocol!r}")
        if unlabelled_frames not in get_args(UnlabelledFrames):
            raise ValueError(
                f"unlabelled_frames must be one of {get_args(UnlabelledFrames)}, got {unlabelled_frames!r}"
            )
        if max_rows_per_frame is not None and max_rows_per_frame < 1:
            raise ValueError(f"max_rows_per_frame must be at least 1 or None, got {max_rows_per_frame}")
        if class_ids is not None and not 0 < len(set(class_ids)) == len(class_ids) <= num_classes:
            raise ValueError(f"class_ids must be 1 to num_classes={num_classes} different ids, got {list(class_ids)}")
        self.num_classes = num_classes
        self.iou_threshold = iou_threshold
        self.protocol: Protocol = protocol
        self.class_ids = None if class_ids is None else tuple(class_ids)
        self.unlabelled_frames: UnlabelledFrames = unlabelled_frames
        self.max_rows_per_frame = max_rows_per_frame
        # A frame is a count of consecutive rows, not a number that two ranks could both use: gathering concatenates
        # counts and rows alike, rank after rank, and so keeps frames whole and apart.
        for name in self._empty_states():
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.reset()

    def _empty_states(self) -> dict[str, Tensor]:
        whole = torch.zeros(0, dtype=torch.int64, device=self.device)
        # In float32 an IoU of exactly 0.5 may come out as 0.49999997, a miss.
        boxes = torch.zeros(0, 4, dtype=torch.float64, device=self.device)
        return {
            "pred_counts": whole,
            "pred_boxes": boxes,
            "pred_scores": boxes[:, 0],
            "pred_labels": whole,
            "target_counts": whole,
            "target_boxes": boxes,
            "target_labels": whole,
        }

    def reset(self) -> None:
        """Forget all frames. Each state starts with an empty tensor: a rank without a frame gathers the right dtype."""
        super().reset()
        for name, empty in self._empty_states().items():
            getattr(self, name).append(empty)

    def update(self, preds: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]) -> None:
        """Add frames; entry i of both sequences belongs to the same frame.

        Args:
            preds: one dict a frame: ``boxes`` (N, 4) xyxy, ``scores`` (N,), ``labels`` (N,) int.
            targets: one dict a frame: ``boxes`` (M, 4) xyxy, ``labels`` (M,) int. A box with several actions is
                repeated, one row an action; so is a detection.
        """
        if len(preds) != len(targets):
            raise ValueError(f"preds has {len(preds)} frames but targets has {len(targets)}")
        sides = ("pred", ("boxes", "scores", "labels"), preds), ("target", ("boxes", "labels"), targets)
        empty, new = self._empty_states(), {}
        for side, columns, frames in sides:
            counts = [_num_rows(frame, f"{side}s[{index}]", columns) for index, frame in enumerate(frames)]
            new[f"{side}_counts"] = torch.tensor(counts, dtype=torch.int64, device=self.device)
            for column in columns:
                rows = self._concatenate((frame[column] for frame in frames), empty[f"{side}_{column}"])
                new[f"{side}_{column}"] = rows
                self._check(rows, column, side)
        for name, rows in new.items():
            getattr(self, name).append(rows)

    @staticmethod
    def _concatenate(parts: Iterable[Tensor], empty: Tensor) -> Tensor:
        """Rows of all frames, of the dtype and on the device of ``empty``, which stands in where there is no row."""
        rows = [part.detach().to(device=empty.device, dtype=empty.dtype) for part in parts if part.numel()]
        return torch.cat([empty, *rows])

    def _check(self, rows: Tensor, column: str, side: str) -> None:
        if not rows.numel():
            return
        if column != "labels":
            if not torch.isfinite(rows).all():
                raise ValueError(f"{side}s have NaN or infinite {column}")
            return
        lowest, highest = (int(value) for value in rows.aminmax())
        if self.class_ids is None and not 0 <= lowest <= highest < self.num_classes:
            raise ValueError(
                f"{side} labels run from {lowest} to {highest} but num_classes={self.num_classes} means 0 to "
                f"{self.num_classes - 1}; pass class_ids if ids start elsewhere or have holes"
            )

    def compute(self) -> dict[str, Any]:
        """The result over all frames.

        Returns:
            ``map``: scalar fraction, NaN without ground truth. ``map_per_class``: (K,), NaN for classes without ground
            truth. ``classes``: (K,) their ids. ``num_frames``: frames evaluated. ``num_boxes``: ground-truth rows.
            ``explanation``: in words why ``map`` is 0 or NaN, otherwise empty.
        """
        ids = np.arange(self.num_classes) if self.class_ids is None else np.array(self.class_ids)
        preds, _ = self._rows("pred", ids)
        targets, num_frames = self._rows("target", ids)
        if self.protocol == "act" and len(targets.scores) and targets.boxes.max() <= 1:
            raise ValueError("protocol 'act' adds one pixel to every box but the ground truth is relative (0..1)")
        if self.unlabelled_frames == "ignore":
            labelled = np.unique(targets.frames)
            preds, num_frames = preds.take(np.isin(preds.frames, labelled)), len(labelled)
        if self.max_rows_per_frame is not None:
            preds = _best_rows_of_each_frame(preds, self.max_rows_per_frame)

        per_class = average_precisions(preds, targets, len(ids), self.iou_threshold, self.protocol)
        scored = per_class[~np.isnan(per_class)]
        mean = scored.mean() if len(scored) else np.nan
        explanation = "" if mean > 0 else _explain_zero(preds, targets, ids, self.iou_threshold, self.protocol)
        return {
            "map": torch.tensor(mean, dtype=torch.float64, device=self.device),
            "map_per_class": torch.tensor(per_class, device=self.device),
            "classes": torch.tensor(ids, device=self.device),
            "num_frames": torch.tensor(num_frames, device=self.device),
            "num_boxes": torch.tensor(len(targets.scores), device=self.device),
            "explanation": explanation,
        }

    def _rows(self, side: str, ids: np.ndarray) -> tuple[FrameRows, int]:
        """The rows of scored classes, labels turned into positions in ``ids``; and the number of frames."""
        columns = {
            column: dim_zero_cat(getattr(self, f"{side}_{column}")).cpu() for column in ("counts", "boxes", "labels")
        }
        counts, labels, boxes = columns["counts"].numpy(), columns["labels"].numpy(), columns["boxes"].double().numpy()
        scores = dim_zero_cat(self.pred_scores).cpu().double().numpy() if side == "pred" else np.ones(len(labels))
        frames = np.repeat(np.arange(len(counts)), counts)
        order = np.argsort(ids)
        place = np.minimum(np.searchsorted(ids, labels, sorter=order), len(ids) - 1)
        classes = order[place]
        return FrameRows(frames, classes, boxes, scores).take(ids[classes] == labels), len(counts)


def _num_rows(frame: Mapping[str, Tensor], where: str, columns: Sequence[str]) -> int:
    """Number of rows of one frame, after a look at shapes and types."""
    missing = [column for column in columns if column not in frame]
    if missing:
        raise ValueError(f"{where} has no {missing}; it has {sorted(frame)}")
    lengths = {column: len(frame[column]) for column in columns}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"{where} has columns of different lengths: {lengths}")
    boxes, labels = frame["boxes"], frame["labels"]
    if lengths["boxes"] and (boxes.ndim != 2 or boxes.shape[1] != 4):
        raise ValueError(f"{where}['boxes'] must be (N, 4) xyxy, got {tuple(boxes.shape)}")
    for column in columns[1:]:
        if frame[column].ndim != 1:
            raise ValueError(f"{where}[{column!r}] must be (N,), got {tuple(frame[column].shape)}")
    if lengths["labels"] and (labels.is_floating_point() or labels.dtype == torch.bool):
        raise TypeError(f"{where}['labels'] must be integers, one row an action, got {labels.dtype}")
    return lengths["boxes"]
