"""Any video without annotation, file or camera, or many of them, as streams to predict on."""

from __future__ import annotations

import signal
import time
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule

from datamodules.batches import Capture, SourceHealth, StreamBatch
from datamodules.errors import UserError
from datamodules.frame_stream import FrameStream
from datamodules.frames.store import FrameScale, Interpolation
from datamodules.live.cameras import CameraFeed
from datamodules.live.capture import LiveSettings
from datamodules.live.source_list import listed_sources
from datamodules.live.stopping import stopped_by_signals
from datamodules.settings import require_positive
from datamodules.text_files import check_names, read_class_list
from datamodules.video.listing import VideoError
from datamodules.video.source_files import SOURCES

ENDLESS = 2**31
"""Length of what has none. Of a loader without a length Lightning reads one batch ahead, which delays live frames."""


class PredictDataModule(LightningDataModule):
    """StreamBatches from a video file, a folder of videos or pictures, a camera, a network stream, or many of them.

    Frames are sampled by their time stamps, one every ``frame_stride / frame_rate`` seconds: the pace that the network
    was trained on, at any frame rate of the source. A file is read to its end, ``chunk_frames`` at a time. Of a live
    source each batch is the newest frame; frames that the model is too slow for are dropped and counted. Ctrl-C ends
    the stream as if it had come to its end, so that everything found is written. SIGTERM does so too, but keeps its
    exit status.

    A live stream starts anew, as another video would, after ``max_gap_seconds`` without a frame and when its frames
    change their size.

    Many sources are read at once, each in its own lane, and share the steps of the network, see ``CameraFeed``.

    Args:
        source: a video file; a folder of videos (sub-folders included) or of numbered pictures; a camera's number or
            device file; an address (``rtsp://``, ``http://``, ...). Or many of them: a list, or a file (.txt, .yaml)
            that lists them, see ``listed_sources``.
        classes: names of the network's classes, or a text file with one per line.
        frame_stride, frame_rate: stride that the network was trained with, and frames per second of the videos it was
            trained on.
        short_side: length of the frames' short side in pixels; None keeps the video's size.
        max_long_side: frames whose long side would be longer are made smaller; None sets no limit.
        interpolation: ``area`` averages areas when frames shrink, ``bilinear`` does not (EVAD).
        chunk_frames: frames per step of a file; one where there are many sources.
        picture_rate: pictures per second of a folder of pictures.
        max_frames: sampled frames after which to stop: of each file and each live source.
        max_seconds: longest part of each file, and longest run on live sources.
        live: patience with a live source.
    """

    allow_zero_length_dataloader_with_multiple_devices = True  # fewer files than devices

    def __init__(
        self,
        source: list[str | int] | str | None,
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
        self.class_names = _class_names(classes)
        self.frame_stride = frame_stride
        stream = partial(
            FrameStream,
            period_seconds=frame_stride / frame_rate,
            scale=FrameScale(short_side, max_long_side, interpolation),
            num_classes=self.num_classes,
            picture_rate=picture_rate,
            max_frames=max_frames,
            max_seconds=max_seconds,
            live=live,
        )
        self.stream: FrameStream | CameraFeed
        if (listed := listed_sources(source)) is None:
            self.stream = stream(source, chunk_frames=chunk_frames)
        else:
            self.stream = CameraFeed(listed, partial(stream, chunk_frames=1))

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def setup(self, stage: str) -> None:
        if stage != "predict":
            raise UserError(
                f"PredictDataModule has no ground truth, so there is nothing to {stage}", remedy="use predict"
            )
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        if self.stream.live_name is not None and world_size > 1:
            name = self.stream.live_name
            raise UserError(f"can be read by one process, not {world_size}", name, "set --trainer.devices 1")
        self.stream.find(rank, world_size)

    @property
    def input_files(self) -> tuple[Path, ...]:
        """Files that are read, which nothing may replace."""
        return self.stream.input_files

    @property
    def is_endless(self) -> bool:
        """Return whether prediction goes on until it is stopped."""
        return self.stream.is_endless

    def source_health(self) -> tuple[SourceHealth, ...]:
        """Return how each of many sources is; of a single one nothing."""
        return self.stream.health() if isinstance(self.stream, CameraFeed) else ()

    def teardown(self, stage: str) -> None:
        self.stream.stop.set()

    def on_exception(self, exception: BaseException) -> None:
        self.stream.stop.set()

    def predict_dataloader(self) -> _Batches:
        return _Batches(self.stream)


class _Batches:
    """The batches that Lightning iterates over; the first Ctrl-C or SIGTERM stops them."""

    def __init__(self, stream: FrameStream | CameraFeed) -> None:
        self.stream = stream

    def __iter__(self) -> Iterator[StreamBatch]:
        with stopped_by_signals(self.stream.stop, self._ends):
            yield from with_ends(self.stream.batches())

    @property
    def _ends(self) -> Collection[int]:
        """Signals that are the end of an endless stream; SIGTERM, which is seldom the user's, keeps its status."""
        return (signal.SIGINT,) if self.stream.is_endless else ()

    def __len__(self) -> int:
        count = self.stream.num_batches()
        return ENDLESS if count is None else count


def with_ends(batches: Iterator[StreamBatch]) -> Iterator[StreamBatch]:
    """Yield batches, then end each of their streams that broke off before its last frame was known, as live ones do.

    So a network whose predictions come late answers the last frames, too.
    """
    ends: dict[int, StreamBatch] = {}
    newest: Capture | None = None
    failure: VideoError | None = None
    try:
        for batch in batches:
            for row, lane in enumerate(batch.lanes or (0,)):
                ends[lane] = end_of(batch, row)
                if batch.is_last[row]:
                    del ends[lane]
            newest = batch.capture
            yield batch
    except VideoError as error:
        failure = error
    for end in ends.values():
        # Nothing has been received: the delay of this batch is that of its step.
        received = torch.tensor([[time.monotonic()]], dtype=torch.float64)
        yield end if newest is None else end._replace(capture=newest._replace(received=received))
    if failure is not None:
        raise failure


def end_of(batch: StreamBatch, row: int) -> StreamBatch:
    """Return a chunk that adds nothing to the stream of a row and ends it; it shows the last frame once more."""
    length, lane, no = batch.frames.shape[1], slice(row, row + 1), torch.zeros(1, 1, dtype=torch.bool)
    last = slice((row + 1) * length - 1, (row + 1) * length)
    return batch._replace(
        frames=batch.frames[lane, -1:].clone(),  # else a lane that is away would keep those of all in memory
        image_sizes=batch.image_sizes[lane],
        is_first=no[0],
        is_valid=no,
        is_last=~no[0],
        annotated=no,
        boxes=batch.boxes[last],
        labels=batch.labels[last],
        video_ids=batch.video_ids[lane],
        timestamps=batch.timestamps[lane, -1:],
        original_sizes=batch.original_sizes[lane],
        frame_indices=batch.frame_indices[lane, -1:],
        pictures=batch.pictures[last],
        lanes=None if batch.lanes is None else batch.lanes[lane],
    )


def _class_names(classes: list[str] | str) -> tuple[str, ...]:
    if isinstance(classes, str):
        return read_class_list(classes)
    names = tuple(name.strip() for name in classes)
    if not all(names):
        raise UserError(f"there must be class names, got {', '.join(names) or 'none'}", "data.classes")
    check_names(names, "data.classes", "class")
    return names
