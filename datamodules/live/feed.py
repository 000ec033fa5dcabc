"""Bytes of a live stream on their way to the demuxer, of which no picture may take more than a limit.

FFmpeg reads each part of a multipart stream (MJPEG over HTTP) whole, at any length. A broken camera, or another kind of
server, would fill the memory. So one FFmpeg container fetches bare bytes, a second takes them from here, and here they
are counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from datamodules.frames.cache_entries import in_bytes

LARGEST_PART = 64 * 2**20
"""Bytes between two packets. A JPEG of 8192x4320 pixels in the best quality has half as many."""
FETCH: dict[str, Any] = {"format": "data", "options": {"raw_packet_size": str(64 * 2**10), "probesize": "32"}}
"""Arguments of ``av.open`` that fetch bytes as they come; nothing is to be found out of them."""


class StreamTooLarge(ConnectionError):
    """A stream that sends more bytes than any picture has, and no picture."""


class BoundedFeed:
    """A file that only goes forwards, for ``av.open``.

    Args:
        fetched: the container that fetches, opened with ``FETCH``.
        seconds: how long a packet may be on its way.

    Attributes:
        start: the first bytes that came, which tell what kind of stream it is.
    """

    def __init__(self, fetched: Any, seconds: float) -> None:
        self._pieces: Iterator[bytes] = (bytes(packet) for packet in fetched.demux() if packet.size)
        self._taken, self._failed = 0, False
        self.start = self._rest = next(self._pieces, b"")
        self.expect(seconds)

    def expect(self, seconds: float) -> None:
        """A packet is complete; the next may take so many seconds."""
        self._taken, self._deadline = 0, time.monotonic() + seconds

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes; none at the end.

        Raises:
            StreamTooLarge: too many since the last packet.
            TimeoutError: they came for too long without one.
        """
        if self._failed:
            return b""  # FFmpeg asks again before it reports the error
        try:
            if not self._rest:
                self._rest = next(self._pieces, b"")
            piece, self._rest = self._rest[:size], self._rest[size:]
            self._taken += len(piece)
            if self._taken > LARGEST_PART:
                raise StreamTooLarge(f"more than {in_bytes(LARGEST_PART)} came without a complete picture")
            if time.monotonic() > self._deadline:
                raise TimeoutError
        except BaseException:
            self._failed = True
            raise
        return piece
