"""Frame mean average precision, accumulated over batches and processes; the protocols are those of ``frame_ap``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .frame_ap import FrameMapSettings, FrameRows, Protocol, UnlabelledFrames, frame_mean_average_precision
from .row_metric import RowMetric, check_columns, concatenate

Rows = Mapping[str, Tensor]
"""The boxes of one frame, detected or true, as ``FrameMeanAveragePrecision.update`` takes them."""


def action_rows(boxes: Tensor, labels: Tensor) -> Rows:
    """True boxes (M, 4) with multi-hot labels (M, K) as rows, one an action."""
    row, label = labels.nonzero(as_tuple=True)
    return {"boxes": boxes[row], "labels": label}


class FrameMeanAveragePrecision(RowMetric):
    """Frame mAP over everything that ``update`` has seen.

    Args:
        num_classes: number of classes K; labels are 0..K-1 unless ``class_ids`` says otherwise.
        iou_threshold, protocol, unlabelled_frames, max_rows_per_frame: see ``FrameMapSettings``.
        class_ids: the ids to score, for lists with holes (60 of AVA's 80). Rows of other ids are dropped on both sides;
            results are keyed by id.

    Frames are identified by position, so every frame is passed exactly once. Leave out what a distributed sampler
    repeats to even out its ranks, and the frames that the data set excludes. The order of frames, and of the boxes of a
    frame, changes nothing.

    A box with K scores is kept once: 12 bytes a score, about 75 while computing (results/benchmarks/frame_map.py).
    """

    pred_counts: list[Tensor]
    pred_boxes: list[Tensor]
    pred_row_counts: list[Tensor]
    pred_scores: list[Tensor]
    pred_labels: list[Tensor]
    target_counts: list[Tensor]
    target_boxes: list[Tensor]
    target_row_counts: list[Tensor]
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
        if class_ids is not None and not 0 < len(set(class_ids)) == len(class_ids) <= num_classes:
            raise ValueError(f"class_ids must be 1 to num_classes={num_classes} different ids, got {list(class_ids)}")
        self.settings = FrameMapSettings(protocol, iou_threshold, unlabelled_frames, max_rows_per_frame)
        self.num_classes = num_classes
        self.class_ids = None if class_ids is None else tuple(class_ids)
        self._start()

    @property
    def description(self) -> str:
        """Protocol, all that is not default of it, and the classes where only some are scored."""
        some = "" if self.class_ids is None else f", {len(self.class_ids)} of {self.num_classes} classes"
        return f"{self.settings}{some}"

    def _empty_states(self) -> dict[str, Tensor]:
        """Frames count their boxes, and boxes their rows, one per class."""
        whole = torch.zeros(0, dtype=torch.int64, device=self.device)
        # In float32 an IoU of exactly 0.5 may come out as 0.49999997, a miss.
        boxes = torch.zeros(0, 4, dtype=torch.float64, device=self.device)
        shared = {"counts": whole, "boxes": boxes, "row_counts": whole, "labels": whole.int()}
        preds = {f"pred_{name}": empty for name, empty in shared.items()}
        return preds | {"pred_scores": boxes[:, 0]} | {f"target_{name}": empty for name, empty in shared.items()}

    def update(self, preds: Sequence[Rows], targets: Sequence[Rows]) -> None:
        """Add frames; entry i of both sequences belongs to the same frame.

        Args:
            preds: one dict per frame: ``boxes`` (N, 4) xyxy with ``scores`` (N, K) of all classes, column k being label
                k. Instead ``scores`` (N,) may come with ``labels`` (N,) int; a detection with several actions is
                repeated.
            targets: one dict per frame: ``boxes`` (M, 4) xyxy, ``labels`` (M,) int. A box with several actions is
                repeated, one row an action.
        """
        if len(preds) != len(targets):
            raise ValueError(f"preds has {len(preds)} frames but targets has {len(targets)}")
        new = {}
        for side, frames in (("pred", preds), ("target", targets)):
            rows = [self._frame(frame, f"{side}s[{index}]", side) for index, frame in enumerate(frames)]
            new |= {f"{side}_{name}": column for name, column in self._columns(rows, side).items()}
        self._append(new)

    def _frame(self, frame: Rows, where: str, side: str) -> dict[str, Tensor]:
        """Return one frame as rows; scores of all classes become a row each."""
        all_classes = side == "pred" and "labels" not in frame and "scores" in frame and frame["scores"].ndim == 2
        if not all_classes:
            columns = ("boxes", "scores", "labels") if side == "pred" else ("boxes", "labels")
            num_boxes = check_columns(frame, where, columns, 4, "xyxy")
            return {**frame, "row_counts": torch.ones(num_boxes, dtype=torch.int64, device=self.device)}
        check_columns(frame, where, ("boxes", "scores"), 4, "xyxy")
        count, num_classes = frame["scores"].shape
        if num_classes != self.num_classes:
            raise ValueError(f"{where}['scores'] has {num_classes} columns but num_classes={self.num_classes}")
        if self.class_ids is not None and not 0 <= min(self.class_ids) <= max(self.class_ids) < num_classes:
            raise ValueError(
                f"{where}['scores'] has columns 0..{num_classes - 1} but class_ids run from {min(self.class_ids)} to "
                f"{max(self.class_ids)}; pass labels beside one score a row"
            )
        return {
            "boxes": frame["boxes"],
            "row_counts": torch.full((count,), num_classes, dtype=torch.int64, device=self.device),
            "scores": frame["scores"].flatten(),
            "labels": torch.arange(num_classes, device=self.device).repeat(count),
        }

    def _columns(self, frames: Sequence[Rows], side: str) -> dict[str, Tensor]:
        """The frames as new states; rows of classes that are not scored are gone, labels are positions in the list."""
        empty = {name.removeprefix(f"{side}_"): column for name, column in self._empty_states().items()}
        counts = torch.tensor([len(frame["boxes"]) for frame in frames], dtype=torch.int64, device=self.device)
        names = ("boxes", "row_counts", "labels", *(("scores",) if side == "pred" else ()))
        columns = {name: concatenate((frame[name] for frame in frames), empty[name]) for name in names}
        for name, column in columns.items():
            self._check(column, name, side)
        if self.class_ids is not None:
            ids, order = torch.tensor(self.class_ids, device=self.device).sort()
            place = torch.searchsorted(ids, columns["labels"].long()).clamp(max=len(ids) - 1)
            scored = ids[place] == columns["labels"]
            owners = torch.arange(len(columns["boxes"]), device=self.device).repeat_interleave(columns["row_counts"])
            columns["row_counts"] = torch.bincount(owners[scored], minlength=len(columns["boxes"]))
            columns["labels"] = order[place[scored]].int()
            if side == "pred":
                columns["scores"] = columns["scores"][scored]
        return {"counts": counts, **columns}

    def _check(self, column: Tensor, name: str, side: str) -> None:
        if not column.numel():
            return
        if column.is_floating_point():
            if not torch.isfinite(column).all():
                raise ValueError(f"{side}s have NaN or infinite {name}")
        elif name == "labels" and self.class_ids is None:
            lowest, highest = (int(value) for value in column.aminmax())
            if not 0 <= lowest <= highest < self.num_classes:
                raise ValueError(
                    f"{side} labels run from {lowest} to {highest} but num_classes={self.num_classes} means 0 to "
                    f"{self.num_classes - 1}; pass class_ids if ids start elsewhere or have holes"
                )

    def compute(self) -> dict[str, Any]:
        """The result over all frames.

        Returns:
            ``map``: scalar fraction, NaN without ground truth. ``map_per_class``: (K,), NaN for classes without ground
            truth. ``classes``: (K,) their ids. ``num_frames``: frames evaluated. ``num_boxes``: ground-truth rows.
            ``num_classes``: classes with ground truth. ``explanation``: in words why ``map`` is 0 or NaN, otherwise
            empty.
        """
        ids = range(self.num_classes) if self.class_ids is None else self.class_ids
        preds, num_frames = self._rows("pred")
        targets, _ = self._rows("target")
        result = frame_mean_average_precision(preds, targets, num_frames, ids, self.settings)
        return {
            "map": torch.tensor(result.mean, dtype=torch.float64, device=self.device),
            "map_per_class": torch.tensor(result.per_class, device=self.device),
            "classes": torch.tensor(ids, device=self.device),
            "num_frames": torch.tensor(result.num_frames, device=self.device),
            "num_boxes": torch.tensor(result.num_boxes, device=self.device),
            "num_classes": torch.tensor(result.num_classes, device=self.device),
            "explanation": result.explanation,
        }

    def _rows(self, side: str) -> tuple[FrameRows, int]:
        """Return all rows of a side, and the number of frames."""
        names = ("counts", "boxes", "row_counts", "labels", *(("scores",) if side == "pred" else ()))
        columns = self._gathered(side, names)
        counts, row_counts, classes = (columns[name].numpy() for name in ("counts", "row_counts", "labels"))
        scores = columns["scores"].double().numpy() if side == "pred" else np.ones(len(classes))
        frames = np.repeat(np.arange(len(counts)), counts)
        owners = np.repeat(np.arange(len(frames)), row_counts)
        return FrameRows(frames, columns["boxes"].double().numpy(), owners, classes, scores), len(counts)
