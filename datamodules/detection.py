"""What the clip and the stream DataModule share: timed videos, what is broken of them, ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from datamodules.annotations.source import AnnotatedVideo, DetectionSource, Split
from datamodules.batches import TrueKeyframe, TrueTubes
from datamodules.frames.store import DecodedFrames, FrameScale, FrameStore, Interpolation
from datamodules.sampling.since_start import seconds_since_start
from datamodules.sampling.windows import TimedVideo, time_video, true_keyframes, true_tubes
from datamodules.source_data import SourceDataModule
from datamodules.video.broken import BrokenVideos, OnError, ReportBrokenVideos
from datamodules.video.listing import VideoError
from datamodules.video.picture_folder import Video


class DetectionDataModule(SourceDataModule[TimedVideo]):
    """Base of the DataModules for spatio-temporal detection.

    Args:
        source, num_workers, scale, cache, cache_max_gib, predict_videos: see ``SourceDataModule``.
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
        require_at_least(0, num_workers=num_workers, cache_max_gib=cache_max_gib)
        require_at_least(1, short_side=scale.short_side, max_long_side=scale.max_long_side)
        for name, value, known in (
            ("interpolation", scale.interpolation, Interpolation),
            ("on_error", on_error, OnError),
        ):
            if value not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
        super().__init__(source, num_workers, scale, cache, cache_max_gib, predict_videos)
        self.skips_broken = on_error == "skip"
        self._broken = BrokenVideos() if self.skips_broken else None

    @property
    def broken(self) -> dict[str, str]:
        """Path of every video that this process and its workers skipped so far, and why."""
        return {} if self._broken is None else self._broken.found()

    @property
    def evaluated_classes(self) -> tuple[int, ...] | None:
        """The class ids that are scored; None for all."""
        return self.source.evaluated_classes()

    def setup(self, stage: str) -> None:
        if self._broken is not None:
            self._report_broken(self._broken)
        super().setup(stage)

    @property
    def evaluation_grid(self) -> int:
        """Stride of the stream whose keyframes are evaluated."""
        raise NotImplementedError

    def true_keyframes(self, split: Split) -> list[TrueKeyframe]:
        """What detectors are scored on in a split; nothing is decoded for it, and ``setup`` is not needed.

        Videos that do not open are left out and told where ``on_error`` is ``skip``.
        """
        return true_keyframes(self._unread(split), self.evaluation_grid, self.source.start_seconds)

    def seconds_since_start(self, split: Split) -> list[np.ndarray]:
        """How long the actions of ``true_keyframes`` have been going on; see ``since_start.seconds_since_start``."""
        return seconds_since_start(self._unread(split), self.evaluation_grid)

    def _unread(self, split: Split) -> tuple[TimedVideo, ...]:
        """The videos of a split, opened for their ground truth alone."""
        self.source.prepare()
        videos = self._open(self.source.videos(split), DecodedFrames(self.store.scale))  # a cache would be filled first
        if self._broken is not None:
            self._broken.report(self.rank)
        return videos

    def _open(self, videos: Sequence[AnnotatedVideo], store: FrameStore) -> tuple[TimedVideo, ...]:
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

    def _cached(self, videos: Sequence[AnnotatedVideo]) -> list[Video]:
        return [video.path for video in videos]

    def _unannotated(self, video_id: str, path: Path) -> AnnotatedVideo:
        return AnnotatedVideo(video_id, path, ())

    def _report_broken(self, broken: BrokenVideos) -> None:
        """Have the trainer say at the end of its epochs what was broken."""
        broken.prepare()
        if self.trainer is not None:
            callbacks = self.trainer.callbacks
            if not any(getattr(callback, "broken", None) is broken for callback in callbacks):
                callbacks.insert(0, ReportBrokenVideos(broken))

    def true_tubes(self, split: Split) -> dict[str, TrueTubes]:
        """The tubes that detectors are scored on in each video of a split, by video id; see ``windows.true_tubes``.

        ``setup`` is not needed.
        """
        videos = self._videos[split] if split in self._videos else self._unread(split)
        tubes = {video.video_id: true_tubes(video, self.evaluation_grid) for video in videos}
        steps = [step for video in tubes.values() for step in np.diff(list(video.annotated.values())).tolist()]
        if steps and np.median(steps) > 1:
            raise ValueError(
                f"the {split} split is annotated at one in {np.median(steps):g} of the frames that a stream of stride "
                f"{self.evaluation_grid} takes, too seldom to say where its tubes begin and end; choose a stride at "
                "least as large as the spacing of the annotation, or leave model.detection.video_map out"
            )
        return tubes


def require_at_least(least: float, **arguments: float | None) -> None:
    """Refuse numbers that make no sense; None means that there is no number."""
    for name, value in arguments.items():
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
