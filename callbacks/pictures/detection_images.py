"""Pictures of detections: what the model sees beside what is there, on a page in TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from datamodules.errors import UserError
from datamodules.files import write_whole

GREEN = (40, 170, 60)
ORANGE = (240, 130, 20)
READABLE_SIDE = 384
"""Pixels of the shorter side from which on label text can be read; smaller frames are enlarged by a whole factor."""


class Picture(NamedTuple):
    """One frame with its detections and its ground truth, on the CPU."""

    frame: Tensor
    """(3, H, W) uint8."""
    boxes: Tensor
    """(N, 4) xyxy pixels."""
    texts: tuple[str, ...]
    true_boxes: Tensor
    true_texts: tuple[str, ...]


def draw_detections(
    frame: Tensor,
    boxes: Tensor,
    texts: Sequence[str],
    true_boxes: Tensor | None = None,
    true_texts: Sequence[str] = (),
) -> Tensor:
    """Draw predicted boxes (orange, text above the box) over true ones (green, text below).

    Args:
        frame: (3, H, W) uint8 RGB.
        boxes: (N, 4) xyxy in pixels of the frame.
        texts: N texts; a line break starts a new line.
        true_boxes: (M, 4), none where the truth is unknown.
        true_texts: M texts.

    Returns:
        (3, s * H, s * W) uint8, where s is the least whole factor that makes text readable (1 for large frames).
    """
    true_boxes = frame.new_zeros(0, 4) if true_boxes is None else true_boxes
    if frame.dtype != torch.uint8 or frame.ndim != 3 or frame.shape[0] != 3:
        raise ValueError(f"frame must be uint8 (3, H, W), got {frame.dtype} {tuple(frame.shape)}")
    for name, rows, words in (("boxes", boxes, texts), ("true_boxes", true_boxes, true_texts)):
        if len(rows) != len(words):
            raise ValueError(f"{name} has {len(rows)} rows but there are {len(words)} texts")
    scale = max(1, math.ceil(READABLE_SIDE / min(frame.shape[1:])))
    canvas = frame.cpu().permute(1, 2, 0).numpy().repeat(scale, axis=0).repeat(scale, axis=1)  # a copy, contiguous
    layers = (true_boxes, true_texts, GREEN, True), (boxes, texts, ORANGE, False)
    corners = [_whole_pixels(rows, scale, canvas) for rows, *_ in layers]
    for (_, _, colour, _), rows in zip(layers, corners, strict=True):
        draw_boxes(canvas, rows, colour)
    # Text after all boxes: a line through a word hides more than a word over a line.
    for (_, words, colour, below), rows in zip(layers, corners, strict=True):
        for box, text in zip(rows, words, strict=True):
            draw_text(canvas, text, box, colour, below)
    return torch.from_numpy(canvas).permute(2, 0, 1).contiguous()


def _whole_pixels(boxes: Tensor, scale: int, canvas: np.ndarray) -> list[list[int]]:
    """Corners on the canvas, kept inside it so that every box shows an edge."""
    height, width = canvas.shape[:2]
    limits = torch.tensor([width - 1, height - 1, width - 1, height - 1])
    return (boxes.detach().cpu().float() * scale).round().long().clamp(min=0).minimum(limits).tolist()


def draw_boxes(canvas: np.ndarray, boxes: list[list[int]], colour: tuple[int, int, int]) -> None:
    import cv2

    for x1, y1, x2, y2 in boxes:
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, thickness=2)


def draw_text(canvas: np.ndarray, text: str, box: list[int], colour: tuple[int, int, int], below: bool) -> None:
    """White lines on the box's colour, outside the box at its left edge, pushed back into the canvas where needed."""
    if not text:
        return
    import cv2

    font, size, pad = cv2.FONT_HERSHEY_SIMPLEX, 0.45, 3
    lines = text.splitlines()
    extents = [cv2.getTextSize(line, font, size, 1) for line in lines]
    line_height = max(height + baseline for (_, height), baseline in extents) + pad
    width, height = max(extent[0] for extent, _ in extents) + 2 * pad, line_height * len(lines)
    left = max(0, min(box[0], canvas.shape[1] - width))
    top = max(0, min(box[3] if below else box[1] - height, canvas.shape[0] - height))
    cv2.rectangle(canvas, (left, top), (left + width, top + height), colour, thickness=cv2.FILLED)
    for number, (line, (_, baseline)) in enumerate(zip(lines, extents, strict=True), start=1):
        origin = (left + pad, top + line_height * number - baseline)
        cv2.putText(canvas, line, origin, font, size, (255, 255, 255), 1, cv2.LINE_AA)


