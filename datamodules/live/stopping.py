"""Ctrl-C as the end of a stream, so that what was found until then is written and closed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stopped_by_signals(stop: threading.Event, ends: Collection[int] = (signal.SIGINT,)) -> Iterator[None]:
    """Let the first Ctrl-C, or SIGTERM, set ``stop``; the second is as usual.

    Args:
        stop: ends the stream.
        ends: signals after which all is well, since the stream has no other end. What the others usually do is done
            when the stream has ended, since something is missing then.
    """
    if threading.current_thread() is not threading.main_thread():  # only there signals are handled
        yield
        return
    usual = {number: signal.getsignal(number) for number in SIGNALS}
    received: list[int] = []

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def handle(number: int, frame: object) -> None:
        restore()
        received.append(number)
        stop.set()

    for number in SIGNALS:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
    if received and received[0] not in ends:
        signal.raise_signal(received[0])
