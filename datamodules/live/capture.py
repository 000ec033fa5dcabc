"""Live frames in a thread of their own: the newest are kept, lost sources are looked for again.

A model that is slower than its camera must not queue frames: the delay would grow without end. So frames are received
and decoded as they come. Those due by the ``TimeGrid`` wait in a queue of bounded length; where it is full the oldest
is dropped and counted.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple

import numpy as np

from datamodules.errors import UserError, printable
from datamodules.live.sources import Arrival, LiveSource
from datamodules.sampling.time_grid import TimeGrid
from datamodules.video.listing import VideoError

FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0
"""Between two attempts to reconnect; every wait is twice the one before."""
LARGEST_POWER = 30
"""Largest power of two in a pause."""
LARGEST_JUMP_SECONDS = 1.0
"""A time stamp that runs ahead of the clock by more is not believed."""
POLL_SECONDS = 0.1
"""Longest time in which a wait for frames does not notice that the run shall stop."""


class LiveFrame(NamedTuple):
    """A received frame that waits for the model."""

    picture: Callable[[], np.ndarray]
    """Gives the pixels, (h, w, 3) uint8 RGB."""
    seconds: float
    """Since the first frame of the run, by the source's time stamps where it has any."""
    index: int
    """Number of frames received before it."""
    received: float
    """``time.monotonic`` when it was there."""
    pause: float = 0.0
    """The longest time in seconds between two frames that came after the one taken before, this one included."""


class StreamClock:
    """One time axis for the frames of a source, also where it is lost, restarts its time stamps, or jumps.

    The step from one frame to the next is that of their time stamps, since frames arrive in bursts. Without time
    stamps, or where they go back or run ahead by more than LARGEST_JUMP_SECONDS, it is the time that has really passed.
    """

    def __init__(self) -> None:
        self.now: float | None = None
        self._stamp: float | None = None
        self._received = 0.0

    def tick(self, stamp: float | None, received: float) -> float:
        """Seconds since the first frame of one that is stamped and was received at these moments."""
        if self.now is None:
            self.now = 0.0
        else:
            passed = received - self._received
            step = passed if stamp is None or self._stamp is None else stamp - self._stamp
            self.now += step if 0 < step <= passed + LARGEST_JUMP_SECONDS else passed
        self._stamp, self._received = stamp, received
        return self.now

    def reconnect(self) -> None:
        """The next time stamp has nothing to do with the last."""
        self._stamp = None


