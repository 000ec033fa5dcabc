"""Many sources in one process: those that have a frame share a step of the network, and none waits for another."""

from __future__ import annotations

import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import torch

from datamodules.batches import Capture, SourceHealth, StreamBatch
from datamodules.errors import printable
from datamodules.frame_stream import FrameStream
from datamodules.live.capture import POLL_SECONDS
from datamodules.live.lanes import CameraLane, FileLane, Lane
from datamodules.live.source_list import NamedSource
from datamodules.video.listing import VideoError

JOIN_SECONDS = 1.0
"""Time for threads to end; those whose source sends nothing may take longer, and end with the program."""


class CameraFeed:
    """StreamBatches of one frame from each source that has one.

    Row i of a batch is the lane ``lanes[i]``, which is the number of the source. Frames of a batch have one padded
    size, so no camera's predictions depend on those of another. Where sizes differ, that source goes first which has
    waited for longest, with those of its size.

    Reconnection to a camera that is lost, was never there or sends garbage is tried with growing pauses, while the
    others go on. Each starts anew as a single one does, see ``PredictDataModule``. Files are read to their ends, frame
    by frame, as fast as the network takes them. The feed ends when all sources have ended or were given up.

    Args:
        sources: each becomes a lane.
        stream: makes the stream of frames of a source, one frame a chunk.
    """

    def __init__(self, sources: Sequence[NamedSource], stream: Callable[[str], FrameStream]) -> None:
        self.names = tuple(source.name for source in sources)
        self.streams = tuple(stream(source.text) for source in sources)
        self.stop = threading.Event()
        """Ends the batches when it is set."""
        self.input_files: tuple[Path, ...] = ()
        self._broken: dict[int, VideoError] = {}
        self._changed = threading.Condition()
        self._lanes: dict[int, Lane] = {}
        self._given_up: set[int] = set()

    @property
    def live_name(self) -> str:
        """Name of the source that only one process can read."""
        return f"a list of {len(self.names)} sources"

    @property
    def is_endless(self) -> bool:
        """Return whether there is a live source."""
        return any(stream.live is not None for stream in self.streams)

    def find(self, rank: int = 0, world_size: int = 1) -> None:
        """Look into the files of the list; those that cannot be read are reported and left out.

        Raises:
            UserError: there is no such file, or no source remains.
        """
        self._broken = {}
        for number, stream in enumerate(self.streams):
            try:
                stream.find()
            except VideoError as error:
                self._broken[number] = error
        if len(self._broken) == len(self.streams):
            raise next(iter(self._broken.values()))
        for error in self._broken.values():
            warnings.warn(f"left out: {error}", stacklevel=2)
        self.input_files = tuple(chain.from_iterable(stream.input_files for stream in self.streams))

    def num_batches(self) -> None:
        """Nobody knows: it depends on how many sources have a frame at a time."""
        return None

    def health(self) -> tuple[SourceHealth, ...]:
        """Return how each source is, in the order of the list."""
        return tuple(
            SourceHealth(name, "given up", 0, 0, 0, self._broken[number].problem)
            if number in self._broken
            else self._lanes[number].health()
            if number in self._lanes
            else SourceHealth(name, "connecting", 0, 0, 0, None)
            for number, name in enumerate(self.names)
        )

    def batches(self) -> Iterator[StreamBatch]:
        """Read the sources, see ``find``.

        Raises:
            VideoError: every source was given up.
        """
        self.stop.clear()
        self._given_up = set()
        self._lanes = {number: self._lane(number) for number in range(len(self.names)) if number not in self._broken}
        return self._of_lanes(self._lanes)

    def _lane(self, number: int) -> Lane:
        name, stream = self.names[number], self.streams[number]
        if stream.live is None:
            return FileLane(name, stream, self._changed)
        return CameraLane(name, stream, stream.live, self._changed)

    def _of_lanes(self, lanes: dict[int, Lane]) -> Iterator[StreamBatch]:
        served = dict.fromkeys(lanes, 0)
        """Step at which each lane had its last frame."""
        with self._running(lanes):
            step = 0
            while ready := self._ready(lanes, served):
                rows: dict[int, StreamBatch] = {}
                for number in ready:
                    served[number] = step = step + 1
                    if (row := lanes[number].take()) is not None:
                        rows[number] = row
                for alike in of_one_size(rows):
                    yield self._with_totals(side_by_side(alike), lanes)
        if len(self._given_up) == len(lanes) and not self.stop.is_set():
            error = next(lane.error for lane in lanes.values() if lane.error is not None)
            if len(lanes) == 1 or not isinstance(error, VideoError):
                raise error
            raise VideoError(f"all {len(self.names)} sources were given up; the first: {error}")

    @contextmanager
    def _running(self, lanes: dict[int, Lane]) -> Iterator[None]:
        for lane in lanes.values():
            lane.start()
        try:
            yield
        finally:
            for lane in lanes.values():
                lane.stop()
            until = time.monotonic() + JOIN_SECONDS
            for lane in lanes.values():
                lane.join(max(0.0, until - time.monotonic()))

    def _ready(self, lanes: dict[int, Lane], served: dict[int, int]) -> list[int]:
        """Wait until a lane has a frame, and return it with all that have one of the same size; none at the end."""
        while not self.stop.is_set():
            self._report(lanes)
            with self._changed:
                ready = sorted((number for number, lane in lanes.items() if lane.has_frame), key=served.__getitem__)
                if ready or all(lane.is_over for lane in lanes.values()):
                    size = lanes[ready[0]].size if ready else None
                    return [number for number in ready if lanes[number].size == size]
                self._changed.wait(POLL_SECONDS)
        return []

    def _report(self, lanes: dict[int, Lane]) -> None:
        """Say which lanes were given up, and why, with the traceback of what is no fault of the source."""
        from lightning.pytorch.utilities import rank_zero_warn

        for number, lane in lanes.items():
            if lane.error is not None and number not in self._given_up:
                self._given_up.add(number)
                if not isinstance(lane.error, VideoError):
                    traceback.print_exception(lane.error)
                rank_zero_warn(f"given up: {printable(lane.name)}: {lane.error!r}")

    def _with_totals(self, batch: StreamBatch, lanes: dict[int, Lane]) -> StreamBatch:
        health = [lane.health() for lane in lanes.values()]
        totals = (sum(each.dropped for each in health), sum(each.reconnections for each in health))
        return batch._replace(capture=Capture(batch.capture.received, *totals))


def of_one_size(rows: dict[int, StreamBatch]) -> Iterator[dict[int, StreamBatch]]:
    """Yield the batches of lanes in groups of one padded size, in the order of their first members."""
    groups: dict[tuple[int, ...], dict[int, StreamBatch]] = {}
    for number, row in rows.items():
        groups.setdefault(tuple(row.frames.shape[-2:]), {})[number] = row
    yield from groups.values()


def side_by_side(rows: dict[int, StreamBatch]) -> StreamBatch:
    """Return batches of one row each, of lanes by number and of one padded size, as one batch."""

    def joined(field: str) -> object:
        parts = [getattr(row, field) for row in rows.values()]
        return torch.cat(parts) if isinstance(parts[0], torch.Tensor) else tuple(chain.from_iterable(parts))

    fields = {field: joined(field) for field in StreamBatch._fields if field not in ("capture", "lanes")}
    received = torch.cat([row.capture.received for row in rows.values()])
    return StreamBatch(**fields, capture=Capture(received, 0, 0), lanes=tuple(rows))
