"""Base of the clip and the stream DataModule: timed videos, broken ones, ground truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.annotations.source import AnnotatedVideo, DetectionSource, Split
from datamodules.batches import MapFacts, TrueKeyframe, TrueTubes
from datamodules.errors import UserError, printable
from datamodules.frames.maps import FeatureMaps
from datamodules.frames.store import DecodedFrames, FrameStore
from datamodules.sampling.indexing import num_slots
from datamodules.sampling.since_start import seconds_since_start, seconds_until_end, speeds
from datamodules.sampling.transforms import ClipTransform
from datamodules.sampling.windows import TimedVideo, time_video, true_keyframes, true_tubes
from datamodules.settings import FrameSettings, KeyframeLoaderSettings
from datamodules.source_data import SourceDataModule
from datamodules.video.broken import BrokenVideos, ReportBrokenVideos
from datamodules.video.listing import VideoError
from datamodules.video.picture_folder import Video

FRAME_SECONDS = 0.02
"""Seconds before its first and after its last frame in which a video still has a frame: half of one at 25 a second."""


class DetectionDataModule(SourceDataModule[TimedVideo]):
    """Base of the DataModules for spatio-temporal detection.

    Args:
        source, frames, predict_videos: see ``SourceDataModule``.
        augmentation: random changes of training clips; maps in place of pixels can only be mirrored.
        loader: its ``on_error`` is what to do with a video that cannot be read. ``raise`` stops there. ``skip`` leaves
            it out: ``broken`` has it, and the end of the epoch reports it. Damage that is found only while decoding is
            skipped. Training draws another sample in its place, evaluation leaves out the clips that cannot be read,
            and a stream ends before the damage.
    """

    loader: KeyframeLoaderSettings

    def __init__(
        self,
        source: DetectionSource,
        frames: FrameSettings,
        loader: KeyframeLoaderSettings,
        predict_videos: Sequence[str | Path] | None,
        augmentation: ClipTransform,
    ) -> None:
        super().__init__(source, frames, loader, predict_videos)
        if frames.maps is not None and not augmentation.mirrors_alone:
            raise UserError(
                "scales or recolours frames, but data.frames.maps holds those of frames and their mirror images alone",
                where="data.augmentation",
                remedy="leave scale_range, brightness, contrast and saturation out, or read pixels (maps: null)",
            )
        self.augmentation = augmentation
        self.skips_broken = loader.on_error == "skip"
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
    def maps(self) -> MapFacts | None:
        """The stem whose maps stand in the place of pixels; None where there are pixels."""
        return self.store.about if isinstance(self.store, FeatureMaps) else None

    @property
    def evaluation_grid(self) -> int:
        """Stride of the stream whose keyframes are evaluated."""
        raise NotImplementedError

    def true_keyframes(self, split: Split) -> list[TrueKeyframe]:
        """Return the keyframes that detectors are scored on; nothing is decoded for it, and ``setup`` is not needed.

        Videos that do not open are left out and reported where ``on_error`` is ``skip``.
        """
        return true_keyframes(self._unread(split), self.evaluation_grid, self.source.start_seconds)

    def seconds_since_start(self, split: Split) -> list[np.ndarray]:
        """Return the seconds since actions of ``true_keyframes`` began; see ``since_start.seconds_since_start``."""
        return seconds_since_start(self._unread(split), self.evaluation_grid)

    def seconds_until_end(self, split: Split) -> list[np.ndarray]:
        """Return the seconds until actions of ``true_keyframes`` end; see ``since_start.seconds_until_end``."""
        return seconds_until_end(self._unread(split), self.evaluation_grid)

    def speeds(self, split: Split) -> list[np.ndarray]:
        """Return the speeds of the people of ``true_keyframes``; see ``since_start.speeds``."""
        return speeds(self._unread(split), self.evaluation_grid)

    def sampled_frames(self, split: Split) -> dict[str, int]:
        """Return the number of sampled frames of each video of ``true_keyframes``, annotated or not, by video id."""
        grid = self.evaluation_grid
        return {video.video_id: num_slots(len(video.facts.times), grid) for video in self._unread(split)}

    def sampled_seconds(self, split: Split) -> dict[str, np.ndarray]:
        """Return the time of each of the ``sampled_frames``, as ``true_keyframes`` counts them, by video id."""
        grid, start = self.evaluation_grid, self.source.start_seconds
        return {video.video_id: start + video.facts.times[::grid] for video in self._unread(split)}

    def frame_reader(self, split: Split) -> Callable[[str, float], np.ndarray | None]:
        """Return what gives the frame (H, W, 3) uint8 of a video at some seconds, as ``true_keyframes`` counts them.

        It gives None for seconds outside of the video.
        """
        store = DecodedFrames(self.store.scale)
        videos = {video.video_id: video for video in self._unread(split)}

        def frame_at(video_id: str, seconds: float) -> np.ndarray | None:
            video, times = videos[video_id], videos[video_id].facts.times
            moment = seconds - self.source.start_seconds
            if not times[0] - FRAME_SECONDS <= moment <= times[-1] + FRAME_SECONDS:
                return None
            return store.get(video.path, [int(np.abs(times - moment).argmin())])[0]

        return frame_at

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
        if shared := [video for video in timed if len(video.shared_moments)]:
            count, moment = sum(len(video.shared_moments) for video in shared), shared[0].shared_moments[0]
            text = (
                f"{count} annotated moments fall on a frame that an earlier one has, such as {moment:.3f} s of "
                f"{shared[0].video_id}; nothing is trained on them; give rows of one frame the same time"
            )
            rank_zero_warn(printable(text))
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
            raise UserError(
                f"the {split} split is annotated at one in {np.median(steps):g} of the frames that a stream of stride "
                f"{self.evaluation_grid} takes, too seldom to say where its tubes begin and end",
                where="model.detection.video_map",
                remedy="choose a stride at least as large as the spacing of the annotation, or leave it out",
            )
        return tubes
