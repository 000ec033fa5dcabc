"""Clips around keyframes: how a clip detector, the teacher, is trained and evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from torch.utils.data import DataLoader

from datamodules.annotations.source import DetectionSource, Split
from datamodules.broken_videos import OnError
from datamodules.collate import padded_size
from datamodules.detection import DetectionDataModule, require_at_least
from datamodules.frames import FrameScale, Interpolation
from datamodules.samplers import EveryOnce
from datamodules.transforms import ClipTransform
from datamodules.windows import Window, WindowDataset, annotated_samples, grid_samples, slot_samples


class ClipDataModule(DetectionDataModule):
    """ClipBatches with one keyframe each (L = 1).

    Training takes all annotated keyframes that hold a box, anew in random order each epoch. Evaluation takes the
    keyframes that a stream with stride ``keyframe_grid`` is scored on, each once over all ranks, so that teacher and
    student answer the same questions; clips that are padded to different sizes share no batch, since detectors see the
    padding. Prediction takes a clip for every frame of such a stream.

    Args:
        source: the data set.
        num_frames: T, length of a clip.
        frame_stride: raw frames from one frame of the clip to the next; 0 repeats the keyframe, which makes a
            single-frame model, the floor that shows what time is worth.
        past_frames: how many of the clip's frames lead up to and include the keyframe; None puts it in the middle, at
            ``num_frames // 2``.
        batch_size: clips a batch and rank in training.
        eval_batch_size: in evaluation; None means the same.
        num_workers: worker processes; 0 loads in the training process.
        short_side: length of the frames' short side in pixels; None keeps the video's size.
        max_long_side: frames whose long side would be longer are made smaller; None sets no limit.
        interpolation: ``area`` averages areas when frames shrink, ``bilinear`` does not (EVAD).
        cache: folder of decoded frames; None decodes every clip anew.
        cache_max_gib: what the cache may take.
        horizontal_flip: probability of mirroring a training clip.
        scale_range: factors between which a training clip is scaled before it is padded or cropped to its size.
        brightness: largest random change, as a fraction.
        contrast: largest random change, as a fraction.
        saturation: largest random change, as a fraction.
        keyframe_grid: stride of the stream whose keyframes are evaluated; None means ``frame_stride`` (1 for stride 0).
        samples_per_epoch: how many clips to draw at random each epoch over all ranks; None takes each once.
        min_keyframe_boxes: training keyframes hold at least this many boxes.
        seed: of order and augmentation; that of ``seed_everything`` by default.
        predict_videos: files to predict on; None predicts on the videos of the test split.
        on_error: ``raise`` stops at a video that cannot be read, ``skip`` leaves it out and tells it at the end of the
            epoch, see ``DetectionDataModule``.
    """

    def __init__(
        self,
        source: DetectionSource,
        num_frames: int = 16,
        frame_stride: int = 4,
        past_frames: int | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        short_side: int | None = None,
        max_long_side: int | None = None,
        interpolation: Interpolation = "area",
        cache: str | Path | None = "data/cache",
        cache_max_gib: float = 64.0,
        horizontal_flip: float = 0.5,
        scale_range: tuple[float, float] = (1.0, 1.0),
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        keyframe_grid: int | None = None,
        samples_per_epoch: int | None = None,
        min_keyframe_boxes: int = 1,
        seed: int | None = None,
        predict_videos: list[str | Path] | None = None,
        on_error: OnError = "raise",
    ) -> None:
        scale = FrameScale(short_side, max_long_side, interpolation)
        super().__init__(source, num_workers, scale, cache, cache_max_gib, predict_videos, on_error)
        require_at_least(0, frame_stride=frame_stride, min_keyframe_boxes=min_keyframe_boxes)
        require_at_least(1, num_frames=num_frames, batch_size=batch_size, eval_batch_size=eval_batch_size)
        require_at_least(1, keyframe_grid=keyframe_grid, samples_per_epoch=samples_per_epoch)
        past = num_frames // 2 + 1 if past_frames is None else past_frames
        if not 1 <= past <= num_frames:
            raise ValueError(f"past_frames must lie within 1..num_frames ({num_frames}), got {past}")
        self.window = Window(past, num_frames - past, frame_stride)
        self.num_frames = num_frames
        self.frame_stride = frame_stride
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.transform = ClipTransform(horizontal_flip, scale_range, brightness, contrast, saturation)
        self.keyframe_grid = keyframe_grid or frame_stride or 1
        self.samples_per_epoch = samples_per_epoch
        self.min_keyframe_boxes = min_keyframe_boxes
        self.seed = seed

    @property
    def evaluation_grid(self) -> int:
        return self.keyframe_grid

    def train_dataloader(self) -> DataLoader:
        dataset = self._dataset(
            "train", annotated_samples(self.videos("train"), self.min_keyframe_boxes), self.transform
        )
        sampler = self._shuffled(len(dataset), self.batch_size, self.samples_per_epoch, self.seed)
        return self._loader(dataset, sampler, self.num_workers)

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader("val", grid_samples(self.videos("val"), self.keyframe_grid))

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader("test", grid_samples(self.videos("test"), self.keyframe_grid))

    def predict_dataloader(self) -> DataLoader:
        return self._evaluation_loader("predict", slot_samples(self.videos("predict"), self.keyframe_grid))

    def _evaluation_loader(self, split: Split | Literal["predict"], samples: np.ndarray) -> DataLoader:
        dataset = self._dataset(split, samples, None)
        sizes = np.asarray([padded_size(*video.facts.size) for video in dataset.videos])
        _, kinds = np.unique(sizes, axis=0, return_inverse=True)
        sampler = EveryOnce(kinds.reshape(-1)[samples[:, 0]], self.eval_batch_size, self.rank, self.world_size)
        return self._loader(dataset, sampler, self.num_workers)

    def _dataset(
        self, split: Split | Literal["predict"], samples: np.ndarray, transform: ClipTransform | None
    ) -> WindowDataset:
        if len(samples) == 0:
            raise ValueError(f"the {split} split of {type(self.source).__name__} has no annotated keyframe to use")
        return WindowDataset(
            self.videos(split), samples, self.window, self.num_classes, self.frames_of(split), transform, self._broken
        )
