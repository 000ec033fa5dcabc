"""Frames of videos at the size the network takes, decoded when they are asked for.

``FrameStore`` is what data sets read from; ``DecodedFrames`` decodes every time, ``FrameCache`` (frame_cache.py) once.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from datamodules.video.listing import VideoError
from datamodules.video.picture_folder import Video
from datamodules.video.readers import VideoReader, list_video, open_video

Interpolation = Literal["area", "bilinear"]
LONGEST_TO_SHORTEST = 10
"""Longest ratio of long to short side at which frames are scaled by the short side. 16x1024 would become 128x8192,
which takes a network minutes per frame. Panoramas of four cameras side by side are 7 times as long."""


class FrameFacts(NamedTuple):
    """Facts of a video apart from its pixels."""

    times: np.ndarray
    """(N,) float64, seconds from the start of the video."""
    original_size: tuple[int, int]
    """Height and width of the video as shown."""
    size: tuple[int, int]
    """Height and width of the frames that ``get`` returns."""


class FrameStore:
    """Frames of any number of videos. Cheap to send to another process: nothing open travels along."""

    scale: FrameScale

    def facts(self, video: Video) -> FrameFacts:
        raise NotImplementedError

    def get(self, video: Video, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """(T, height, width, 3) uint8 RGB, a copy that the caller may change."""
        raise NotImplementedError

    def blank(self, size: tuple[int, int], length: int) -> np.ndarray:
        """Return what stands for ``length`` frames of a height and width that cannot be read."""
        return np.zeros((length, *size, 3), np.uint8)


class FrameScale(NamedTuple):
    """The size at which frames are read."""

    short_side: int | None
    """Length of the short side in pixels; None keeps the video's size."""
    max_long_side: int | None = None
    """A frame whose long side would be longer is made smaller."""
    interpolation: Interpolation = "area"
    """``area`` averages areas when shrinking and is linear when enlarging, ``bilinear`` is linear always."""

    def size(self, height: int, width: int, video: object = None) -> tuple[int, int]:
        """Height and width with the aspect kept, rounded half up.

        >>> FrameScale(128).size(240, 320), FrameScale(None).size(240, 320), FrameScale(288, 1333).size(100, 500)
        ((128, 171), (240, 320), (267, 1333))

        Args:
            height, width: of the video.
            video: whose, for the message.

        Raises:
            VideoError: frames so thin that they would become huge.
        """
        if self.short_side is None:
            return height, width
        wanted, of = self.short_side, min(height, width)
        if self.max_long_side is not None and max(height, width) * wanted > self.max_long_side * of:
            wanted, of = self.max_long_side, max(height, width)
        # In whole numbers: a fraction such as 0.5 - 1e-17 would be rounded down.
        size = max((2 * height * wanted + of) // (2 * of), 1), max((2 * width * wanted + of) // (2 * of), 1)
        if self.max_long_side is None and max(height, width) > LONGEST_TO_SHORTEST * min(height, width):
            raise VideoError(
                f"frames of {width}x{height} pixels are too thin: at a short side of {self.short_side} they would be "
                f"{size[1]}x{size[0]}",
                video,
                "bound them by max_long_side, or cut or pad the video to a usual shape",
            )
        return size

    def __call__(self, frames: np.ndarray, video: object = None) -> np.ndarray:
        """(T, h, w, 3) uint8 -> (T, *size, 3)."""
        size = self.size(*frames.shape[1:3], video)
        if frames.shape[1:3] == size:
            return frames
        import cv2

        shrinks = size[0] < frames.shape[1]
        method = cv2.INTER_AREA if self.interpolation == "area" and shrinks else cv2.INTER_LINEAR
        out = np.empty((len(frames), *size, 3), np.uint8)
        for index, frame in enumerate(frames):
            cv2.resize(frame, size[::-1], dst=out[index], interpolation=method)
        return out


class DecodedFrames(FrameStore):
    """Store that decodes every clip anew, for data too large for a cache and for single passes over videos.

    Args:
        scale: the size of the frames.
        open_readers: how many videos are kept open; a decord reader that has decoded holds about 57 MiB at 320x240.
    """

    def __init__(self, scale: FrameScale, open_readers: int = 8) -> None:
        self.scale = scale
        self.open_readers = open_readers
        self._readers: OrderedDict[Video, VideoReader] = OrderedDict()
        self._facts: dict[Video, FrameFacts] = {}
        self._process = os.getpid()

    def facts(self, video: Video) -> FrameFacts:
        if video not in self._facts:
            listing = list_video(video)
            shown = (listing.height, listing.width)
            self._facts[video] = FrameFacts(listing.times, shown, self.scale.size(*shown, video))
        return self._facts[video]

    def get(self, video: Video, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        return self.scale(self._reader(video).get(indices), video)

    def _reader(self, video: Video) -> VideoReader:
        if self._process != os.getpid():
            # Readers opened before a fork do not work in the child: their threads stayed behind.
            self._readers, self._process = OrderedDict(), os.getpid()
        if video in self._readers:
            self._readers.move_to_end(video)
        else:
            while len(self._readers) >= self.open_readers:
                self._readers.popitem(last=False)[1].close()
            self._readers[video] = open_video(video)
        return self._readers[video]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_readers": OrderedDict()}
