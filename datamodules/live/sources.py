"""Origins of live frames: a camera of this machine, or a camera or stream in the network.

A source is connected to by iterating over it; it ends, or raises ``ConnectionError``, when the connection is lost, and
can be iterated over again. What can never work raises ``VideoError``.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

import numpy as np

from datamodules.errors import UserError
from datamodules.live.feed import FETCH, BoundedFeed
from datamodules.video.listing import VideoError

OPEN_SECONDS = 10.0
"""Time that a network source has to respond."""
UNDECODABLE_SECONDS = 30.0
"""Longest time in which data may come that give no frame: until the next keyframe, for instance."""
COUNTED_PROTOCOLS = ("http:", "https:", "tcp:")
"""Protocols over which a packet may be of any length."""
PLAYLISTS = (b"#EXTM3U", b"<?xml", b"<MPD")
PICTURE_LIMIT = {"max_pixels": str(64 * 2**20)}
"""Options of a decoder that bound a picture, to twice that of 8192x4320 pixels: its header may say anything."""
UNTIMED_FORMATS = frozenset({"mpjpeg", "mjpeg", "h264", "hevc", "image2pipe"})
"""Streams without time stamps; FFmpeg makes them up, 25 a second."""


class Arrival(NamedTuple):
    """One frame of a live source."""

    picture: Callable[[], np.ndarray]
    """Gives the pixels, (h, w, 3) uint8 RGB; a frame that is dropped need not be converted."""
    seconds: float | None
    """Time stamp by the clock of the source; None where it has none."""


class LiveSource(Protocol):
    name: str
    """Name in files and messages; holds no password."""

    def __iter__(self) -> Generator[Arrival, None, None]: ...


class Camera:
    """A camera of this machine, read by OpenCV: V4L2 on Linux, AVFoundation on macOS, Media Foundation on Windows.

    Args:
        device: its number, or the path of its device file.
    """

    def __init__(self, device: int | str) -> None:
        self.device = device
        self.name = f"camera_{device}" if isinstance(device, int) else Path(device).name

    def __iter__(self) -> Generator[Arrival, None, None]:
        import cv2

        said = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # a missing camera is an error of ours
        try:
            camera = cv2.VideoCapture(self.device)
        finally:
            cv2.utils.logging.setLogLevel(said)
        try:
            if not camera.isOpened():
                raise ConnectionError("there is no such camera, or another program uses it")
            camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # otherwise some drivers give frames that are several frames old
            while True:
                came, picture = camera.read()
                if not came:
                    raise ConnectionError("the camera gives no more frames")
                yield Arrival(partial(np.ascontiguousarray, picture[..., ::-1]), None)
        finally:
            camera.release()


class NetworkStream:
    """A stream under an address that FFmpeg can open: RTSP, HTTP (MPEG-TS, MJPEG, HLS), RTMP, UDP.

    Args:
        address: may hold a user and a password; they are not repeated in names and messages.
        stall_seconds: the connection counts as lost after so long without data.

    Raises:
        UserError: what cannot be an address.
    """

    def __init__(self, address: str, stall_seconds: float) -> None:
        self.address = address
        self.stall_seconds = stall_seconds
        try:
            parts = urlsplit(address)
        except ValueError:
            scheme = address.partition("://")[0]
            remedy = "write it as rtsp://host/path; a host in numbers with colons stands in [brackets]"
            raise UserError("is no address", f"{scheme}://...", remedy) from None  # all of it may hold a password
        self.name = f"{parts.hostname or parts.scheme}{_public_path(parts)}".replace("/", "_").rstrip("_")

    def __iter__(self) -> Generator[Arrival, None, None]:
        import av

        since = time.monotonic()
        try:
            with ExitStack() as stack:
                container, feed = self._connect(stack)
                if container.size > 0 and container.duration:
                    seconds = container.duration / av.time_base
                    raise VideoError(f"a file of {seconds:.0f} s, not a live stream", self.name, "save it and name it")
                stream = container.streams.best("video")
                if stream is None:
                    raise VideoError("holds no video stream", self.name)
                if stream.codec_context is None:
                    raise VideoError("its pictures are in a format that cannot be decoded", self.name)
                stream.thread_type = "SLICE"  # threads over frames would hold several of them back
                stream.codec_context.options = PICTURE_LIMIT
                timed = container.format.name not in UNTIMED_FORMATS
                packets, shown = container.demux(stream), since
                while True:
                    since = time.monotonic()
                    if feed is not None:
                        feed.expect(self.stall_seconds)
                    packet = next(packets, None)
                    if packet is None:
                        return
                    for arrival in _arrivals(packet, timed):
                        yield arrival
                        shown = time.monotonic()
                    if time.monotonic() - shown > UNDECODABLE_SECONDS:
                        raise ConnectionError("what comes cannot be decoded: damaged, or larger than any picture")
        except (av.error.ExitError, TimeoutError):
            waited = round(time.monotonic() - since, 1)
            raise ConnectionError(f"no frame within {waited:g} s") from None
        except av.error.FFmpegError as error:
            raise ConnectionError(error.strerror) from None  # its full text holds the address

    def _connect(self, stack: ExitStack) -> tuple[Any, BoundedFeed | None]:
        """The opened stream, and what counts its bytes if it is one without an end over HTTP.

        Protocols that divide a stream themselves (RTSP, RTMP), segments (HLS, DASH) and files are left to FFmpeg.
        """
        import av

        settings: dict[str, Any] = {"timeout": (OPEN_SECONDS, self.stall_seconds), "metadata_errors": "replace"}
        if self.address.lower().startswith(COUNTED_PROTOCOLS):
            with ExitStack() as fetching:
                fetched = fetching.enter_context(av.open(self.address, **settings, **FETCH))
                feed = BoundedFeed(fetched, OPEN_SECONDS)
                if fetched.size <= 0 and not feed.start.lstrip().startswith(PLAYLISTS):
                    stack.enter_context(fetching.pop_all())
                    return stack.enter_context(av.open(feed, metadata_errors="replace", options=PICTURE_LIMIT)), feed
        # RTSP over UDP loses packets, which shows as grey smears.
        options = PICTURE_LIMIT | ({"rtsp_transport": "tcp"} if self.address.startswith("rtsp") else {})
        return stack.enter_context(av.open(self.address, options=options, **settings)), None


def _public_path(parts: SplitResult) -> str:
    """Return the path of an address with digests in the place of what may be a password or the key of a stream.

    >>> _public_path(urlsplit("rtsp://host/user=admin&password=secret/ch1"))
    '/e8fc0fae/ch1'
    """
    segments = parts.path.rstrip("/").split("/")
    is_key = [bool(set(unquote(segment)) & set("=&@")) for segment in segments]
    is_key[-1] |= parts.scheme.startswith("rtmp")
    return "/".join(
        hashlib.sha256(segment.encode()).hexdigest()[:8] if hidden and segment else segment
        for segment, hidden in zip(segments, is_key, strict=True)
    )


def _arrivals(packet: Any, timed: bool) -> Iterator[Arrival]:
    import av

    try:
        frames = packet.decode()
    except (av.error.InvalidDataError, av.error.ArgumentError):
        return  # a damaged packet, one from before the first whole frame, or a picture that is too large
    for frame in frames:
        yield Arrival(partial(_pixels, frame), frame.time if timed else None)


def _pixels(frame: Any) -> np.ndarray:
    import av

    try:
        pixels = frame.to_ndarray(format="rgb24", threads=1)
    except av.error.FFmpegError as error:
        raise VideoError(f"a frame cannot be converted ({error.strerror})") from None
    return np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90)) if frame.rotation else pixels


def live_source(text: str, stall_seconds: float) -> LiveSource | None:
    """The live source that a text names: a number, a device file, an address. None for anything else."""
    if text.isdecimal():
        return Camera(int(text))
    if "://" in text:
        return NetworkStream(text, stall_seconds)
    return Camera(text) if Path(text).is_char_device() else None
