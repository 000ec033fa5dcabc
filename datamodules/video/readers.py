"""Reading frames of videos by their number.

decord reads by default. Decord reads some files wrongly without an error and refuses others (`listing.py`). So
``open_video`` first lists the frames from the packets, and lets decord read only files that it lists in the same way.
PyAV reads everything else behind the same interface. A folder of pictures is a video too.
"""

from __future__ import annotations

import gc
import itertools
import os
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.errors import printable
from datamodules.video.listing import FrameListing, VideoError, decode, list_frames, open_container
from datamodules.video.picture_folder import PictureFolder, PictureListing, Video, list_pictures, read_picture

TIMESTAMP_TOLERANCE = 2e-3
"""Seconds. decord returns float32 times, which are a millisecond apart four hours into a file."""
BUFFER_BYTES = 64 * 2**20
"""Bytes of returned frames that a PyAV reader keeps, so that overlapping windows are decoded once."""


_decord_readers: weakref.WeakSet[Any] = weakref.WeakSet()
_left_behind: list[Any] = []


def _keep_decoders_of_the_parent() -> None:
    """Keep a forked process from ending a decoder of its parent, whose threads it does not have to join.

    That hangs or ends the process. Reachable decoders are held. Garbage collection is kept from those that the parent
    had dropped in a cycle, such as the traceback of an error.
    """
    _left_behind.extend(_decord_readers)
    gc.freeze()


os.register_at_fork(after_in_child=_keep_decoders_of_the_parent)


