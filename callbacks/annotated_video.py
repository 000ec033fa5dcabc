"""Video files of what was found: frames with boxes, track numbers and labels, for people to look at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from callbacks.visualisation import READABLE_SIDE, draw_boxes, draw_text

LONGEST_SIDE = 1280
"""Pixels; larger frames are made smaller, or their labels could not be read."""
TICKS = 1000
"""Time stamps are whole thousandths of a second."""
COLOURS = ((230, 110, 20), (30, 120, 220), (40, 150, 60), (190, 50, 150), (200, 50, 50), (20, 140, 150), (120, 90, 200))


class AnnotatedVideo:
    """An h264 mp4 that browsers play: yuv420p, even sizes, its index in front. Frames keep their times, gaps included.

    It can be played once it is closed.

    Args:
        path: an earlier file is replaced.
        picture_size: height and width of the frames to come.
        crf: x264's quality, 18 hardly distinguishable from the frames, 28 small.
    """

    def __init__(self, path: Path, picture_size: tuple[int, int], crf: int = 23) -> None:
        import av

        self.picture_size = picture_size
        shorter, longer = sorted(picture_size)
        fits = LONGEST_SIDE / longer
        # Small frames are enlarged by a whole factor, so that text can be read.
        self.scale = min(math.ceil(READABLE_SIDE / shorter), int(fits)) if fits >= 1 else fits
        height, width = (max(2, round(self.scale * side) // 2 * 2) for side in picture_size)
        self._size = (width, height)
        self._container: Any = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream("libx264", rate=30)  # nominal, time stamps count
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, TICKS)
        self._stream.options = {"crf": str(crf), "preset": "veryfast"}
        self._first: float | None = None
        self._ticks = -1

    def write(self, picture: np.ndarray, seconds: float, detections: Sequence[Mapping[str, Any]]) -> None:
        """Add a frame, (h, w, 3) uint8 RGB of the size announced; the time of the first is the start of the file.

        Detections hold ``box`` (xyxy in pixels of the picture), ``actions`` (name -> score) and perhaps ``track``.
        """
        import av

        frame = av.VideoFrame.from_ndarray(self._draw(picture, detections), format="rgb24")
        self._first = seconds if self._first is None else self._first
        self._ticks = max(self._ticks + 1, round((seconds - self._first) * TICKS))  # never twice the same
        frame.pts, frame.time_base = self._ticks, Fraction(1, TICKS)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what is still in the encoder, and the index."""
        self._container.mux(self._stream.encode())
        self._container.close()

    def _draw(self, picture: np.ndarray, detections: Sequence[Mapping[str, Any]]) -> np.ndarray:
        import cv2

        method = cv2.INTER_AREA if self.scale < 1 else cv2.INTER_LINEAR
        canvas = cv2.resize(picture, self._size, interpolation=method)
        right, bottom = self._size[0] - 1, self._size[1] - 1
        drawn = []
        for found in detections:
            corners = [round(side * self.scale) for side in found["box"]]
            box = [max(0, min(side, limit)) for side, limit in zip(corners, (right, bottom) * 2, strict=True)]
            drawn.append((box, detection_text(found), COLOURS[found.get("track", 0) % len(COLOURS)]))
        for box, _, colour in drawn:
            draw_boxes(canvas, [box], colour)
        # Text after all boxes: a line through a word hides more than a word over a line.
        for box, text, colour in drawn:
            draw_text(canvas, text, box, colour, below=False)
        return canvas


def detection_text(found: Mapping[str, Any]) -> str:
    """Track id and actions, the best first: ``"3 walk 0.83"``, a line an action."""
    best_first = sorted(found["actions"].items(), key=lambda action: -action[1])
    lines = [f"{name} {score:.2f}" for name, score in best_first] or [""]
    return " ".join(filter(None, [str(found.get("track", "")), "\n".join(lines)]))
