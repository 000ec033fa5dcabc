"""Windows of untrimmed videos, to train and evaluate detectors of actions in time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.annotations.features import FeatureArray, num_channels
from datamodules.annotations.segment_source import NO_SPANS, AnnotatedSegments, SegmentSource, report_late
from datamodules.annotations.source import Split
from datamodules.errors import UserError
from datamodules.flow.cache import FlowCache, SteppedFrames
from datamodules.flow.store import ComputedFlow, FlowSettings, FlowStore
from datamodules.frames.store import FrameStore
from datamodules.sampling.collate import kinds_of_size
from datamodules.sampling.samplers import VideoWindows
from datamodules.sampling.segment_windows import (
    Augmentation,
    SegmentWindows,
    SteppedVideo,
    evaluation_windows,
    step_features,
    step_frames,
    training_windows,
)
from datamodules.sampling.transforms import ClipTransform
from datamodules.settings import FrameSettings, LoaderSettings, require_one_of
from datamodules.source_data import SourceDataModule
from datamodules.video.picture_folder import Video

PLAUSIBLE_COVERAGE = (0.8, 1.25)
"""The time that a video's features cover, over its annotated duration, lies between these in half the videos at least.
Otherwise stride or frame rate are wrong, and so is every segment."""


@dataclass(frozen=True)
class SegmentWindowSettings:
    """Settings by which untrimmed videos are cut into windows.

    Args:
        steps: T, length of a window.
        train: ``random`` draws one window per video and epoch anew, ``sliding`` takes them all.
        train_overlap: overlap of sliding training windows, as a fraction.
        min_visibility: a window shows a segment of which at least this fraction lies inside; others are background.
        eval_steps: length of a window in evaluation; None means ``steps``, 0 the whole video.
        eval_overlap: overlap of neighbouring windows in evaluation, as a fraction.
    """

    steps: int = 256
    train: Literal["random", "sliding"] = "random"
    train_overlap: float = 0.75
    min_visibility: float = 0.5
    eval_steps: int | None = None
    eval_overlap: float = 0.25

    def __post_init__(self) -> None:
        require_one_of("train", self.train, ("random", "sliding"))
        if self.steps < 1 or self.in_evaluation < 0:
            raise UserError(f"windows need at least one step, got {self.steps} and {self.in_evaluation}")
        if not (0 <= self.train_overlap < 1 and 0 <= self.eval_overlap < 1):
            raise UserError(f"overlaps must lie within 0..1, below 1, got {self.train_overlap} and {self.eval_overlap}")
        if not 0 <= self.min_visibility <= 1:
            raise UserError(f"min_visibility must lie within 0..1, got {self.min_visibility}")

    @property
    def in_evaluation(self) -> int:
        """Length of a window in evaluation; 0 is the whole video."""
        return self.steps if self.eval_steps is None else self.eval_steps

    @property
    def overlap_in_training(self) -> float | None:
        """Overlap of sliding windows; None draws them at random."""
        return self.train_overlap if self.train == "sliding" else None


class SegmentDataModule(SourceDataModule[SteppedVideo]):
    """SegmentBatches of a data set's frames or stored features, whichever its source has.

    Training shows windows with at least one segment. Evaluation covers every video with windows, all those of a video
    on one process and in order; so does prediction.

    Args:
        source: the data set.
        windows: how videos are cut into windows.
        resize_steps: all features of a video are interpolated linearly to so many steps (ActivityNet: 100 to 256).
        frame_rate: frames per second that are sampled; None takes all. Without meaning for features.
        crop_size: side of the square cut out of the frames, at random in training, else in the middle; None cuts none.
        frames: size and cache of the frames. Without meaning for features.
        augmentation: random changes of training windows; their scale stays as it is.
        loader: what is drawn, and by whom.
        predict_videos: video files to predict on; None predicts on the videos of the test split.
        flow: optical flow that goes with the frames; None leaves it out. Without meaning for features.
    """

    def __init__(
        self,
        source: SegmentSource,
        windows: SegmentWindowSettings = SegmentWindowSettings(),
        resize_steps: int | None = None,
        frame_rate: float | None = 10.0,
        crop_size: int | None = None,
        frames: FrameSettings = FrameSettings(),
        augmentation: ClipTransform = ClipTransform(),
        loader: LoaderSettings = LoaderSettings(batch_size=2),
        predict_videos: list[str | Path] | None = None,
        flow: FlowSettings | None = None,
    ) -> None:
        if (frame_rate is not None and frame_rate <= 0) or (resize_steps is not None and resize_steps < 1):
            raise UserError(f"frame_rate and resize_steps must be positive, got {frame_rate} and {resize_steps}")
        if augmentation.scale_range != (1.0, 1.0):
            raise UserError(
                f"windows are not scaled, got {augmentation.scale_range}",
                "data.augmentation.scale_range",
                "leave it out",
            )
        if frames.maps is not None:
            raise UserError("temporal detectors read no maps", "data.frames.maps", "leave it out, or read features")
        super().__init__(source, frames, loader, predict_videos)
        self.windows = windows
        self.resize_steps = resize_steps
        self.frame_rate = frame_rate
        self.crop_size = crop_size
        colour = replace(augmentation, horizontal_flip=0.0) if augmentation.recolours else None
        self.augmentation = Augmentation(crop_size, augmentation.horizontal_flip, colour)
        self.flow: FlowStore | None = None
        self.predict_flow: FlowStore | None = None
        self.flow_in_training_alone = flow is not None and flow.in_training_alone
        if flow is not None:
            self.flow = ComputedFlow(self.store, flow) if flow.cache is None else FlowCache(self.store, flow)
            # As of frames, of files to predict on nothing is kept.
            self.predict_flow = self.flow if predict_videos is None else ComputedFlow(self.predict_store, flow)

    @property
    def evaluated_on(self) -> str:
        """Name of the test videos beside a result."""
        return self.source.evaluated_on()

    def true_segments(self, split: Split) -> dict[str, dict[str, Tensor]]:
        """Return the ground truth of a split: for each video ``segments`` (n, 2) seconds and ``labels`` (n,).

        ``setup`` is not needed.
        """
        self.source.prepare()
        return {
            video.video_id: {"segments": torch.from_numpy(video.segments), "labels": torch.from_numpy(video.labels)}
            for video in self.source.videos(split)
        }

    def prepare_data(self) -> None:
        """Make the data, and fill the caches of frames and of flow for the present stage."""
        super().prepare_data()
        if not isinstance(self.flow, FlowCache):
            return
        splits = [split for split in self._splits_at_hand() if self._flow_of(split) is not None]
        videos = [self.stepped(video, self.store) for split in splits for video in self.source.videos(split)]
        self.flow.build([SteppedFrames(stepped.video.media, stepped.frames) for stepped in videos])

    def train_dataloader(self) -> DataLoader:
        videos = self.videos("train")
        windows = training_windows(
            videos, self.windows.steps, self.windows.overlap_in_training, self.windows.min_visibility
        )
        if not windows:
            raise UserError(f"no training window of {type(self.source).__name__} shows a segment")
        dataset = self._dataset("train", windows, self.augmentation)
        return self._loader(dataset, self._shuffled(len(windows)), self.loader.num_workers)

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader:
        return self._evaluation_loader("predict")

    def _evaluation_loader(self, split: Split | Literal["predict"]) -> DataLoader:
        windows = evaluation_windows(self.videos(split), self.windows.in_evaluation, self.windows.eval_overlap)
        dataset = self._dataset(split, [window for video in windows for window in video], Augmentation(self.crop_size))
        counts = [len(video) for video in windows]
        sampler = VideoWindows(counts, self._kinds(split), self.loader.in_evaluation, self.rank, self.world_size)
        return self._loader(dataset, sampler, self.loader.num_workers)

    def _kinds(self, split: Split | Literal["predict"]) -> np.ndarray:
        """(V,) which videos may share a batch: those of one padded size, lest padding change what is predicted."""
        videos, store = self.videos(split), self.frames_of(split)
        if self.crop_size is not None or videos[0].frames is None:
            return np.zeros(len(videos), np.int64)
        return kinds_of_size(store.facts(video.video.media).size for video in videos)

    def _flow_of(self, split: Split | Literal["predict"]) -> FlowStore | None:
        """Return the store of these videos' flow; None where flow is not used."""
        if self.flow_in_training_alone and split != "train":
            return None
        return self.predict_flow if split == "predict" else self.flow

    def _dataset(self, split: str, windows: list, augmentation: Augmentation) -> SegmentWindows:
        videos = self.videos(split)
        flow = self._flow_of(split)
        if isinstance(flow, ComputedFlow) and flow.method.device != "cpu" and self.loader.num_workers > 0:
            raise UserError(
                f"worker processes cannot compute flow on {flow.method.device}; set num_workers=0 or device: cpu"
            )
        return SegmentWindows(
            videos,
            windows,
            self.frames_of(split) if videos[0].frames is not None else None,
            augmentation,
            self.windows.min_visibility,
            self.resize_steps,
            flow,
        )

    def _open(self, videos: Sequence[AnnotatedSegments], store: FrameStore) -> tuple[SteppedVideo, ...]:
        """Divide videos into steps and compare what was annotated with what is there."""
        if not videos:
            raise UserError(f"{type(self.source).__name__} has no video")
        stepped = [self.stepped(video, store) for video in videos]
        if len({video.frames is None for video in stepped}) > 1:
            raise UserError(f"{type(self.source).__name__} has videos of frames and of features; it must be one kind")
        report_late(
            type(self.source).__name__,
            [new.video for old, new in zip(videos, stepped, strict=True) if old.duration is None],
        )
        if stepped[0].frames is None:
            check_features(videos, stepped)
        return tuple(stepped)

    def stepped(self, video: AnnotatedSegments, store: FrameStore) -> SteppedVideo:
        """Divide a video into steps.

        Raises:
            UserError: its frames or features are not there, or not of a kind that is asked for.
        """
        media = _media(video)
        if isinstance(media, FeatureArray):
            if self.flow is not None:
                raise UserError(
                    f"{video.video_id} has stored features, and optical flow is computed of frames; set "
                    "data.init_args.flow=null, or give the source videos instead of features"
                )
            return step_features(video, self.resize_steps)
        facts = store.facts(media)
        if self.crop_size is not None and min(facts.size) < self.crop_size:
            raise UserError(
                f"{media} is read at {facts.size[1]}x{facts.size[0]}, too small for crop_size={self.crop_size}; "
                "set short_side to at least that"
            )
        return step_frames(video, facts, self.frame_rate)

    def _cached(self, videos: Sequence[AnnotatedSegments]) -> list[Video]:
        return [media for media in map(_media, videos) if not isinstance(media, FeatureArray)]

    def _unannotated(self, video_id: str, path: Path) -> AnnotatedSegments:
        return AnnotatedSegments(video_id, path, None, NO_SPANS, np.empty(0, np.int64))


