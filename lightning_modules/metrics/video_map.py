"""Video mean average precision, accumulated over batches and processes; the protocols are those of ``video_ap``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from .row_metric import RowMetric
from .video_ap import TubeRows, VideoProtocol, average_precisions, explain_zero, tube_rows

COCO_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


class VideoMeanAveragePrecision(RowMetric):
    """Video mAP over all videos that ``update`` has seen: how well tubes are found in space and time.

    It scores tubes of any linker; a result names the linker.

    Args:
        num_classes: number of classes K; labels are 0..K-1.
        iou_thresholds: overlaps from which on a tube is a hit; each makes a result of its own.
        average_over: overlaps over whose results the mean is taken.
        protocol: see ``video_ap``; ``act`` counts pixels and needs boxes in pixels of the original video.

    Videos are identified by position, so every video is passed exactly once: leave out what a distributed sampler
    repeats to even out its ranks. A video without ground truth counts; all its tubes are false positives. The order of
    videos, and of the tubes of a video, changes nothing.
    """

    pred_counts: list[Tensor]
    pred_labels: list[Tensor]
    pred_scores: list[Tensor]
    pred_starts: list[Tensor]
    pred_lengths: list[Tensor]
    pred_boxes: list[Tensor]
    target_counts: list[Tensor]
    target_labels: list[Tensor]
    target_starts: list[Tensor]
    target_lengths: list[Tensor]
    target_boxes: list[Tensor]

    def __init__(
        self,
        num_classes: int,
        iou_thresholds: Sequence[float] = (0.2, 0.5, 0.75),
        average_over: Sequence[float] = COCO_THRESHOLDS,
        protocol: VideoProtocol = "act",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if protocol not in get_args(VideoProtocol):
            raise ValueError(f"protocol must be one of {get_args(VideoProtocol)}, got {protocol!r}")
        for name, thresholds in (("iou_thresholds", iou_thresholds), ("average_over", average_over)):
            if not thresholds or not all(0 < threshold <= 1 for threshold in thresholds):
                raise ValueError(f"{name} must be one or more numbers in (0, 1], got {thresholds}")
        self.num_classes = num_classes
        self.iou_thresholds = tuple(float(threshold) for threshold in iou_thresholds)
        self.average_over = tuple(float(threshold) for threshold in average_over)
        self.protocol = protocol
        self._start()

    def _empty_states(self) -> dict[str, Tensor]:
        """Videos count their tubes, and tubes their boxes (``lengths``)."""
        whole = torch.zeros(0, dtype=torch.int64, device=self.device)
        boxes = torch.zeros(0, 4, dtype=torch.float64, device=self.device)
        shared = {"counts": whole, "labels": whole, "starts": whole, "lengths": whole, "boxes": boxes}
        preds = {f"pred_{name}": empty for name, empty in shared.items()}
        return preds | {"pred_scores": boxes[:, 0]} | {f"target_{name}": empty for name, empty in shared.items()}

    def update(
        self,
        preds: Sequence[Mapping[str, Sequence[Mapping[str, Any]]]],
        targets: Sequence[Mapping[str, Sequence[Mapping[str, Any]]]],
    ) -> None:
        """Add videos; entry i of both sequences belongs to the same video.

        Args:
            preds: one dict per video: ``tubes``, a list of dicts with ``label`` int, ``score`` float, ``frames`` (T,)
                consecutive int and ``boxes`` (T, 4) xyxy; tensors or arrays.
            targets: the same without ``score``.
        """
        if len(preds) != len(targets):
            raise ValueError(f"preds has {len(preds)} videos but targets has {len(targets)}")
        new = {}
        for side, videos in (("pred", preds), ("target", targets)):
            tubes = []
            for index, video in enumerate(videos):
                if "tubes" not in video:
                    raise ValueError(f"{side}s[{index}] has no tubes; it has {sorted(video)}")
                tubes += [
                    self._tube(tube, f"{side}s[{index}]['tubes'][{number}]", scored=side == "pred")
                    for number, tube in enumerate(video["tubes"])
                ]
            new[f"{side}_counts"] = [len(video["tubes"]) for video in videos]
            for name in ("labels", "starts", "lengths", *(("scores",) if side == "pred" else ())):
                new[f"{side}_{name}"] = [tube[name] for tube in tubes]
            new[f"{side}_boxes"] = np.concatenate([np.empty((0, 4)), *(tube["boxes"] for tube in tubes)])
        self._append(
            {
                name: torch.as_tensor(new[name], dtype=empty.dtype, device=self.device)
                for name, empty in self._empty_states().items()
            }
        )

    def _tube(self, tube: Mapping[str, Any], where: str, *, scored: bool) -> dict[str, Any]:
        """Return one tube as numbers and boxes, checked."""
        columns = ("label", "frames", "boxes", *(("score",) if scored else ()))
        if missing := [column for column in columns if column not in tube]:
            raise ValueError(f"{where} has no {missing}; it has {sorted(tube)}")
        label, frames, boxes = int(tube["label"]), _array(tube["frames"]), _array(tube["boxes"]).astype(np.float64)
        score = float(tube.get("score", 1.0))
        if not 0 <= label < self.num_classes:
            raise ValueError(f"{where} has label {label} but num_classes={self.num_classes}")
        if frames.ndim != 1 or not len(frames) or boxes.shape != (len(frames), 4):
            raise ValueError(f"{where} must have frames (T,) and boxes (T, 4), got {frames.shape} and {boxes.shape}")
        if not np.issubdtype(frames.dtype, np.integer) or (np.diff(frames) != 1).any():
            raise ValueError(f"{where} must have consecutive frames; interpolate its gaps or split it there")
        if not np.isfinite(boxes).all() or not np.isfinite(score):
            raise ValueError(f"{where} has NaN or infinite boxes or score")
        return {"labels": label, "scores": score, "starts": int(frames[0]), "lengths": len(frames), "boxes": boxes}

    def compute(self) -> dict[str, Any]:
        """The result over all videos, fractions.

        Returns:
            ``map_20``, ``map_50``, ``map_75`` for ``iou_thresholds`` in percent, and ``map_50_95``, the mean over
            ``average_over``: scalars, NaN without ground truth. The same names with ``_per_class``: (K,), NaN for
            classes without ground truth. ``classes``: (K,) their ids. ``num_videos``: videos evaluated. ``num_tubes``:
            of the ground truth. ``num_pred_tubes``: before any suppression. ``num_classes``: classes with ground
            truth. ``explanation``: in words why the result at the lowest threshold is 0 or NaN, otherwise empty.
            ``protocol``: its name.
        """
        preds, num_videos = self._rows("pred")
        targets, _ = self._rows("target")
        if self.protocol == "act" and len(targets.boxes) and targets.boxes.max() <= 1:
            raise ValueError("protocol 'act' adds one pixel to every box but the ground truth is relative (0..1)")
        thresholds = sorted({*self.iou_thresholds, *self.average_over})
        found = average_precisions(preds, targets, self.num_classes, thresholds, self.protocol)
        at = dict(zip(thresholds, found, strict=True))
        per_class = {f"map_{_percent(threshold)}": at[threshold] for threshold in self.iou_thresholds}
        average = f"map_{_percent(self.average_over[0])}_{_percent(self.average_over[-1])}"
        per_class[average] = np.mean([at[threshold] for threshold in self.average_over], axis=0)
        there = np.unique(targets.classes)
        result: dict[str, Any] = {}
        for name, values in per_class.items():
            mean = values[there].mean() if len(there) else np.nan
            result[name] = torch.tensor(mean, dtype=torch.float64, device=self.device)
            result[f"{name}_per_class"] = torch.tensor(values, device=self.device)
        is_zero = not np.nan_to_num(found[0]).any()
        return result | {
            "classes": torch.arange(self.num_classes, device=self.device),
            "num_videos": torch.tensor(num_videos, device=self.device),
            "num_tubes": torch.tensor(len(targets.classes), device=self.device),
            "num_pred_tubes": torch.tensor(len(preds.classes), device=self.device),
            "num_classes": torch.tensor(len(there), device=self.device),
            "explanation": explain_zero(preds, targets, thresholds[0], self.protocol) if is_zero else "",
            "protocol": self.protocol,
        }

    def _rows(self, side: str) -> tuple[TubeRows, int]:
        """Return all tubes of a side, and the number of videos."""
        names = ("counts", "labels", "starts", "lengths", "boxes", *(("scores",) if side == "pred" else ()))
        columns = {name: column.numpy() for name, column in self._gathered(side, names).items()}
        labels, counts = columns["labels"], columns["counts"]
        rows = tube_rows(
            videos=np.repeat(np.arange(len(counts)), counts),
            classes=labels,
            scores=columns.get("scores", np.ones(len(labels))),
            starts=columns["starts"],
            lengths=columns["lengths"],
            boxes=columns["boxes"],
        )
        return rows, len(counts)


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _percent(threshold: float) -> str:
    """0.5 as 50, 0.125 as 12.5."""
    return f"{100 * threshold:g}"
