"""Any video, file or camera, as StreamBatches of one lane; what ``predict`` and ``StreamSession`` read from."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from datamodules.batches import Capture, StreamBatch
from datamodules.frames.store import FrameScale
from datamodules.live.capture import LiveCapture, LiveFrame, LiveSettings
from datamodules.live.sources import LiveSource, live_source
from datamodules.sampling.collate import stack_frames
from datamodules.sampling.time_grid import TimeGrid, frames_on_grid
from datamodules.video.listing import VideoError
from datamodules.video.picture_folder import Video
from datamodules.video.readers import VideoReader, list_video, open_video
from datamodules.video.source_files import files_of

T = TypeVar("T")


class PredictedVideo(NamedTuple):
    """A file to predict on."""

    video_id: str
    path: Video
    frames: np.ndarray
    """(S,) int64, the frames that are sampled."""
    times: np.ndarray
    """(S,) float64, seconds at which they are shown."""


class FrameStream:
    """Frames of a source, sampled by their time stamps, one every ``period_seconds``.

    A file is read to its end, ``chunk_frames`` at a time. Each batch of a live source is its newest frame. The stream
    starts anew, like another video, after a long gap and when frames change their size.

    Args:
        source: see ``PredictDataModule``, as are the others.
        period_seconds: from one sampled frame to the next.
        scale: the size of the frames.
        num_classes: of the labels, which are empty.
    """

    def __init__(
        self,
        source: str,
        period_seconds: float,
        scale: FrameScale,
        num_classes: int,
        chunk_frames: int = 8,
        picture_rate: float = 30.0,
        max_frames: int | None = None,
        max_seconds: float | None = None,
        live: LiveSettings = LiveSettings(),
    ) -> None:
        self.source, self.period_seconds, self.scale, self.num_classes = source, period_seconds, scale, num_classes
        self.chunk_frames, self.picture_rate = chunk_frames, picture_rate
        self.max_frames, self.max_seconds = max_frames, max_seconds
        self.live_settings = live
        self.live: LiveSource | None = live_source(source, live.stall_seconds)
        self.videos: tuple[PredictedVideo, ...] = ()
        self.input_files: tuple[Path, ...] = ()
        self.stop = threading.Event()
        """Ends the batches when it is set."""
        self._shape: tuple[int, ...] | None = None
        """Shape of the newest live frame."""

    @property
    def live_name(self) -> str | None:
        """Name of a live source, which only one process can read."""
        return None if self.live is None else self.live.name

    @property
    def is_endless(self) -> bool:
        """Return whether it is a live source."""
        return self.live is not None

    def find(self, rank: int = 0, world_size: int = 1) -> None:
        """Look into the files of the source; one of several processes takes its share of them.

        Raises:
            UserError: there is no such source, or none of its files can be read.
        """
        if self.live is None:
            files = files_of(self.source, self.picture_rate)
            self.input_files = tuple(video for _, video in files if isinstance(video, Path))
            self.videos = tuple(self._listed(files, reports=rank == 0)[rank::world_size])

    def num_batches(self) -> int | None:
        """Return how many batches there will be if nothing is broken or stopped; None of a live source."""
        if self.live is not None:
            return None
        return sum(-(-len(video.frames) // self.chunk_frames) for video in self.videos)

    def batches(self) -> Iterator[StreamBatch]:
        """Read the source, see ``find``."""
        self.restart()
        return _read_ahead(self._of_files()) if self.live is None else self._of_live(self.live)

    def restart(self) -> None:
        """Forget what was read, and that it was to stop; the next live frame is the first of its stream."""
        self.stop.clear()
        self._shape = None

    def _listed(self, files: list[tuple[str, Video]], reports: bool) -> list[PredictedVideo]:
        """Look into files; those that cannot be read are reported and left out, unless none remains."""
        from tqdm import tqdm

        listed, broken = [], []
        for video_id, path in tqdm(files, desc="Looking into files", disable=len(files) < 2, leave=False):
            try:
                listing = list_video(path)
                self.scale.size(listing.height, listing.width, path)
            except VideoError as error:
                broken.append(error)
                continue
            times = listing.times
            times = times[: np.searchsorted(times, times[0] + (self.max_seconds or np.inf))]
            frames = frames_on_grid(times, self.period_seconds)[: self.max_frames]
            listed.append(PredictedVideo(video_id, path, frames, times[frames]))
        if not listed:
            raise (
                broken[0]
                if len(files) == 1
                else VideoError(f"{self.source}: none of its {len(files)} videos can be read; the first: {broken[0]}")
            )
        for error in broken if reports else ():
            warnings.warn(f"left out: {error}", stacklevel=2)
        return listed

    def _of_files(self) -> Iterator[StreamBatch]:
        for video in self.videos:
            try:
                with open_video(video.path) as reader:
                    for start in range(0, len(video.frames), self.chunk_frames):
                        if self.stop.is_set():
                            return
                        chunk = slice(start, start + self.chunk_frames)
                        pictures, damage = _up_to_damage(reader, video.frames[chunk])
                        known = slice(start, start + len(pictures))
                        if len(pictures):
                            yield self._batch(
                                video.video_id,
                                pictures,
                                video.times[known],
                                video.frames[known],
                                is_first=start == 0,
                                is_last=damage is not None or chunk.stop >= len(video.frames),
                            )
                        if damage is not None:
                            raise damage
            except VideoError as error:
                warnings.warn(f"read only in part: {error}", stacklevel=2)

    def _of_live(self, source: LiveSource) -> Iterator[StreamBatch]:
        grid = TimeGrid(self.period_seconds)
        limits = (self.live_settings.queue_frames, self.live_settings.reconnect_attempts, self.max_seconds)
        with LiveCapture(source, grid, self.stop, *limits) as capture:
            for frame in islice(capture, self.max_frames):
                yield self.live_batch(source.name, frame, capture)

    def live_batch(self, name: str, frame: LiveFrame, capture: LiveCapture) -> StreamBatch:
        """Return the next frame of a live source as a batch, which may start the stream anew."""
        picture = frame.picture()
        # Not the time since the frame before: a model that is slower than its camera leaves frames out.
        is_first = self._shape != picture.shape or frame.pause > self.live_settings.max_gap_seconds
        if is_first and self._shape is not None:
            from lightning.pytorch.utilities import rank_zero_info

            height, width = picture.shape[:2]
            rank_zero_info(f"{name}: starts anew after {frame.pause:.1f} s with {width}x{height} pixels")
        batch = self._batch(name, picture[None], [frame.seconds], [frame.index], is_first, is_last=False)
        self._shape = picture.shape
        received = torch.tensor([[frame.received]], dtype=torch.float64)
        return batch._replace(capture=Capture(received, capture.dropped, capture.reconnections))

    def _batch(
        self,
        video_id: str,
        pictures: np.ndarray,
        times: Sequence[float] | np.ndarray,
        indices: Sequence[int] | np.ndarray,
        is_first: bool,
        is_last: bool,
    ) -> StreamBatch:
        scaled = self.scale(pictures, video_id)
        return stream_batch(video_id, pictures, scaled, times, indices, is_first, is_last, self.num_classes)


def stream_batch(
    video_id: str,
    pictures: np.ndarray,
    scaled: np.ndarray,
    times: Sequence[float] | np.ndarray,
    indices: Sequence[int] | np.ndarray,
    is_first: bool,
    is_last: bool,
    num_classes: int,
) -> StreamBatch:
    """Return T pictures (T, h, w, 3), ``scaled`` for the network and shown at ``times``, as a chunk of one lane."""
    frames, image_sizes = stack_frames([scaled])
    length = len(pictures)
    return StreamBatch(
        frames=frames,
        image_sizes=image_sizes,
        is_first=torch.tensor([is_first]),
        is_valid=torch.ones(1, length, dtype=torch.bool),
        is_last=torch.tensor([is_last]),
        annotated=torch.zeros(1, length, dtype=torch.bool),
        boxes=(torch.empty(0, 4),) * length,
        labels=(torch.empty(0, num_classes),) * length,
        video_ids=(video_id,),
        timestamps=torch.tensor(np.asarray(times, np.float64))[None],
        original_sizes=torch.tensor([pictures.shape[1:3]]),
        frame_indices=torch.tensor(np.asarray(indices, np.int64))[None],
        pictures=tuple(pictures),
    )


def _up_to_damage(reader: VideoReader, frames: np.ndarray) -> tuple[np.ndarray, VideoError | None]:
    """Return the pictures before the first that cannot be read, and what is wrong with that one."""
    try:
        return reader.get(frames), None
    except VideoError:
        pictures: list[np.ndarray] = []
    try:
        for frame in frames:
            pictures.extend(reader.get([frame]))
    except VideoError as error:
        return np.asarray(pictures), error
    return np.asarray(pictures), None


def _read_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the same items; the next one is made while the last is used."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = pool.submit(next, items, None)
            yield item