def _media(video: AnnotatedSegments) -> Video | FeatureArray:
    if video.media is None:
        raise UserError(
            f"{video.video_id} has neither frames nor features; set videos or features of data.init_args.source"
        )
    return video.media


def check_features(videos: Sequence[AnnotatedSegments], stepped: Sequence[SteppedVideo]) -> None:
    """Refuse features of several widths, or whose times cannot be right.

    Args:
        videos: with features. stepped: the same videos, divided into steps.
    """
    widths = {video.video_id: num_channels(video.media) for video in videos}
    if len(set(widths.values())) > 1:
        usual = Counter(widths.values()).most_common(1)[0][0]
        odd = next(name for name, width in widths.items() if width != usual)
        raise UserError(f"{odd} has features of {widths[odd]} channels, other videos of {usual}")
    covered = [
        (new.first_seconds * 2 + new.step_seconds * (new.num_steps - 1)) / old.duration
        for old, new in zip(videos, stepped, strict=True)
        if old.duration
    ]
    if covered and not PLAUSIBLE_COVERAGE[0] <= np.median(covered) <= PLAUSIBLE_COVERAGE[1]:
        raise UserError(
            f"features stand for {np.median(covered):.2f} times the duration of their videos "
            f"({stepped[0].video.media}, for instance); stride_frames or frame_rate of features must be wrong"
        )
