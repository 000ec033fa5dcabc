"""Settings that the DataModules share: the size and cache of frames, and what is drawn from the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from datamodules.errors import UserError
from datamodules.frames.cache import FrameCache
from datamodules.frames.maps import FeatureMaps
from datamodules.frames.store import DecodedFrames, FrameScale, FrameStore, Interpolation
from datamodules.video.broken import OnError


@dataclass(frozen=True)
class FrameSettings:
    """Settings of frames: the size at which they are read, and the cache of decoded ones.

    Args:
        short_side: length of the frames' short side in pixels; None keeps the video's size.
        max_long_side: frames whose long side would be longer are made smaller; None sets no limit.
        interpolation: ``area`` averages areas when frames shrink, ``bilinear`` does not (EVAD).
        cache: folder of decoded frames; None decodes every clip anew.
        cache_max_gib: largest size of the cache.
        maps: folder of the maps of a frozen stem (``python main.py maps``), read in place of frames of this size.
            Augmentation is then limited to flips and the choice of clips. For detectors of people.
    """

    short_side: int | None = None
    max_long_side: int | None = None
    interpolation: Interpolation = "area"
    cache: str | None = "data/cache"
    cache_max_gib: float = 64.0
    maps: str | None = None

    def __post_init__(self) -> None:
        require_at_least(1, short_side=self.short_side, max_long_side=self.max_long_side)
        require_at_least(0, cache_max_gib=self.cache_max_gib)
        require_one_of("interpolation", self.interpolation, get_args(Interpolation))

    @property
    def scale(self) -> FrameScale:
        return FrameScale(self.short_side, self.max_long_side, self.interpolation)

    def store(self) -> FrameStore:
        """Make the store of the frames; nothing is read or written yet."""
        if self.maps is not None:
            return FeatureMaps(self.maps, self.scale)
        if self.cache is None:
            return DecodedFrames(self.scale)
        return FrameCache(self.cache, self.scale, self.cache_max_gib)


@dataclass(frozen=True)
class LoaderSettings:
    """Settings of the loaders: samples per epoch, sizes of batches, number of processes.

    Args:
        batch_size: samples per batch and rank in training.
        eval_batch_size: batch size of evaluation; None means the same. Streams are evaluated in lanes instead.
        num_workers: worker processes; 0 loads in the training process.
        samples_per_epoch: how many samples to draw at random per epoch over all ranks; None takes each once.
        seed: seed of order and augmentation; that of ``seed_everything`` by default.
    """

    batch_size: int = 8
    eval_batch_size: int | None = None
    num_workers: int = 0
    samples_per_epoch: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        require_at_least(0, num_workers=self.num_workers)
        require_at_least(1, batch_size=self.batch_size, eval_batch_size=self.eval_batch_size)
        require_at_least(1, samples_per_epoch=self.samples_per_epoch)

    @property
    def in_evaluation(self) -> int:
        """Return the samples per batch and rank in evaluation."""
        return self.batch_size if self.eval_batch_size is None else self.eval_batch_size


@dataclass(frozen=True)
class KeyframeLoaderSettings(LoaderSettings):
    """``LoaderSettings`` of data sets of boxes.

    Args:
        min_keyframe_boxes: training keyframes hold at least this many boxes.
        on_error: ``raise`` stops at a video that cannot be read; ``skip`` leaves it out and reports it after the epoch,
            see ``DetectionDataModule``.
        every_frame: streams are scored on all raw frames, as published protocols have it. With stride s a video is s
            streams then, which begin at its frames 0 to s - 1 and follow each other. Prediction has one of them. Of
            clips ``keyframe_grid`` says the same.
    """

    min_keyframe_boxes: int = 1
    on_error: OnError = "raise"
    every_frame: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(0, min_keyframe_boxes=self.min_keyframe_boxes)
        require_one_of("on_error", self.on_error, get_args(OnError))


@dataclass(frozen=True)
class UnlabelledSettings:
    """Training windows of videos without labels, on which a teacher alone teaches.

    Args:
        folder: folder of such videos; None takes those of the source that have no label.
        share: their share of the training windows, at least 0 and below 1.
    """

    folder: str | None = None
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UserError(
                f"must lie between 0 and 1, got {self.share}", "data.unlabelled.share", "leave unlabelled out for none"
            )


def require_at_least(least: float, **arguments: float | None) -> None:
    """Refuse numbers that make no sense; None means that there is no number."""
    for name, value in arguments.items():
        if value is not None and value < least:
            raise UserError(f"{name} must be at least {least}, got {value}")


def require_positive(**arguments: float | None) -> None:
    """Refuse numbers that are not above 0; None means that there is no number."""
    for name, value in arguments.items():
        if value is not None and value <= 0:
            raise UserError(f"{name} must be above 0, got {value}")


def require_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a word that is not one of those known."""
    if value not in known:
        raise UserError(f"{name} must be one of {', '.join(known)}, got {value!r}")
