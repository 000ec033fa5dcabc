"""Content of the page: the newest picture of every source, the progress of prediction, and the newest events."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from callbacks.events.rules import Rule
from callbacks.files.annotated_video import drawn, readable_scale
from callbacks.files.prediction_writer import written_detections
from datamodules.errors import printable
from lightning_modules.evaluation.tracked import TrackedFrame

RECENT_FRAMES = 30
"""Frame rates are of so many of the last frames, delays of the last REMEMBERED_DELAYS."""
REMEMBERED_DELAYS = 300
EVENTS_SHOWN = 50
STALLED_SECONDS = 10.0
"""A source without a frame for longer counts as stalled."""
QUALITY = 80
"""JPEG quality, 0 to 100."""
ZONE_COLOUR = (250, 220, 60)


@dataclass
class _Source:
    frames: int = 0
    newest: TrackedFrame | None = None
    is_over: bool = False
    moments: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_FRAMES))
    delays_ms: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED_DELAYS))
    jpeg: tuple[int, bytes] = (0, b"")
    """The newest requested picture, and its number."""
    drawing: threading.Lock = field(default_factory=threading.Lock)


class Board:
    """Exchange of results between the thread that predicts and the threads that show them.

    Prediction only leaves a reference to its newest frame here. It is drawn on once, when a browser asks for it.

    Args:
        person_threshold, action_threshold: least scores of what is drawn.
        rules: rules of events, whose zones are drawn.
        cameras: gives how each of many cameras is, with ``name``, ``state``, ``dropped``, ``reconnections`` and
            ``problem``; of a single source nothing.
    """

    def __init__(
        self,
        person_threshold: float,
        action_threshold: float,
        rules: Sequence[Rule] = (),
        cameras: Callable[[], Sequence[Any]] = tuple,
    ) -> None:
        self.person_threshold, self.action_threshold, self.rules = person_threshold, action_threshold, tuple(rules)
        self._cameras = cameras
        self.is_closed = False
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._sources: dict[str, _Source] = {}
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS_SHOWN)
        self._num_events = self._dropped = self._reconnections = 0

    def show(self, frame: TrackedFrame, received: float | None = None) -> None:
        """Put up the newest frame of a source; ``received`` is when it was there, by ``time.monotonic``."""
        now = time.monotonic()
        name = printable(frame.video_id)  # the names of files may hold what JSON cannot
        with self._lock:
            source = self._sources.get(name)
            if source is None or source.is_over:
                self._sources = {other: each for other, each in self._sources.items() if not each.is_over}
                source = self._sources[name] = _Source()
            source.frames += 1
            source.newest = frame
            source.moments.append(now)
            if received is not None:
                source.delays_ms.append(1000 * (now - received))

    def end(self, video_id: str) -> None:
        """A source has come to its end; its last picture stays until another source begins."""
        with self._lock:
            if (source := self._sources.get(printable(video_id))) is not None:
                source.is_over = True

    def count(self, dropped: int, reconnections: int) -> None:
        """Put up how many live frames were left out so far, and how often sources were found again."""
        self._dropped, self._reconnections = dropped, reconnections

    def tell(self, message: Mapping[str, Any]) -> None:
        """Put up an event; its end takes the place of its begin."""
        with self._lock:
            self._num_events += message["state"] == "ended"
            for index, shown in enumerate(self._events):
                if shown["event"] == message["event"]:
                    self._events[index] = dict(message)
                    return
            self._events.appendleft(dict(message))

    def number(self, name: str) -> int | None:
        """Return how many pictures of a source there were; None of one that is not there."""
        source = self._sources.get(name)
        return None if source is None else source.frames

    @property
    def names(self) -> list[str]:
        with self._lock:
            return list(self._sources)

    def picture(self, name: str) -> bytes | None:
        """Return the newest picture of a source as JPEG with its boxes; None of one that has none."""
        source = self._sources.get(name)
        if source is None:
            return None
        with source.drawing:
            with self._lock:
                number, frame = source.frames, source.newest
            if frame is None or frame.picture is None:
                return None
            if source.jpeg[0] != number:
                source.jpeg = (number, self._drawn(frame, frame.picture))
            return source.jpeg[1]

    def state(self) -> dict[str, Any]:
        """Return everything but the pictures, as JSON has it."""
        _, content = self.health()
        with self._lock:
            return {**content, "newest_events": list(self._events)}

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Return whether frames come, and what says so.

        ``status`` is ``starting`` before the first frame, ``stalled`` where no source has given a frame for 10 s, and
        else ``ok``.
        """
        with self._lock:
            sources = {name: self._of_source(name, source) for name, source in self._sources.items()}
        for camera in self._cameras():
            facts = sources.setdefault(printable(camera.name), self._of_source(printable(camera.name), _Source()))
            facts |= {"state": camera.state, "dropped": camera.dropped, "reconnections": camera.reconnections}
            facts["problem"] = None if camera.problem is None else printable(camera.problem)
        goes_on = any(not source["is_stalled"] for source in sources.values())
        has_begun = any(source["frames"] for source in sources.values())
        status = "ok" if goes_on else "stalled" if has_begun else "starting"
        return goes_on, {
            "status": status,
            "seconds": round(time.monotonic() - self._started, 1),
            "dropped": self._dropped,
            "reconnections": self._reconnections,
            "events": self._num_events,
            "sources": list(sources.values()),
        }

    def _of_source(self, name: str, source: _Source) -> dict[str, Any]:
        moments = source.moments
        spent = moments[-1] - moments[0] if moments else 0.0
        silent = time.monotonic() - moments[-1] if moments else None
        delays = np.percentile(source.delays_ms, (50, 95)).round().tolist() if source.delays_ms else (None, None)
        return {
            "name": name,
            "frames": source.frames,
            "frames_per_second": round((len(moments) - 1) / spent, 1) if spent > 0 else None,
            "delay_ms_p50": delays[0],
            "delay_ms_p95": delays[1],
            "seconds_since_frame": None if silent is None else round(silent, 1),
            "is_stalled": silent is None or silent > STALLED_SECONDS,
        }

    def _drawn(self, frame: TrackedFrame, picture: np.ndarray) -> bytes:
        import cv2

        height, width = picture.shape[:2]
        scale = readable_scale((height, width))
        found = written_detections(frame, self.person_threshold, self.action_threshold)
        size = (round(scale * width), round(scale * height))
        canvas = drawn(picture, found, scale, size)
        zones = [rule.zone for rule in self.rules if rule.zone is not None and rule.holds_for(frame.video_id)]
        for zone in dict.fromkeys(zones):
            corners = (np.array(zone) * size).round().astype(np.int32)
            cv2.polylines(canvas, [corners], True, ZONE_COLOUR, 1, cv2.LINE_AA)
        _, jpeg = cv2.imencode(".jpg", canvas[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        return jpeg.tobytes()