def arrange_page(images: Sequence[Tensor]) -> Tensor:
    """(3, H, W) images of any sizes on one (3, H', W') page, about as many columns as rows."""
    height, width = (max(image.shape[dim] for image in images) for dim in (1, 2))
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    gap = 4
    page = torch.full((3, rows * (height + gap) - gap, columns * (width + gap) - gap), 255, dtype=torch.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top, left = row * (height + gap), column * (width + gap)
        page[:, top : top + image.shape[1], left : left + image.shape[2]] = image
    return page


def publish_page(trainer: Trainer, images: Sequence[Tensor], name: str) -> None:
    """Put (3, H, W) images on a page: ``val/<name>`` of the loggers that take images, ``<name>.png`` of the run."""
    page = arrange_page(images)
    for logger in trainer.loggers:
        if hasattr(logger.experiment, "add_image"):
            logger.experiment.add_image(f"val/{name}", page, trainer.global_step)
    if (folder := getattr(trainer.logger, "log_dir", None)) is not None:  # trainer.log_dir would wait for all ranks
        import cv2

        _, content = cv2.imencode(".png", page.permute(1, 2, 0).numpy()[..., ::-1])
        write_whole(Path(folder) / f"{name}.png", content.tobytes())


class DetectionImages(Callback):
    """Log a page of validation frames with true (green) and predicted (orange) boxes to every logger that takes images.

    The newest page is also ``detections.png`` in the run's folder, for those who look without TensorBoard.

    ``validation_step`` returns a dict for it, n frames long in every entry (or None for a batch without pictures):

    - ``frames``: (n, 3, H, W) uint8;
    - ``predictions``: n dicts of ``boxes`` (N, 4) xyxy pixels and ``scores`` (N, K);
    - ``targets``: n dicts of ``boxes`` (M, 4) and ``labels`` (M, K) multi-hot.

    The frames are spread over the validation set, so that a page does not show one video only. Class names are those
    of the datamodule (``class_names``, K of them); without them classes are numbered.

    Args:
        num_images: frames on a page; no more than these are kept.
        score_threshold: classes below it are not named; a box without any class above it is not drawn.
    """

    def __init__(self, num_images: int = 8, score_threshold: float = 0.3) -> None:
        if num_images < 1:
            raise UserError(f"num_images must be at least 1, got {num_images}")
        self.num_images = num_images
        self.score_threshold = score_threshold
        self._pictures: list[Picture] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pictures.clear()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or outputs is None:
            return
        if not isinstance(outputs, Mapping) or not {"frames", "predictions", "targets"} <= set(outputs):
            raise TypeError(
                f"DetectionImages needs {type(pl_module).__name__}.validation_step to return a dict of frames, "
                "predictions and targets; return one, or take DetectionImages out of trainer.callbacks"
            )
        names = getattr(trainer.datamodule, "class_names", None)
        wanted = self._share(batch_idx, trainer.num_val_batches[dataloader_idx]) - len(self._pictures)
        for index in _spread(len(outputs["frames"]), wanted):
            frame, found, truth = (outputs[key][index] for key in ("frames", "predictions", "targets"))
            self._pictures.append(self._picture(frame, found, truth, names))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._pictures:
            return
        publish_page(trainer, [draw_detections(*picture) for picture in self._pictures], "detections")
        self._pictures.clear()

    def _share(self, batch_idx: int, num_batches: int | float) -> int:
        """Return the number of pictures due after this batch; all at once where the length is unknown."""
        if math.isinf(num_batches):
            return self.num_images
        return math.ceil(self.num_images * (batch_idx + 1) / num_batches)

    def _picture(
        self, frame: Tensor, found: Mapping[str, Tensor], truth: Mapping[str, Tensor], names: Sequence[str] | None
    ) -> Picture:
        scores = found["scores"].detach().cpu()
        shown = (scores >= self.score_threshold).any(dim=1)
        return Picture(
            # A copy: a view would keep the pixels of the whole batch alive.
            frame.detach().cpu().clone(),
            found["boxes"].detach().cpu()[shown],
            tuple(label_text(row, self.score_threshold, names) for row in scores[shown]),
            truth["boxes"].detach().cpu(),
            tuple(label_text(row, 0.5, names, with_score=False) for row in truth["labels"].cpu()),
        )


def label_text(scores: Tensor, threshold: float, names: Sequence[str] | None = None, *, with_score: bool = True) -> str:
    """Classes of one box from ``threshold`` on, the best first, a line each: ``"wave 0.83"``; scores are (K,)."""
    if names is not None and len(names) != len(scores):
        raise ValueError(f"there are {len(scores)} scores a box but {len(names)} class names")
    lines = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        if scores[index] >= threshold:
            name = f"class {index}" if names is None else names[index]
            lines.append(f"{name} {scores[index]:.2f}" if with_score else name)
    return "\n".join(lines)


def _spread(length: int, count: int) -> list[int]:
    """Return at most ``count`` indices below ``length``, evenly spaced: 2 of 10 are the first and the sixth."""
    count = max(0, min(count, length))
    return [index * length // count for index in range(count)]