@dataclass(frozen=True)
class LiveSettings:
    """Patience with a live source.

    Args:
        queue_frames: live frames that may wait for the model, see ``LiveCapture``.
        max_gap_seconds: longest gap over which a live stream goes on.
        stall_seconds: a network stream counts as lost after so long without data.
        reconnect_attempts: attempts in a row after which a lost live source is given up; None looks for it for ever.
    """

    queue_frames: int = 1
    max_gap_seconds: float = 2.0
    stall_seconds: float = 5.0
    reconnect_attempts: int | None = 10

    def __post_init__(self) -> None:
        for name in ("queue_frames", "max_gap_seconds", "stall_seconds"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.reconnect_attempts is not None and self.reconnect_attempts < 0:
            raise UserError(f"reconnect_attempts must not be negative, got {self.reconnect_attempts}")


class LiveCapture:
    """Iterator over the newest frames of a live source, received by a thread.

    A source that cannot be opened in the first place is an error at once, unless it is ``awaited``. One that is lost
    later is looked for again, after 0.5 s, 1 s, 2 s, ... up to 30 s; pauses are reported as long as they grow.

    Args:
        source: where frames come from.
        grid: which of them are due.
        stop: ends the iteration when it is set.
        queue_frames: frames that may wait; 1 always takes the newest, more even out sources that deliver in bursts, at
            the cost of as much delay.
        reconnect_attempts: attempts in a row after which a lost source is given up, with a ``VideoError``; None goes on
            for ever.
        max_seconds: duration of the iteration, whether frames came or not; None sets no limit.
        first_wait_seconds: before the first attempt to reconnect.
        awaited: whether a source that was never there, or that sends what is no stream, is looked for like a lost one.
        changed: notified of every frame and of the end; one of several captures may wait for all of them.

    Attributes:
        received: frames that came in so far, due or not.
        dropped: frames that were due and left out so far.
        reconnections: how often the source was found again so far.
        connected: whether the connection that there is has given frames.
        newest: ``time.monotonic`` when the newest frame came in.
        problem: why the source is lost; None while it is there.
        error: why it was given up.
    """

    def __init__(
        self,
        source: LiveSource,
        grid: TimeGrid,
        stop: threading.Event,
        queue_frames: int = 1,
        reconnect_attempts: int | None = 10,
        max_seconds: float | None = None,
        first_wait_seconds: float = FIRST_WAIT_SECONDS,
        awaited: bool = False,
        changed: threading.Condition | None = None,
    ) -> None:
        self.source = source
        self.grid = grid
        self.stop = stop
        self.queue_frames = queue_frames
        self.reconnect_attempts = reconnect_attempts
        self.max_seconds = math.inf if max_seconds is None else max_seconds
        self.first_wait_seconds = first_wait_seconds
        self.awaited = awaited
        self.received = self.dropped = self.reconnections = 0
        self.connected, self.newest = False, -math.inf
        self.problem: str | None = None
        self.error: Exception | None = None
        self._clock = StreamClock()
        self._pause = 0.0
        self._queue: deque[LiveFrame] = deque()
        self._changed = changed or threading.Condition()
        self._deadline = math.inf
        # A daemon: a decoder that waits for data cannot be woken, and must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, name=f"capture {source.name}", daemon=True)

    def __enter__(self) -> LiveCapture:
        self.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop.set()
        self.join(timeout=1.0)

    def start(self) -> None:
        self._deadline = time.monotonic() + self.max_seconds
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Wait for the thread, which ends when ``stop`` is set and its source gives something or times out."""
        self._thread.join(timeout)

    def __iter__(self) -> Iterator[LiveFrame]:
        while (frame := self._next()) is not None:
            yield frame

    def _next(self) -> LiveFrame | None:
        with self._changed:
            while not self._queue:
                if self.error is not None:
                    raise self.error
                if self.is_over:
                    return None
                self._changed.wait(POLL_SECONDS)
            return None if self.is_over else self._queue.popleft()

    @property
    def is_over(self) -> bool:
        """Return whether it was stopped or its time has run out."""
        return self.stop.is_set() or time.monotonic() > self._deadline

    @property
    def has_frame(self) -> bool:
        return bool(self._queue) and not self.is_over

    def take(self) -> LiveFrame:
        """Return the next frame at once; ``has_frame`` says whether there is one."""
        with self._changed:
            return self._queue.popleft()

    def _run(self) -> None:
        try:
            self._receive()
        except Exception as error:
            self.error, self.problem = error, str(error)
        self.connected = False
        with self._changed:
            self._changed.notify_all()

    def _receive(self) -> None:
        """Receive until stopped, over as many connections as it takes."""
        name, attempts = self.source.name, 0
        while not self.stop.is_set():
            before = self.received
            try:
                self._receive_once(lost=attempts > 0 and self.received > 0)
                reason = "the stream ended"
            except ConnectionError as error:
                reason = str(error)
            except VideoError as error:
                if not self.awaited:
                    raise
                reason = error.problem
            self.connected = False
            if not self.stop.is_set():
                self.problem = reason
            if self.received == 0 and not self.awaited:
                raise VideoError(f"cannot be opened ({reason})", name, "check the address, and that the camera is on")
            attempts = 0 if self.received > before else attempts
            if attempts == self.reconnect_attempts:
                raise VideoError(f"lost ({reason}), and {attempts} attempts to reconnect failed", name)
            # Bounded, since a camera may be looked for over weeks.
            longer = self.first_wait_seconds * 2.0 ** min(attempts, LARGEST_POWER)
            wait, is_news = min(longer, LONGEST_WAIT_SECONDS), longer < 2 * LONGEST_WAIT_SECONDS
            attempts += 1
            if is_news and not self.stop.is_set():
                from lightning.pytorch.utilities import rank_zero_info

                rank_zero_info(f"{printable(name)}: {reason}; attempt {attempts} to reconnect in {wait:g} s")
            self.stop.wait(wait)

    def _receive_once(self, lost: bool) -> None:
        """Receive until the connection ends. ``lost``: there was one before."""
        self._clock.reconnect()
        with closing(iter(self.source)) as arrivals:
            for arrival in arrivals:
                if self.stop.is_set():
                    return
                if lost:
                    self.reconnections, lost = self.reconnections + 1, False
                    from lightning.pytorch.utilities import rank_zero_info

                    rank_zero_info(f"{printable(self.source.name)}: is back")
                self._deliver(arrival)

    def _deliver(self, arrival: Arrival) -> None:
        received = time.monotonic()
        self.connected, self.newest, self.problem = True, received, None
        before = self._clock.now
        seconds = self._clock.tick(arrival.seconds, received)
        if before is not None:
            self._pause = max(self._pause, seconds - before)
        if self.grid.takes(seconds):
            self._put(LiveFrame(arrival.picture, seconds, self.received, received, self._pause))
            self._pause = 0.0
        self.received += 1

    def _put(self, frame: LiveFrame) -> None:
        with self._changed:
            self._queue.append(frame)
            if len(self._queue) > self.queue_frames:
                pause = self._queue.popleft().pause
                self._queue[0] = self._queue[0]._replace(pause=max(pause, self._queue[0].pause))
                self.dropped += 1
            self._changed.notify_all()
