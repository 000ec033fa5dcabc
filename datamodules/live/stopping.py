"""Ctrl-C as the end of a stream, so that what was found until then is written and closed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stopped_by_signals(stop: threading.Event, is_the_end: bool = True) -> Iterator[None]:
    """Let the first Ctrl-C, or SIGTERM, set ``stop``; the second is as usual.

    Args:
        stop: ends the stream.
        is_the_end: whether the stream has no other end, so that all is well. Otherwise, what the signal usually does
            is done when the stream has ended, since something is missing then.
    """
    signals = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():  # only there signals are handled
        yield
        return
    usual = {number: signal.getsignal(number) for number in signals}
    received: list[int] = []

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def handle(number: int, frame: object) -> None:
        restore()
        received.append(number)
        stop.set()

    for number in signals:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
    if received and not is_the_end:
        signal.raise_signal(received[0])
