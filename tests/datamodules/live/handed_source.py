"""A camera for tests that shows what it is handed, when it is handed it; nothing depends on the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from queue import Empty, Queue

import numpy as np

from datamodules.frame_stream import FrameStream
from datamodules.frames.store import FrameScale
from datamodules.live.cameras import CameraFeed
from datamodules.live.capture import LiveSettings
from datamodules.live.source_list import NamedSource

PERIOD = 0.1


class HandedSource:
    """A live source; what it is handed is (stamp, picture), an exception that is raised, or None, where it hangs up."""

    def __init__(self) -> None:
        self.name = "unnamed"
        self.handed: Queue = Queue()
        self.connections = 0

    def show(self, stamp: float, picture: np.ndarray) -> None:
        self.handed.put((stamp, picture))

    def __iter__(self) -> Iterator:
        from datamodules.live.sources import Arrival

        self.connections += 1
        while True:
            try:
                step = self.handed.get(timeout=20)
            except Empty:
                raise ConnectionError("nobody handed anything") from None
            if step is None:
                return
            if isinstance(step, Exception):
                raise step
            stamp, picture = step
            yield Arrival(lambda picture=picture: picture, stamp)


def handed_feed(*names: str, num_classes: int = 2, **settings) -> tuple[CameraFeed, dict[str, HandedSource]]:
    """A feed of cameras that are handed their frames, ten a second of them due."""
    sources = {name: HandedSource() for name in names}
    limits = {"max_frames": settings.pop("max_frames", None), "max_seconds": settings.pop("max_seconds", None)}
    live = LiveSettings(**{"queue_frames": 99, **settings})

    def stream(name: str) -> FrameStream:
        each = FrameStream("0", PERIOD, FrameScale(None), num_classes, chunk_frames=1, live=live, **limits)
        each.live = sources[name]
        return each

    feed = CameraFeed([NamedSource(name, name) for name in names], stream)
    feed.find()
    return feed, sources


def wait_until(is_so: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.002)


def received(feed: CameraFeed) -> tuple[int, ...]:
    return tuple(each.received for each in feed.health())
