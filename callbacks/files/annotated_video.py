"""Video files of what was found: frames with boxes, track numbers and labels, for people to look at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.files.result_files import write_all
from callbacks.pictures.detection_images import READABLE_SIDE, draw_boxes, draw_text
from datamodules.errors import UserError
from datamodules.files import errors_named, whole_path
from datamodules.video.drawn_videos import DRAWN

LONGEST_SIDE = 1280
"""Pixels; larger frames are made smaller, or their labels could not be read."""
TICKS = 1000
"""Time stamps are whole thousandths of a second."""
LARGEST_WRITE = 2**20
"""Bytes; a frame is smaller, so that it is written at once."""
COLOURS = ((230, 110, 20), (30, 120, 220), (40, 150, 60), (190, 50, 150), (200, 50, 50), (20, 140, 150), (120, 90, 200))


class AnnotatedVideo:
    """An h264 mp4 that browsers play: yuv420p, even sizes, its index in front. Frames keep their times, gaps included.

    The file has its name from the start. It can be played while it is written, after a kill and at a full disk: each
    frame is on the disk once the next one arrives. ``close`` adds the last one and puts the index in front.

    Args:
        path: an earlier file is replaced.
        picture_size: height and width of the frames to come.
        crf: x264's quality, 18 hardly distinguishable from the frames, 28 small.

    Raises:
        UserError: the file cannot be written, at once or later: no space, no permission, a folder in its place.
    """

    def __init__(self, path: Path, picture_size: tuple[int, int], crf: int = 23) -> None:
        import av

        self.path, self.picture_size = path, picture_size
        self.scale = readable_scale(picture_size)
        height, width = (max(2, round(self.scale * side) // 2 * 2) for side in picture_size)
        self._size = (width, height)
        with errors_named(path):
            self._file = _Fragments(path)
        # A fragment a frame, and an encoder that holds none back.
        options = {"movflags": "empty_moov+default_base_moof+frag_every_frame", "flush_packets": "1"}
        self._container: Any = av.open(self._file, "w", format="mp4", options=options, buffer_size=LARGEST_WRITE)
        self._container.metadata["comment"] = DRAWN
        self._stream = self._container.add_stream("libx264", rate=30)  # nominal, time stamps count
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, TICKS)
        self._stream.options = {"crf": str(crf), "preset": "veryfast", "tune": "zerolatency"}
        self._first: float | None = None
        self._ticks = -1

    def write(self, picture: np.ndarray, seconds: float, detections: Sequence[Mapping[str, Any]]) -> None:
        """Add a frame, (h, w, 3) uint8 RGB of the size announced; the time of the first is the start of the file.

        Detections hold ``box`` (xyxy in pixels of the picture), ``actions`` (name -> score) and perhaps ``track``.
        """
        import av

        frame = av.VideoFrame.from_ndarray(drawn(picture, detections, self.scale, self._size), format="rgb24")
        self._first = seconds if self._first is None else self._first
        self._ticks = max(self._ticks + 1, round((seconds - self._first) * TICKS))  # never twice the same
        frame.pts, frame.time_base = self._ticks, Fraction(1, TICKS)
        with errors_named(self.path):
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write the last frame, and put the index in front, which players like better than fragments."""
        with errors_named(self.path), self._file:
            self._container.mux(self._stream.encode())
            self._container.close()
        if self._file.failed or self._first is None:
            return  # said when it failed; or there is no frame to index
        try:
            with whole_path(self.path.absolute()) as unfinished:
                put_index_in_front(self.path.absolute(), unfinished)
        except (UserError, OSError) as error:
            rank_zero_warn(f"{error}; it stays as it was written: whole, but in fragments")


def readable_scale(picture_size: tuple[int, int]) -> float:
    """Return the factor by which a picture of a height and width is shown, so that its labels can be read.

    Small ones are enlarged by a whole number.
    """
    shorter, longer = sorted(picture_size)
    fits = LONGEST_SIDE / longer
    return min(math.ceil(READABLE_SIDE / shorter), int(fits)) if fits >= 1 else fits


def drawn(
    picture: np.ndarray, detections: Sequence[Mapping[str, Any]], scale: float, size: tuple[int, int]
) -> np.ndarray:
    """Return a picture, (h, w, 3) uint8 RGB, at a scale and of a width and height, with its detections on it."""
    import cv2

    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas = cv2.resize(picture, size, interpolation=method)
    right, bottom = size[0] - 1, size[1] - 1
    boxes = []
    for found in detections:
        corners = [round(side * scale) for side in found["box"]]
        box = [max(0, min(side, limit)) for side, limit in zip(corners, (right, bottom) * 2, strict=True)]
        boxes.append((box, detection_text(found), COLOURS[found.get("track", 0) % len(COLOURS)]))
    for box, _, colour in boxes:
        draw_boxes(canvas, [box], colour)
    # Text after all boxes: a line through a word hides more than a word over a line.
    for box, text, colour in boxes:
        draw_text(canvas, text, box, colour, below=False)
    return canvas


def detection_text(found: Mapping[str, Any]) -> str:
    """Track id and actions, the best first: ``"3 walk 0.83"``, a line an action."""
    best_first = sorted(found["actions"].items(), key=lambda action: -action[1])
    lines = [f"{name} {score:.2f}" for name, score in best_first] or [""]
    return " ".join(filter(None, [str(found.get("track", "")), "\n".join(lines)]))


class _Fragments:
    """The file under an mp4 in fragments: it holds whole ones only, and grows at its end alone.

    After an error nothing more is written, so that what is there stays as it is.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self.failed = False

    def write(self, content: bytes) -> int:
        if self.failed:
            return len(content)
        try:
            return write_all(self._file, content)
        except OSError:
            self.failed = True
            raise

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None:
        self._file.close()


def put_index_in_front(fragments: Path, whole: Path) -> None:
    """Copy an mp4 in fragments to one with a single index before its frames, without coding them anew."""
    import av

    with av.open(str(fragments)) as given, av.open(str(whole), "w", options={"movflags": "+faststart"}) as taken:
        taken.metadata.update(given.metadata)
        source = given.streams.video[0]
        target = taken.add_stream_from_template(source)
        for packet in given.demux(source):
            if packet.dts is not None:  # the last one is empty
                packet.stream = target
                taken.mux(packet)
