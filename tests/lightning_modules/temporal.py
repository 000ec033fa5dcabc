"""Videos of stored features in which each action has features of its own, and the smallest detectors for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from datamodules.annotations.features import FeatureArray
from datamodules.annotations.segment_source import AnnotatedSegments, SegmentSource
from datamodules.segments import SegmentDataModule
from lightning_modules.networks.temporal.decomposed_detector import DecomposedDetector
from lightning_modules.networks.temporal.temporal_detector import TemporalDetector
from tests.flat_data import segment_data
from tests.networks.temporal.temporal_parts import MeanColour, StepHead

CHANNELS = 6
STEP = 0.5


class MarkedFeatures(SegmentSource):
    """Videos of 40 features, half a second each; channel k is 1 during action k, two tell its ends, one is noise."""

    def __init__(self, folder: Path, num_videos: int = 6) -> None:
        self.folder, self.num_videos = folder, num_videos

    def prepare(self) -> None:
        for number in range(self.num_videos):
            values = np.zeros((40, CHANNELS), np.float32)
            values[:, -1] = np.random.default_rng(number).normal(size=40)
            for (start, end), label in zip(*self._truth(number), strict=True):
                first, stop = round(start / STEP), round(end / STEP)
                values[first:stop, label] = 1
                values[first:stop, 3] = np.arange(stop - first) / 4
                values[first:stop, 4] = values[first:stop, 3][::-1]
            np.save(self.folder / f"video_{number}.npy", values)

    @staticmethod
    def _truth(number: int) -> tuple[list[list[float]], list[int]]:
        return [[2.0, 4.0], [7.0 + number % 3, 11.0 + number % 3], [15.0, 18.0]], [number % 3, 1, (number + 1) % 3]

    def class_names(self) -> tuple[str, ...]:
        return ("walk", "wave", "sit")

    def videos(self, split: str) -> tuple[AnnotatedSegments, ...]:
        numbers = range(self.num_videos // 2) if split == "train" else range(self.num_videos // 2, self.num_videos)
        return tuple(self._video(number) for number in numbers)

    def _video(self, number: int) -> AnnotatedSegments:
        segments, labels = self._truth(number)
        array = FeatureArray((self.folder / f"video_{number}.npy",), STEP / 2, STEP)
        return AnnotatedSegments(f"video_{number}", array, 20.0, np.asarray(segments), np.asarray(labels))

    def evaluated_on(self) -> str:
        return "marked features"


def features(folder: Path, **changes) -> SegmentDataModule:
    """Windows of 16 features that overlap by half in evaluation."""
    settings = {"window_steps": 16, "batch_size": 3, "eval_overlap": 0.5, "train_windows": "sliding"}
    return segment_data(MarkedFeatures(folder), **{**settings, **changes})


def detector(seed: int = 0, dim: int = 8, num_classes: int = 3, in_channels: int = CHANNELS) -> TemporalDetector:
    torch.manual_seed(seed)
    return TemporalDetector(num_classes, MeanColour(in_channels), StepHead, dim)


def decomposed(seed: int = 1, dim: int = 8, num_classes: int = 3, **changes) -> DecomposedDetector:
    torch.manual_seed(seed)
    return DecomposedDetector(num_classes, MeanColour(CHANNELS), StepHead, dim, **changes)
