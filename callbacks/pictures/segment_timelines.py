"""Draw true and found segments of videos above each other, to see what a temporal detector does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.pictures.detection_images import GREEN, ORANGE, draw_text, publish_page
from datamodules.errors import UserError

WIDTH, MARGIN, ROW = 640, 130, 22
"""Pixels: of the time line, of the class names before it, of the height of a class."""


class SegmentTimelines(Callback):
    """Log a page of time lines after every validation: per class the truth (green) over the detections (orange).

    The newest page is also ``timelines.png`` in the run's folder. The higher the score, the stronger the orange. Only
    classes that a video shows, or that were found in it, have a line.

    Args:
        num_videos: videos on a page, the first that are finished.
        score_threshold: segments that score less are not drawn.
    """

    def __init__(self, num_videos: int = 4, score_threshold: float = 0.1) -> None:
        if num_videos < 1:
            raise UserError(f"num_videos must be at least 1, got {num_videos}")
        self.num_videos, self.score_threshold = num_videos, score_threshold
        self._pictures: list[Tensor] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pictures.clear()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Sequence[Mapping[str, Any]],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        rows = {video: row for row, video in enumerate(batch.video_ids)}
        for found in outputs[: self.num_videos - len(self._pictures)]:
            row = rows[found["video_id"]]
            truth = {"segments": batch.video_segments[row], "labels": batch.video_labels[row]}
            names = trainer.datamodule.class_names
            duration = float(batch.durations[row])
            self._pictures.append(draw_timeline(found["video_id"], duration, truth, found, names, self.score_threshold))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._pictures:
            return
        publish_page(trainer, self._pictures, "timelines")
        self._pictures.clear()


def draw_timeline(
    title: str,
    duration: float,
    truth: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    names: Sequence[str],
    score_threshold: float,
) -> Tensor:
    """A picture (3, H, W) uint8 of one video of ``duration`` seconds: per class the truth above the detections."""
    shown = (found["scores"] >= score_threshold).nonzero().flatten().tolist()
    shown.sort(key=lambda index: float(found["scores"][index]))  # the best come last and cover the others
    classes = sorted({*truth["labels"].tolist(), *(int(found["labels"][index]) for index in shown)})
    canvas = np.full(((len(classes) + 1) * ROW + 4, MARGIN + WIDTH + 8, 3), 255, np.uint8)
    draw_text(canvas, f"{title}, {duration:.1f} s", [0, 0, 0, 0], (90, 90, 90), below=True)
    tops = {label: (line + 1) * ROW for line, label in enumerate(classes)}
    for label, top in tops.items():
        draw_text(canvas, names[label], [0, top, 0, top], (150, 150, 150), below=True)

    def bar(segment: Tensor, top: int, colour: tuple[int, int, int], strength: float) -> None:
        left, right = (MARGIN + round(float(end) / duration * WIDTH) for end in segment)
        part = canvas[top : top + ROW // 2 - 2, left : max(right, left + 2)]
        part[:] = np.asarray(colour) * strength + part * (1 - strength)

    for segment, label in zip(truth["segments"], truth["labels"].tolist(), strict=True):
        bar(segment, tops[label], GREEN, 1.0)
    for index in shown:
        score = float(found["scores"][index])
        bar(found["segments"][index], tops[int(found["labels"][index])] + ROW // 2 - 1, ORANGE, min(1.0, 0.2 + score))
    return torch.from_numpy(canvas).permute(2, 0, 1).contiguous()
