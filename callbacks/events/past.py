"""The frames before an event: kept as JPEG, for some seconds and up to a limit of memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from callbacks.files.annotated_video import LONGEST_SIDE

QUALITY = 90
"""JPEG quality, 0 to 100."""


class Shot(NamedTuple):
    """One stored frame."""

    jpeg: bytes
    size: tuple[int, int]
    """Height and width."""
    seconds: float
    detections: tuple[dict[str, Any], ...]
    """Detections as ``AnnotatedVideo`` draws them, in pixels of this frame."""

    def picture(self) -> np.ndarray:
        """Return the frame, (h, w, 3) uint8 RGB."""
        import cv2

        return cv2.imdecode(np.frombuffer(self.jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def shot_of(picture: np.ndarray, seconds: float, detections: Sequence[dict[str, Any]]) -> Shot:
    """Return a frame, (h, w, 3) uint8 RGB, as it is kept: no longer than a clip's sides."""
    import cv2

    height, width = picture.shape[:2]
    scale = LONGEST_SIDE / max(height, width)
    if scale < 1:
        height, width = round(height * scale), round(width * scale)
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        detections = [{**found, "box": [scale * side for side in found["box"]]} for found in detections]
    _, jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return Shot(jpeg.tobytes(), (height, width), seconds, tuple(detections))


class PastFrames:
    """The newest frames of a source.

    Args:
        span: seconds for which a frame is kept.
        limit: bytes of all of them together; beyond it the oldest go.
    """

    def __init__(self, span: float, limit: int) -> None:
        self.span, self.limit = span, limit
        self.bytes = 0
        self._shots: deque[Shot] = deque()

    def add(self, shot: Shot) -> None:
        """Keep a frame. One from before the last begins the source anew: nothing else is kept then."""
        if self._shots and shot.seconds < self._shots[-1].seconds:
            self._shots.clear()
            self.bytes = 0
        self._shots.append(shot)
        self.bytes += len(shot.jpeg)
        while len(self._shots) > 1 and (self.bytes > self.limit or self._shots[0].seconds < shot.seconds - self.span):
            self.bytes -= len(self._shots.popleft().jpeg)

    def since(self, seconds: float) -> list[Shot]:
        """Return the frames from a time on."""
        return [shot for shot in self._shots if shot.seconds >= seconds]
