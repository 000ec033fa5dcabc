"""What the clip and the stream DataModule share: source, frame store, splits, ranks, loaders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.annotations.source import AnnotatedVideo, DetectionSource, Split
from datamodules.batches import TrueKeyframe, TrueTubes
from datamodules.broken_videos import BrokenVideos, OnError, ReportBrokenVideos
from datamodules.frame_cache import FrameCache
from datamodules.frames import DecodedFrames, FrameScale, FrameStore, Interpolation
from datamodules.video_listing import VideoError
from datamodules.windows import TimedVideo, time_video, true_keyframes, true_tubes

BatchT = TypeVar("BatchT")
STAGE_SPLITS: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
}


class DetectionDataModule(LightningDataModule):
    """Base of the DataModules for spatio-temporal detection.

    Args:
        source: the data set.
        num_workers: worker processes of a training loader; 0 loads in the training process.
        scale: the size of the frames.
        cache: folder of decoded frames; None decodes every clip anew.
        cache_max_gib: what the cache may take.
        predict_videos: files to predict on; None predicts on the videos of the test split.
        on_error: ``raise`` stops at a video that cannot be read. ``skip`` leaves it out: ``broken`` has it, and the end
            of the epoch tells it. Of a video that turns out damaged only when it is decoded, what can be read is used;
            in training another sample takes the place of one that cannot, in evaluation clips that cannot be read do
            not count and a stream ends before the damage.
    """

    def __init__(
        self,
        source: DetectionSource,
        num_workers: int,
        scale: FrameScale,
        cache: str | Path | None,
        cache_max_gib: float,
        predict_videos: Sequence[str | Path] | None,
        on_error: OnError,
    ) -> None:
        super().__init__()
        require_at_least(0, num_workers=num_workers, cache_max_gib=cache_max_gib)
        require_at_least(1, short_side=scale.short_side, max_long_side=scale.max_long_side)
        for name, value, known in (
            ("interpolation", scale.interpolation, Interpolation),
            ("on_error", on_error, OnError),
        ):
            if value not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
        self.source = source
        self.num_workers = num_workers
        self.store: FrameStore = DecodedFrames(scale) if cache is None else FrameCache(cache, scale, cache_max_gib)
        self.predict_videos = predict_videos
        # Files to predict on are passed over once: no use in keeping their frames.
        self.predict_store = self.store if predict_videos is None else DecodedFrames(scale)
        self._videos: dict[str, tuple[TimedVideo, ...]] = {}
        self._broken = BrokenVideos() if on_error == "skip" else None

    @property
    def broken(self) -> dict[str, str]:
        """Path of every video that this process and its workers skipped so far, and why."""
        return {} if self._broken is None else self._broken.found()

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def evaluated_classes(self) -> tuple[int, ...] | None:
        """The class ids that are scored; None for all."""
        return self.source.evaluated_classes()

    def prepare_data(self) -> None:
        """Make the data and fill the cache with what the stage at hand needs; both do nothing the second time."""
        stage = None if self.trainer is None else self.trainer.state.fn
        if stage == "predict" and self.predict_videos is not None:
            return
        self.source.prepare()
        if isinstance(self.store, FrameCache):
            splits = STAGE_SPLITS.get(stage or "", ("train", "val", "test"))
            videos = [video.path for split in splits for video in self.source.videos(split)]
            self.store.build(videos, skip_broken=self._broken is not None)

    def setup(self, stage: str) -> None:
        if self._broken is not None:
            self._report_broken(self._broken)
        if stage == "predict" and self.predict_videos is not None:
            self._videos["predict"] = self._timed(_without_annotation(self.predict_videos), self.predict_store)
            return
        for split in STAGE_SPLITS[stage]:
            if split not in self._videos:
                self._videos[split] = self._timed(self.source.videos(split), self.store)
        if stage == "predict":
            self._videos["predict"] = self._videos["test"]

    def videos(self, split: Split | Literal["predict"]) -> tuple[TimedVideo, ...]:
        """The videos of a split, or those to predict on, once ``setup`` has opened them."""
        if split not in self._videos:
            raise ValueError(f"the {split} videos are not open; call setup first")
        return self._videos[split]

    def frames_of(self, split: Split | Literal["predict"]) -> FrameStore:
        """Where the frames of these videos come from."""
        return self.predict_store if split == "predict" else self.store

    @property
    def evaluation_grid(self) -> int:
        """Stride of the stream whose keyframes are evaluated."""
        raise NotImplementedError

    def true_keyframes(self, split: Split) -> list[TrueKeyframe]:
        """What detectors are scored on in a split; nothing is decoded for it, and ``setup`` is not needed.

        Videos that do not open are left out and told where ``on_error`` is ``skip``.
        """
        self.source.prepare()
        store = DecodedFrames(self.store.scale)  # a cache would be filled first
        videos = self._timed(self.source.videos(split), store)
        if self._broken is not None:
            self._broken.report(self.rank)
        return true_keyframes(videos, self.evaluation_grid, self.source.start_seconds)

    def _timed(self, videos: Sequence[AnnotatedVideo], store: FrameStore) -> tuple[TimedVideo, ...]:
        """Open the videos, and leave out those that cannot be read if that is wanted, unless none remains."""
        timed, first = [], None
        for video in videos:
            try:
                timed.append(time_video(video, store))
            except VideoError as error:
                if self._broken is None:
                    raise
                self._broken.add(video.path, error, of_all=True)
                first = first or error
        if first is not None and not timed:
            raise VideoError(f"none of {len(videos)} videos can be read; the first: {first}") from first
        return tuple(timed)

    def _report_broken(self, broken: BrokenVideos) -> None:
        """Have the trainer say at the end of its epochs what was broken."""
        broken.prepare()
        if self.trainer is not None:
            callbacks = self.trainer.callbacks
            if not any(getattr(callback, "broken", None) is broken for callback in callbacks):
                callbacks.insert(0, ReportBrokenVideos(broken))

    def true_tubes(self, split: Split) -> dict[str, TrueTubes]:
        """The tubes that detectors are scored on in each video of a split, by video id; see ``windows.true_tubes``."""
        tubes = {video.video_id: true_tubes(video, self.evaluation_grid) for video in self.videos(split)}
        steps = [step for video in tubes.values() for step in np.diff(list(video.annotated.values())).tolist()]
        if steps and np.median(steps) > 1:
            raise ValueError(
                f"the {split} split is annotated at one in {np.median(steps):g} of the frames that a stream of stride "
                f"{self.evaluation_grid} takes, too seldom to say where its tubes begin and end; choose a stride at "
                "least as large as the spacing of the annotation, or leave model.init_args.video_map out"
            )
        return tubes

    @property
    def rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    @property
    def world_size(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size

    def _loader(self, dataset: Dataset, sampler: Sampler, num_workers: int) -> DataLoader:
        """A loader whose sampler yields whole batches and whose data set returns them collated."""
        return whole_batches(dataset, sampler, num_workers)


def require_at_least(least: float, **arguments: float | None) -> None:
    """Refuse numbers that make no sense; None means that there is no number."""
    for name, value in arguments.items():
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def whole_batches(dataset: Dataset, sampler: Sampler, num_workers: int) -> DataLoader:
    """A loader whose sampler yields whole batches and whose data set returns them collated."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=sampler,
        num_workers=num_workers,
        # Left to itself, a loader that does not collate turns the tuples of a batch into lists.
        collate_fn=_as_it_is,
        persistent_workers=num_workers > 0,
        worker_init_fn=_use_one_thread,
    )


def _as_it_is(batch: BatchT) -> BatchT:
    return batch


def _use_one_thread(worker: int) -> None:
    """OpenCV starts a thread a core in every worker; the cores are taken."""
    import cv2

    cv2.setNumThreads(0)


def _without_annotation(files: Sequence[str | Path]) -> tuple[AnnotatedVideo, ...]:
    paths = [Path(file) for file in files]
    stems = [path.stem for path in paths]
    # Names as short as they can be told apart.
    names = stems if len(set(stems)) == len(stems) else [str(path) for path in paths]
    return tuple(AnnotatedVideo(name, path, ()) for name, path in zip(names, paths, strict=True))
