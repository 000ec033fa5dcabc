"""Any video without annotation, file or camera, as a stream to predict on."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from datamodules.batches import Capture, StreamBatch
from datamodules.errors import UserError
from datamodules.frames.store import FrameScale, Interpolation
from datamodules.live.capture import LiveCapture, LiveSettings
from datamodules.live.sources import LiveSource, live_source
from datamodules.live.stopping import stopped_by_signals
from datamodules.sampling.collate import stack_frames
from datamodules.sampling.time_grid import TimeGrid, frames_on_grid
from datamodules.settings import require_positive
from datamodules.text_files import check_names, read_class_list
from datamodules.video.listing import VideoError
from datamodules.video.picture_folder import Video
from datamodules.video.readers import list_video, open_video
from datamodules.video.source_files import SOURCES, files_of

ENDLESS = 2**31
"""Length of what has none. Of a loader without a length Lightning reads one batch ahead, which delays live frames."""

T = TypeVar("T")


class PredictedVideo(NamedTuple):
    """A file to predict on."""

    video_id: str
    path: Video
    frames: np.ndarray
    """(S,) int64, the frames that are sampled."""
    times: np.ndarray
    """(S,) float64, seconds at which they are shown."""


class PredictDataModule(LightningDataModule):
    """StreamBatches of one lane from a video file, a folder of videos or pictures, a camera or a network stream.

    Frames are sampled by their time stamps, one every ``frame_stride / frame_rate`` seconds, so that a network sees the
    pace it was trained on whatever the frame rate of the source. A file is read to its end, ``chunk_frames`` at a time;
    of a live source each frame is a batch, the newest there is, and frames that the model is too slow for are dropped
    and counted. Ctrl-C ends the stream as if it had come to its end, so that everything found is written.

    A live stream starts anew, as another video would, after ``max_gap_seconds`` without a frame and when its frames
    change their size.

    Args:
        source: a video file; a folder of videos, sub-folders included, or of numbered pictures; the number of a camera
            or its device file; an address (``rtsp://``, ``http://``, ...).
        classes: names of the network's classes, or a text file with one a line.
        frame_stride, frame_rate: the stride the network was trained with, and the frames a second of the videos it was
            trained on.
        short_side: length of the frames' short side in pixels; None keeps the video's size.
        max_long_side: frames whose long side would be longer are made smaller; None sets no limit.
        interpolation: ``area`` averages areas when frames shrink, ``bilinear`` does not (EVAD).
        chunk_frames: frames a step of a file.
        picture_rate: pictures a second of a folder of pictures.
        max_frames: sampled frames after which to stop: of each file, or of a live source.
        max_seconds: of each file, or of running on a live source.
        live: patience with a live source.
    """

    allow_zero_length_dataloader_with_multiple_devices = True  # fewer files than devices

    def __init__(
        self,
        source: str | None,
        classes: list[str] | str,
        frame_stride: int = 4,
        frame_rate: float = 30.0,
        short_side: int | None = None,
        max_long_side: int | None = None,
        interpolation: Interpolation = "area",
        chunk_frames: int = 8,
        picture_rate: float = 30.0,
        max_frames: int | None = None,
        max_seconds: float | None = None,
        live: LiveSettings = LiveSettings(),
    ) -> None:
        super().__init__()
        if not source:
            raise UserError("nothing to predict on", remedy=SOURCES)
        positive = {"frame_stride": frame_stride, "frame_rate": frame_rate, "chunk_frames": chunk_frames}
        positive |= {"picture_rate": picture_rate, "max_frames": max_frames, "max_seconds": max_seconds}
        require_positive(**positive)
        self.source = source
        self.class_names = _class_names(classes)
        self.frame_stride = frame_stride
        self.period_seconds = frame_stride / frame_rate
        self.scale = FrameScale(short_side, max_long_side, interpolation)
        self.chunk_frames = chunk_frames
        self.picture_rate = picture_rate
        self.max_frames = max_frames
        self.max_seconds = max_seconds
        self.live_settings = live
        self.live: LiveSource | None = live_source(source, live.stall_seconds)
        self.videos: tuple[PredictedVideo, ...] = ()
        self.input_files: tuple[Path, ...] = ()
        self._stop = threading.Event()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def setup(self, stage: str) -> None:
        if stage != "predict":
            raise UserError(f"PredictDataModule knows no truth, so there is nothing to {stage}", remedy="use predict")
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        if self.live is None:
            files = files_of(self.source, self.picture_rate)
            self.input_files = tuple(video for _, video in files if isinstance(video, Path))
            self.videos = tuple(self._listed(files)[rank::world_size])
        elif world_size > 1:
            raise UserError(f"can be read by one process, not {world_size}", self.live.name, "set --trainer.devices 1")

    def teardown(self, stage: str) -> None:
        self._stop.set()

    def on_exception(self, exception: BaseException) -> None:
        self._stop.set()

    def predict_dataloader(self) -> _Batches:
        self._stop.clear()
        return _Batches(self)

    def num_batches(self) -> int:
        """How many batches there will be if nothing is broken or stopped."""
        if self.live is not None:
            return ENDLESS
        return sum(-(-len(video.frames) // self.chunk_frames) for video in self.videos)

    def batches(self) -> Iterator[StreamBatch]:
        with stopped_by_signals(self._stop):
            yield from _read_ahead(self._of_files()) if self.live is None else self._of_live(self.live)

    def _listed(self, files: list[tuple[str, Video]]) -> list[PredictedVideo]:
        """What is in the files; those that cannot be read are told and left out, unless none remains."""
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
        for error in broken:
            rank_zero_warn(f"left out: {error}")
        return listed

    def _of_files(self) -> Iterator[StreamBatch]:
        for video in self.videos:
            try:
                with open_video(video.path) as reader:
                    for start in range(0, len(video.frames), self.chunk_frames):
                        if self._stop.is_set():
                            return
                        chunk = slice(start, start + self.chunk_frames)
                        pictures = reader.get(video.frames[chunk])
                        yield self._batch(
                            video.video_id,
                            pictures,
                            video.times[chunk],
                            video.frames[chunk],
                            is_first=start == 0,
                            is_last=chunk.stop >= len(video.frames),
                        )
            except VideoError as error:
                rank_zero_warn(f"read only in part: {error}")

    def _of_live(self, source: LiveSource) -> Iterator[StreamBatch]:
        grid = TimeGrid(self.period_seconds)
        limits = (self.live_settings.queue_frames, self.live_settings.reconnect_attempts, self.max_seconds)
        size, seconds = None, 0.0
        with LiveCapture(source, grid, self._stop, *limits) as capture:
            for frame in islice(capture, self.max_frames):
                picture, gap = frame.picture(), frame.seconds - seconds
                is_first = size != picture.shape or gap > self.live_settings.max_gap_seconds
                if is_first and size is not None:
                    height, width = picture.shape[:2]
                    rank_zero_info(f"{source.name}: starts anew after {gap:.1f} s with {width}x{height} pixels")
                size, seconds = picture.shape, frame.seconds
                batch = self._batch(source.name, picture[None], [frame.seconds], [frame.index], is_first, is_last=False)
                received = torch.tensor([[frame.received]], dtype=torch.float64)
                yield batch._replace(capture=Capture(received, capture.dropped, capture.reconnections))

    def _batch(
        self,
        video_id: str,
        pictures: np.ndarray,
        times: Sequence[float] | np.ndarray,
        indices: Sequence[int] | np.ndarray,
        is_first: bool,
        is_last: bool,
    ) -> StreamBatch:
        """T pictures (T, h, w, 3) that are shown at ``times`` as a chunk of one lane."""
        frames, image_sizes = stack_frames([self.scale(pictures, video_id)])
        length = len(pictures)
        return StreamBatch(
            frames=frames,
            image_sizes=image_sizes,
            is_first=torch.tensor([is_first]),
            is_valid=torch.ones(1, length, dtype=torch.bool),
            is_last=torch.tensor([is_last]),
            annotated=torch.zeros(1, length, dtype=torch.bool),
            boxes=(torch.empty(0, 4),) * length,
            labels=(torch.empty(0, self.num_classes),) * length,
            video_ids=(video_id,),
            timestamps=torch.tensor(np.asarray(times, np.float64))[None],
            original_sizes=torch.tensor([pictures.shape[1:3]]),
            frame_indices=torch.tensor(np.asarray(indices, np.int64))[None],
            pictures=tuple(pictures),
        )


class _Batches:
    """What Lightning iterates over."""

    def __init__(self, data: PredictDataModule) -> None:
        self.data = data

    def __iter__(self) -> Iterator[StreamBatch]:
        return self.data.batches()

    def __len__(self) -> int:
        return self.data.num_batches()


def _class_names(classes: list[str] | str) -> tuple[str, ...]:
    if isinstance(classes, str):
        return read_class_list(classes)
    names = tuple(name.strip() for name in classes)
    if not all(names):
        raise UserError(f"there must be class names, got {', '.join(names) or 'none'}", "data.classes")
    check_names(names, "data.classes", "class")
    return names


def _read_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; the next one is made while the last is used."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = pool.submit(next, items, None)
            yield item
