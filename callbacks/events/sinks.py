"""Sinks of events: queues of bounded length, emptied by threads, for which a stream never waits."""

from __future__ import annotations

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from callbacks.files.result_files import say
from datamodules.errors import UserError, printable

Message = Mapping[str, Any]
"""An event as it is reported, see ``callbacks.events.messages``."""
Moments = Literal["began", "ended", "both"]


class NotNow(Exception):
    """An event could not be delivered, which may pass."""


class Refused(Exception):
    """The other side will not take an event, however often it is sent."""


@dataclass(frozen=True)
class Delivery:
    """Settings for sending events: moments, queue, repeated attempts.

    Args:
        moments: when an event is reported: ``ended`` (once, complete), ``began`` (as soon as it has lasted long
            enough), or ``both``.
        queue_events: number of events that may wait; then the oldest is dropped.
        first_wait_seconds: before the second attempt; every further wait is twice as long.
        longest_wait_seconds: the wait no longer grows then. Attempts go on for as long as prediction does.
        closing_seconds: after the end of prediction, what still waits may take so long.
    """

    moments: Moments = "ended"
    queue_events: int = 1000
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 60.0
    closing_seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.queue_events < 1:
            raise UserError(f"queue_events must be at least 1, got {self.queue_events}")
        for name in ("first_wait_seconds", "longest_wait_seconds"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.closing_seconds < 0:
            raise UserError(f"closing_seconds must not be negative, got {self.closing_seconds}")


class EventSink(ABC):
    """Send events to another program, in order, each until it is delivered or refused.

    Sub-classes say how one is sent, see ``deliver``. The thread is one of ``start`` until ``close``.

    Args:
        name: name in messages; holds no password.
        delivery: see ``Delivery``.

    Attributes:
        sent, refused, overflowed: events so far that were delivered, not taken, and dropped because too many waited.
    """

    def __init__(self, name: str, delivery: Delivery) -> None:
        self.name, self.delivery = name, delivery
        self.sent = self.refused = self.overflowed = 0
        self._is_failing = False

    @abstractmethod
    def deliver(self, message: Message) -> None:
        """Send one event, in the sink's thread.

        Raises:
            NotNow: it may be tried again.
            Refused: it need not.
        """

    def start(self) -> None:
        """Begin to send, in a thread."""
        self.sent = self.refused = self.overflowed = 0
        self._accepted = 0
        self._is_failing = False
        self._error: Exception | None = None
        self._waiting: queue.Queue[Message | None] = queue.Queue(self.delivery.queue_events)
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._run, name=f"events to {self.name}", daemon=True)
        self._thread.start()

    def send(self, message: Message) -> None:
        """Take an event, at once; where too many wait the oldest goes."""
        if self._error is not None:
            raise self._error
        if self.delivery.moments not in ("both", message["state"]):
            return
        self._accepted += 1
        self._put(message)

    def close(self) -> None:
        """Give waiting events their last attempts, and report how many were sent, refused and dropped."""
        self._deadline = time.monotonic() + self.delivery.closing_seconds
        self._closing.set()
        with suppress(queue.Full):  # then the thread sees the end once it has emptied the queue
            self._waiting.put_nowait(None)
        self._thread.join(self.delivery.closing_seconds + 1.0)
        if self._error is not None:
            raise self._error
        say(f"{printable(self.name)}: {self.report()}")

    def report(self) -> str:
        """Return how many events were sent, and how many were not, with the reasons."""
        late = self._accepted - self.sent - self.refused - self.overflowed
        reasons = {"refused": self.refused, "dropped, the queue was full": self.overflowed, "not sent in time": late}
        lost = "".join(f", {number} {reason}" for reason, number in reasons.items() if number)
        return f"{self.sent} events sent{lost}"

    def _put(self, message: Message) -> None:
        while True:
            try:
                self._waiting.put_nowait(message)
                return
            except queue.Full:
                with suppress(queue.Empty):
                    self._waiting.get_nowait()
                    self.overflowed += 1

    def _run(self) -> None:
        try:
            while (message := self._next()) is not None:
                self._send_until_taken(message)
        except Exception as error:  # a bug, which the main thread raises
            self._error = error

    def _next(self) -> Message | None:
        while True:
            with suppress(queue.Empty):
                return self._waiting.get(timeout=0.1)
            if self._closing.is_set():
                return None

    def _send_until_taken(self, message: Message) -> None:
        wait = self.delivery.first_wait_seconds
        while time.monotonic() < self._deadline:
            is_last = self._closing.is_set()
            try:
                self.deliver(message)
            except Refused as error:
                self.refused += 1
                say(f"{printable(self.name)}: refused an event: {printable(str(error))}")
                return
            except NotNow as error:
                if not self._is_failing and not is_last:
                    say(f"{printable(self.name)}: {printable(str(error))}; trying again after {wait:g} s, and so on")
                self._is_failing = True
            else:
                self.sent += 1
                if self._is_failing:
                    say(f"{printable(self.name)}: is back")
                self._is_failing = False
                return
            if is_last:  # the end came before this attempt
                return
            self._closing.wait(wait)
            wait = min(2 * wait, self.delivery.longest_wait_seconds)