class VideoReader:
    """The frames of one video. Readers hold a decoder: open them in the process that uses them."""

    path: Path
    num_frames: int
    height: int
    """Pixels as shown, that is after the rotation the file asks for."""
    width: int
    times: np.ndarray
    """(num_frames,) float64, seconds from the start of the file at which each frame is shown, increasing."""

    def get(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Frames by number, in the order asked for and with repetitions: (T, height, width, 3) uint8 RGB."""
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size == 0:
            return np.empty((0, self.height, self.width, 3), np.uint8)
        if wanted.min() < 0 or wanted.max() >= self.num_frames:
            raise IndexError(
                f"{self.path} has frames 0..{self.num_frames - 1}, asked for {wanted.min()}..{wanted.max()}"
            )
        return self._read(wanted)

    def close(self) -> None:
        raise NotImplementedError

    def _read(self, wanted: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def list_video(video: Video) -> FrameListing | PictureListing:
    """List the times of a video's frames, and its size, with next to no decoding."""
    return list_pictures(video) if isinstance(video, PictureFolder) else list_frames(video)


def open_video(path: str | Video, num_threads: int = 1) -> VideoReader:
    """Open a video with the reader that reads it right.

    Args:
        path: any container and codec that FFmpeg knows, or a folder of pictures.
        num_threads: threads of the decoder; 1 suits the worker processes of a loader.
    """
    if isinstance(path, PictureFolder):
        return _PictureReader(path)
    path = Path(path)
    listing = list_frames(path)
    if not listing.av_only:
        reader = _DecordReader.open(path, listing, num_threads)
        if reader is not None:
            return reader
    return _AvReader(path, listing, num_threads)


def nearest_frame(times: np.ndarray, seconds: float | np.ndarray) -> np.ndarray:
    """Numbers of the frames shown nearest to the given moments; of two equally near, the earlier.

    >>> nearest_frame(np.array([0.0, 0.5, 1.0]), np.array([-3.0, 0.2, 0.3, 0.75, 9.0])).tolist()
    [0, 0, 1, 1, 2]
    """
    seconds = np.asarray(seconds, dtype=np.float64)
    after = np.clip(np.searchsorted(times, seconds), 0, len(times) - 1)
    before = np.maximum(after - 1, 0)
    return np.where(np.abs(seconds - times[before]) <= np.abs(times[after] - seconds), before, after)


class _DecordReader(VideoReader):
    """Once decord gives up at damage PyAV goes on: it reads up to the damaged frame, and names it."""

    def __init__(self, path: Path, listing: FrameListing, decoder: Any, num_threads: int) -> None:
        self.path, self.times, self.num_frames = path, listing.times, len(listing.times)
        self.height, self.width = listing.height, listing.width
        self._decoder = decoder
        _decord_readers.add(decoder)
        self._fallback = _AvReader(path, listing, num_threads)

    @classmethod
    def open(cls, path: Path, listing: FrameListing, num_threads: int) -> _DecordReader | None:
        """None where decord refuses the file or lists other frames than the packets do."""
        # The order matters: decord shows its zlib to what is loaded after it, and cv2 cannot read PNG with that one.
        import cv2  # noqa: F401
        import decord

        try:
            decoder = decord.VideoReader(str(path), num_threads=num_threads)
            listed = decoder.get_frame_timestamp(np.arange(len(decoder)))[:, 0].astype(np.float64)
        except (decord.DECORDError, RuntimeError, UnicodeEncodeError):  # the last at names that are not UTF-8
            return None
        if len(listed) != len(listing.times):
            return None
        if np.abs((listed - listed[0]) - (listing.times - listing.times[0])).max() > TIMESTAMP_TOLERANCE:
            return None
        return cls(path, listing, decoder, num_threads)

    def _read(self, wanted: np.ndarray) -> np.ndarray:
        import decord

        if self._decoder is not None:
            try:
                return self._decoder.get_batch(wanted.tolist()).asnumpy()
            except (decord.DECORDError, RuntimeError):
                self._decoder = None
        return self._fallback.get(wanted)

    def close(self) -> None:
        self._decoder = None
        self._fallback.close()


class _AvReader(VideoReader):
    """Decode forwards from the nearest entry, or from the start of a file that cannot be searched."""

    def __init__(self, path: Path, listing: FrameListing, num_threads: int) -> None:
        self.path, self.times, self.num_frames = path, listing.times, len(listing.times)
        self.height, self.width = listing.height, listing.width
        self._listing = listing
        self._num_threads = num_threads
        self._container: Any = None
        self._frames: Iterator[Any] | None = None
        self._next = 0  # number of the frame that the decoder gives next
        self._buffer: OrderedDict[int, np.ndarray] = OrderedDict()

    def _read(self, wanted: np.ndarray) -> np.ndarray:
        import av

        out = np.empty((len(wanted), self.height, self.width, 3), np.uint8)
        try:
            for index in np.unique(wanted).tolist():
                out[wanted == index] = self._frame(index)
        except av.error.FFmpegError as error:
            self._stop()  # the decoder has ended: the next frame is searched for anew
            raise VideoError(f"corrupt at frame {self._next} ({error.strerror})", self.path) from error
        return out

    def _frame(self, index: int) -> np.ndarray:
        if index in self._buffer:
            self._buffer.move_to_end(index)
            return self._buffer[index]
        for from_start in (False, True):  # a search in a file with a poor index may end behind the frame
            self._approach(index, from_start)
            frame = self._advance_to(index)
            if frame is not None:
                return self._keep(index, frame)
        raise VideoError(f"corrupt, frame {index} at {self.times[index]:.3f} s cannot be decoded", self.path)

    def _approach(self, index: int, from_start: bool) -> None:
        """Put the decoder at or before a frame: go on from where it is unless an entry lies nearer."""
        entry, start = None, 0
        if self._listing.pts is not None and not from_start:
            earlier = self._listing.entry_pts[self._listing.entry_pts <= self._listing.pts[index]]
            if len(earlier):
                entry, start = int(earlier[-1]), int(np.searchsorted(self._listing.pts, earlier[-1]))
        if self._frames is not None and not from_start and start <= self._next <= index:
            return
        packets = self._open()
        self._next = 0
        if start > 0:
            packets = self._search(entry)
        self._frames = decode(packets)

    def _open(self) -> Iterator[Any]:
        """Open the file anew: a decoder's threads can only be chosen before it starts."""
        self._stop()
        self._container = open_container(self.path)
        stream = self._container.streams.best("video")
        stream.codec_context.thread_count = self._num_threads
        return self._container.demux(stream)

    def _search(self, entry: int) -> Iterator[Any]:
        """The packets from an entry on; from the start where the search ends at a keyframe that is none."""
        stream = self._container.streams.best("video")
        self._container.seek(entry, stream=stream)
        packets = self._container.demux(stream)
        first = next(packets, None)
        if first is None or first.pts is None or first.pts not in self._listing.entry_pts:
            return self._open()
        self._next = int(np.searchsorted(self._listing.pts, first.pts))
        return itertools.chain([first], packets)

    def _advance_to(self, index: int) -> Any | None:
        """Decode up to a frame; None if it does not come."""
        for frame in self._frames:
            position = self._position(frame)
            if position is None:
                continue
            self._next = position + 1
            if position >= index:
                return frame if position == index else None
        return None

    def _position(self, frame: Any) -> int | None:
        """The number of a decoded frame; None for one that an edit list hides."""
        if self._listing.pts is None:
            return self._next
        position = int(np.searchsorted(self._listing.pts, frame.pts))
        return position if position < self.num_frames and self._listing.pts[position] == frame.pts else None

    def _keep(self, index: int, frame: Any) -> np.ndarray:
        # One thread: a forked process that drops a frame of its parent would wait for its other threads for ever.
        pixels = frame.to_ndarray(format="rgb24", threads=1)
        if frame.rotation:
            pixels = np.rot90(pixels, frame.rotation // 90)
        if pixels.shape[:2] != (self.height, self.width):
            size = f"{pixels.shape[1]}x{pixels.shape[0]}"
            raise VideoError(f"frame {index} is {size}, the first is {self.width}x{self.height}", self.path)
        self._buffer[index] = pixels
        while len(self._buffer) > 1 and len(self._buffer) * pixels.nbytes > BUFFER_BYTES:
            self._buffer.popitem(last=False)
        return pixels

    def _stop(self) -> None:
        if self._container is not None:
            self._container.close()
        self._container = self._frames = None

    def close(self) -> None:
        self._stop()
        self._buffer.clear()


class _PictureReader(VideoReader):
    """Reader of a folder of pictures. One that cannot be read is reported once; a neighbour takes its place."""

    def __init__(self, folder: PictureFolder) -> None:
        self._listing = list_pictures(folder)
        self.path, self.times, self.num_frames = folder.path, self._listing.times, len(self._listing.times)
        self.height, self.width = self._listing.height, self._listing.width

    def _read(self, wanted: np.ndarray) -> np.ndarray:
        out = np.empty((len(wanted), self.height, self.width, 3), np.uint8)
        for index in np.unique(wanted).tolist():
            out[wanted == index] = self._picture(index)
        return out

    def _picture(self, index: int) -> np.ndarray:
        for near in (*range(index, -1, -1), *range(index + 1, self.num_frames)):
            file = self._listing.file(near)
            picture = read_picture(file)
            if picture is None:
                # Python shows a warning of one text once.
                warnings.warn(f"{printable(file)}: no readable picture, a neighbour is shown instead", stacklevel=2)
                continue
            if picture.shape[:2] != (self.height, self.width):
                size = f"{picture.shape[1]}x{picture.shape[0]}"
                raise VideoError(f"is {size}, the first picture is {self.width}x{self.height}", file)
            return picture[..., ::-1]
        raise VideoError("not a single picture can be read", self.path)

    def close(self) -> None:
        """Nothing stays open."""
