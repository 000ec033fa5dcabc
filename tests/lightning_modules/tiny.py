"""The smallest networks and data on which the experiments run, and a Trainer that leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch.utils.data import DataLoader

from datamodules.annotations.source import DetectionSource
from datamodules.batches import ClipBatch
from datamodules.clip import ClipDataModule
from datamodules.stream import StreamDataModule
from lightning_modules.networks.detection.evad import EvadTeacher
from lightning_modules.networks.students.detector import StreamingDetector
from tests.datamodules.miniature import NumberedVideos
from tests.flat_data import clip_data, stream_data
from tests.networks.tiny import student_of, teacher_of

SHAPES: dict[str, Any] = {
    "num_classes": 2,
    "num_frames": 4,
    "pretrain_size": 64,
    "dim": 32,
    "depth": 2,
    "num_heads": 2,
    "pyramid_layers": [0, 0, 1, 1],
    "head_dim": 16,
    "num_proposals": 4,
    "num_stages": 2,
    "localizer_heads": 2,
    "dynamic_dim": 4,
    "localizer_hidden": 32,
    "localizer_roi_size": 3,
    "proposal_boxes": "grid",
    "roi_kernel": "separable",
    "decoder_dim": 16,
    "decoder_depth": 2,
    "decoder_heads": 2,
    "decoder_hidden": 32,
    "decoder_roi_size": 3,
}
"""Flat settings that a clip detector and a streaming one share, see ``tests.networks.tiny``."""


def teacher(seed: int = 0, **changes: Any) -> EvadTeacher:
    """A clip detector that drops tokens, with random weights."""
    torch.manual_seed(seed)
    return teacher_of({**SHAPES, "keep_rates": {1: 0.8}, **changes})


def student(temporal: Literal["tsa", "dsta"] = "dsta", seed: int = 1, **changes: Any) -> StreamingDetector:
    """A streaming detector that remembers: the gates of its recurrence are open, and something comes through them."""
    torch.manual_seed(seed)
    network = student_of(temporal, {**SHAPES, "window": 3, **changes})
    for name, parameter in network.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.ones_(parameter)
        elif name.endswith("out_of_lstm.weight"):
            torch.nn.init.xavier_uniform_(parameter)
    return network


@torch.no_grad()
def place_proposals(network: EvadTeacher | StreamingDetector) -> None:
    """Put two of four proposals where ``NumberedVideos`` has its boxes, for good: mAP then depends on scores alone."""
    boxes = torch.tensor(
        [[0.25, 0.5, 0.25, 0.5], [0.6875, 0.625, 0.375, 0.75], [0.5, 0.2, 0.1, 0.1], [0.2, 0.2, 0.1, 0.1]]
    )
    network.head.localizer.proposal_boxes.copy_(boxes)
    for stage in network.head.localizer.stages:
        stage.bboxes_delta.weight.zero_()
        stage.bboxes_delta.bias.zero_()


def videos(folder: Path) -> NumberedVideos:
    """Six videos of different lengths and shapes, the first two for training."""
    return NumberedVideos(folder, lengths=(40, 24, 33, 9, 26, 14), training=2, sizes=((96, 128), (128, 96)))


def clips(source: DetectionSource, cache: Path, **changes: Any) -> ClipDataModule:
    """Clips of four frames."""
    return clip_data(
        source, **{"num_frames": 4, "frame_stride": 2, "batch_size": 4, "short_side": 64, "cache": cache, **changes}
    )


def streams(source: DetectionSource, cache: Path, **changes: Any) -> StreamDataModule:
    """Windows of five frames up to the last of two keyframes, one more for the teacher; three lanes of four frames."""
    settings = {"frame_stride": 2, "train_past_frames": 5, "train_future_frames": 1, "loss_frames": 2, "batch_size": 4}
    settings |= {"lanes": 3, "chunk_frames": 4, "short_side": 64, "cache": cache}
    return stream_data(source, **{**settings, **changes})


def trainer(folder: Path, **changes: Any) -> L.Trainer:
    """On one CPU, silent, without checkpoints; keyword arguments replace or add."""
    settings: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return L.Trainer(default_root_dir=folder, **{**settings, **changes})


class Repeated(L.LightningDataModule):
    """One training batch again and again."""

    def __init__(self, batch: ClipBatch, steps: int, num_classes: int = 2) -> None:
        super().__init__()
        self.batch, self.steps, self.num_classes = batch, steps, num_classes

    def train_dataloader(self) -> DataLoader:
        return DataLoader([self.batch] * self.steps, batch_size=None)


class Losses(L.Callback):
    """``train/loss`` after every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.values.append(float(trainer.callback_metrics["train/loss"]))


class Results(L.Callback):
    """Results of the metric at the end of an evaluation, before the module forgets them."""

    def __init__(self) -> None:
        self.result: dict[str, Any] = {}

    def on_test_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.result = module.evaluator.metric.compute()
