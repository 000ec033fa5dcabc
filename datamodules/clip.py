"""Clips around keyframes: how a clip detector, the teacher, is trained and evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from torch.utils.data import DataLoader

from datamodules.annotations.source import DetectionSource, Split
from datamodules.detection import DetectionDataModule
from datamodules.errors import UserError
from datamodules.sampling.collate import kinds_of_size
from datamodules.sampling.samplers import EveryOnce
from datamodules.sampling.transforms import ClipTransform
from datamodules.sampling.windows import Window, WindowDataset, annotated_samples, grid_samples, slot_samples
from datamodules.settings import FrameSettings, KeyframeLoaderSettings, require_at_least


class ClipDataModule(DetectionDataModule):
    """ClipBatches with one keyframe each (L = 1).

    Training takes all annotated keyframes that hold a box, anew in random order each epoch. Evaluation takes the
    keyframes that a stream with stride ``keyframe_grid`` is scored on, each once over all ranks. So teacher and student
    are scored on the same frames. Clips that are padded to different sizes share no batch, since detectors see the
    padding. Prediction takes a clip for every frame of such a stream.

    Args:
        source: the data set.
        num_frames: T, length of a clip.
        frame_stride: raw frames from one frame of the clip to the next. 0 repeats the keyframe: a single-frame model,
            the floor that shows what time is worth.
        past_frames: how many of the clip's frames lead up to and include the keyframe; None puts it in the middle, at
            ``num_frames // 2``.
        keyframe_grid: stride of the stream whose keyframes are evaluated; None means ``frame_stride`` (1 for stride 0).
        frames: size and cache of the frames.
        augmentation: random changes of training clips.
        loader: what is drawn, and by whom.
        predict_videos: files to predict on; None predicts on the videos of the test split.
    """

    def __init__(
        self,
        source: DetectionSource,
        num_frames: int = 16,
        frame_stride: int = 4,
        past_frames: int | None = None,
        keyframe_grid: int | None = None,
        frames: FrameSettings = FrameSettings(),
        augmentation: ClipTransform = ClipTransform(),
        loader: KeyframeLoaderSettings = KeyframeLoaderSettings(),
        predict_videos: list[str | Path] | None = None,
    ) -> None:
        super().__init__(source, frames, loader, predict_videos, augmentation)
        require_at_least(0, frame_stride=frame_stride)
        require_at_least(1, num_frames=num_frames, keyframe_grid=keyframe_grid)
        if loader.every_frame:
            raise UserError(
                "clips are scored on a grid of frames", "data.loader.every_frame", "set data.keyframe_grid 1"
            )
        past = num_frames // 2 + 1 if past_frames is None else past_frames
        if not 1 <= past <= num_frames:
            raise UserError(f"past_frames must lie within 1..num_frames ({num_frames}), got {past}")
        self.window = Window(past, num_frames - past, frame_stride)
        self.num_frames = num_frames
        self.frame_stride = frame_stride
        self.keyframe_grid = keyframe_grid or frame_stride or 1

    @property
    def evaluation_grid(self) -> int:
        return self.keyframe_grid

    def train_dataloader(self) -> DataLoader:
        loader = self.loader
        samples = annotated_samples(self.videos("train"), loader.min_keyframe_boxes)
        dataset = self._dataset("train", samples, self.augmentation)
        return self._loader(dataset, self._shuffled(len(dataset)), loader.num_workers)

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader("val", grid_samples(self.videos("val"), self.keyframe_grid))

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader("test", grid_samples(self.videos("test"), self.keyframe_grid))

    def predict_dataloader(self) -> DataLoader:
        return self._evaluation_loader("predict", slot_samples(self.videos("predict"), self.keyframe_grid))

    def _evaluation_loader(self, split: Split | Literal["predict"], samples: np.ndarray) -> DataLoader:
        dataset = self._dataset(split, samples, None)
        kinds = kinds_of_size(video.facts.size for video in dataset.videos)
        sampler = EveryOnce(kinds[samples[:, 0]], self.loader.in_evaluation, self.rank, self.world_size)
        return self._loader(dataset, sampler, self.loader.num_workers)

    def _dataset(
        self, split: Split | Literal["predict"], samples: np.ndarray, transform: ClipTransform | None
    ) -> WindowDataset:
        if len(samples) == 0:
            raise UserError(f"the {split} split of {type(self.source).__name__} has no annotated keyframe to use")
        return WindowDataset(
            self.videos(split), samples, self.window, self.num_classes, self.frames_of(split), transform, self._broken
        )
