"""Frames of videos at the size the network takes, decoded when they are asked for.

``FrameStore`` is what data sets read from; ``DecodedFrames`` decodes every time, ``FrameCache`` (frame_cache.py) once.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.video import VideoReader, open_video
from datamodules.video_listing import list_frames


class FrameFacts(NamedTuple):
    """What is known of a video besides its pixels."""

    times: np.ndarray
    """(N,) float64, seconds from the start of the video."""
    original_size: tuple[int, int]
    """Height and width of the video as shown."""
    size: tuple[int, int]
    """Height and width of the frames that ``get`` returns."""


class FrameStore:
    """Frames of any number of videos. Cheap to send to another process: nothing open travels along."""

    def facts(self, video: Path) -> FrameFacts:
        raise NotImplementedError

    def get(self, video: Path, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """(T, height, width, 3) uint8 RGB, a copy that the caller may change."""
        raise NotImplementedError


def scaled_size(height: int, width: int, short_side: int | None) -> tuple[int, int]:
    """Size with the short side as given and the aspect kept; the long side rounded, half up.

    >>> scaled_size(240, 320, 128), scaled_size(240, 320, None)
    ((128, 171), (240, 320))
    """
    if short_side is None:
        return height, width
    scale = short_side / min(height, width)
    return (short_side, int(width * scale + 0.5)) if height <= width else (int(height * scale + 0.5), short_side)


def resize(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(T, h, w, 3) uint8 -> (T, *size, 3): area averages when shrinking, linear interpolation when enlarging."""
    if frames.shape[1:3] == size:
        return frames
    import cv2

    method = cv2.INTER_AREA if size[0] < frames.shape[1] else cv2.INTER_LINEAR
    out = np.empty((len(frames), *size, 3), np.uint8)
    for index, frame in enumerate(frames):
        cv2.resize(frame, size[::-1], dst=out[index], interpolation=method)
    return out


class DecodedFrames(FrameStore):
    """Decodes every clip anew. For data too large for a cache, and for single passes over videos.

    Args:
        short_side: length of the frames' short side in pixels; None keeps the video's size.
        open_readers: how many videos are kept open; a decord reader that has decoded holds about 57 MiB at 320x240.
    """

    def __init__(self, short_side: int | None, open_readers: int = 8) -> None:
        self.short_side = short_side
        self.open_readers = open_readers
        self._readers: OrderedDict[Path, VideoReader] = OrderedDict()
        self._facts: dict[Path, FrameFacts] = {}
        self._process = os.getpid()
        self._inherited: list[OrderedDict[Path, VideoReader]] = []

    def facts(self, video: Path) -> FrameFacts:
        if video not in self._facts:
            listing = list_frames(video)
            size = scaled_size(listing.height, listing.width, self.short_side)
            self._facts[video] = FrameFacts(listing.times, (listing.height, listing.width), size)
        return self._facts[video]

    def get(self, video: Path, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        return resize(self._reader(video).get(indices), self.facts(video).size)

    def _reader(self, video: Path) -> VideoReader:
        if self._process != os.getpid():
            # Readers opened before a fork neither work nor close in the child: their threads stayed behind.
            self._inherited.append(self._readers)
            self._readers, self._process = OrderedDict(), os.getpid()
        if video in self._readers:
            self._readers.move_to_end(video)
        else:
            while len(self._readers) >= self.open_readers:
                self._readers.popitem(last=False)[1].close()
            self._readers[video] = open_video(video)
        return self._readers[video]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_readers": OrderedDict(), "_inherited": []}
