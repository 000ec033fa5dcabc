"""Lanes of several sources: each receives or reads in a thread of its own, and gives its next frame as a batch."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Protocol

import torch

from datamodules.batches import Capture, SourceHealth, SourceState, StreamBatch
from datamodules.frame_stream import FrameStream
from datamodules.live.capture import POLL_SECONDS, LiveCapture
from datamodules.live.sources import LiveSource
from datamodules.sampling.time_grid import TimeGrid
from datamodules.video.listing import VideoError

READ_AHEAD = 2
"""Frames of a file that wait for the network."""


class Lane(Protocol):
    """One of several sources."""

    name: str
    size: tuple[int, int] | None
    """Padded height and width of the last frame; None before the first."""
    is_live: bool
    error: Exception | None
    """Reason why it was given up."""

    def start(self) -> None: ...

    @property
    def has_frame(self) -> bool:
        """Return whether ``take`` has a frame to give."""

    @property
    def is_over(self) -> bool:
        """Return whether no further frame will come, apart from those that wait."""

    def take(self) -> StreamBatch | None:
        """Return the next frame, (1, 1, ...), at once; None if it cannot be used."""

    def health(self) -> SourceHealth: ...

    def stop(self) -> None:
        """End the thread soon."""

    def join(self, timeout: float) -> None: ...


class CameraLane:
    """The newest frames of a camera, which may be away for as long as it likes.

    Args:
        name: of the camera.
        stream: of the camera's frames.
        source: the camera; it gets the name.
        changed: notified of every frame and of the end.
    """

    is_live = True

    def __init__(self, name: str, stream: FrameStream, source: LiveSource, changed: threading.Condition) -> None:
        self.name, self.stream = name, stream
        self.size: tuple[int, int] | None = None
        source.name = name
        settings = stream.live_settings
        self.capture = LiveCapture(
            source,
            TimeGrid(stream.period_seconds),
            threading.Event(),
            settings.queue_frames,
            settings.reconnect_attempts,
            stream.max_seconds,
            awaited=True,
            changed=changed,
        )
        self._taken = self._unusable = 0
        self._problem: str | None = None

    @property
    def error(self) -> Exception | None:
        return self.capture.error

    def start(self) -> None:
        self.stream.restart()
        self.capture.start()

    @property
    def has_frame(self) -> bool:
        return self.capture.has_frame

    @property
    def is_over(self) -> bool:
        return self.capture.is_over or self.capture.error is not None

    def take(self) -> StreamBatch | None:
        try:
            batch = self.stream.live_batch(self.name, self.capture.take(), self.capture)
        except VideoError as error:
            self._unusable, self._problem = self._unusable + 1, error.problem
            return None
        self._taken, self._problem = self._taken + 1, None
        self.size = tuple(batch.frames.shape[-2:])
        if self._taken == self.stream.max_frames:
            self.stop()
        return batch

    def health(self) -> SourceHealth:
        capture = self.capture
        dropped = capture.dropped + self._unusable
        problem = capture.problem or self._problem
        return SourceHealth(self.name, self._state(), capture.received, dropped, capture.reconnections, problem)

    def _state(self) -> SourceState:
        capture = self.capture
        if capture.error is not None:
            return "given up"
        if capture.is_over:
            return "ended"
        if capture.connected:
            is_late = time.monotonic() - capture.newest > self.stream.live_settings.max_gap_seconds
            return "stalled" if is_late else "running"
        return "lost" if capture.problem else "connecting"

    def stop(self) -> None:
        self.capture.stop.set()

    def join(self, timeout: float) -> None:
        self.capture.join(timeout)


class FileLane:
    """The frames of a file, or of a folder of them one after the other: all of them, as fast as they are taken.

    Args:
        name: of the source.
        stream: of its frames, one at a time, in which its files have been found.
        changed: notified of every frame and of the end.
    """

    is_live = False

    def __init__(self, name: str, stream: FrameStream, changed: threading.Condition) -> None:
        self.name, self.stream = name, stream
        self.size: tuple[int, int] | None = None
        self.error: Exception | None = None
        self._changed, self._stop = changed, threading.Event()
        self._queue: deque[StreamBatch] = deque()
        self._num_received, self._is_read = 0, False
        self._thread = threading.Thread(target=self._run, name=f"read {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def has_frame(self) -> bool:
        return bool(self._queue) and not self._stop.is_set()

    @property
    def is_over(self) -> bool:
        return self._stop.is_set() or self._is_read

    def take(self) -> StreamBatch | None:
        with self._changed:
            batch = self._queue.popleft()
            self._changed.notify_all()
        self.size = tuple(batch.frames.shape[-2:])
        (video_id,) = batch.video_ids
        # A name that was given counts; the videos of a folder keep their own behind that of the folder.
        video_id = f"{self.name}/{video_id}" if len(self.stream.videos) > 1 else self.name
        # Frames of a file wait for the network, so that their delay is that of the step alone.
        received = torch.tensor([[time.monotonic()]], dtype=torch.float64)
        return batch._replace(video_ids=(video_id,), capture=Capture(received, dropped=0, reconnections=0))

    def health(self) -> SourceHealth:
        state: SourceState = "running" if self._num_received else "connecting"
        if self.error is not None:
            state = "given up"
        elif self.is_over and not self.has_frame:
            state = "ended"
        problem = None if self.error is None else str(self.error)
        return SourceHealth(self.name, state, self._num_received, 0, 0, problem)

    def stop(self) -> None:
        self._stop.set()
        self.stream.stop.set()

    def join(self, timeout: float) -> None:
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            for batch in self.stream.batches():
                if not self._put(batch):
                    break
        except Exception as error:
            self.error = error
        with self._changed:
            self._is_read = True
            self._changed.notify_all()

    def _put(self, batch: StreamBatch) -> bool:
        """Add a frame to those that wait as soon as there is room; False where the lane was stopped meanwhile."""
        with self._changed:
            while len(self._queue) >= READ_AHEAD and not self._stop.is_set():
                self._changed.wait(POLL_SECONDS)
            self._queue.append(batch)
            self._num_received += 1
            self._changed.notify_all()
        return not self._stop.is_set()
