"""Which frames a video file shows, and when: read from its packets, decoding next to nothing.

The list also says which reader to trust with the file. decord never comes back from MPEG-TS with B-frames, repeats or
shifts frames where an mp4's edit list trims and in avi files with B-frames, jumps by two frames when it searches a file
with open groups of pictures (frames stored after a keyframe but shown before it), and darkens or brightens pixels of
more than 8 bits. What it refuses (AV1, raw streams) it says itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SEARCHABLE_CONTAINERS = frozenset({"mov", "mp4", "matroska", "webm"})
"""Those whose packets carry the time stamps of their frames, and that can be entered at any keyframe."""
DECORD_CONTAINERS = SEARCHABLE_CONTAINERS | {"avi"}
TRUNCATED = 0.9
"""A file with less than this part of the frames, or of the seconds, that its header promises has been cut off. Headers
of whole files differ by a few frames from what they hold (packed B-frames, rounded durations)."""


class VideoError(ValueError):
    """A file that cannot be read as a video; the message names the file and the reason."""


class FrameListing(NamedTuple):
    """The N frames that a player shows of a file, as its packets tell; size after the rotation the file asks for."""

    times: np.ndarray
    """(N,) float64, seconds from the start of the file, increasing."""
    pts: np.ndarray | None
    """(N,) int64 presentation times in the stream's unit; None where frames can only be found by counting."""
    keyframe_pts: np.ndarray
    """Presentation times of the frames at which decoding can start, ascending."""
    height: int
    width: int
    av_only: str
    """Why PyAV must read this file; empty where decord may."""


def list_frames(path: str | Path) -> FrameListing:
    """List a file's frames. A second call for an unchanged file costs nothing."""
    path = Path(path)
    try:
        facts = path.stat()
    except FileNotFoundError:
        raise VideoError(f"{path}: no such video file") from None
    if not path.is_file():
        raise VideoError(f"{path}: is a folder, not a video file")
    if facts.st_size == 0:
        raise VideoError(f"{path}: the file is empty (0 bytes)")
    return _list_unchanged(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=1024)
def _list_unchanged(path: Path, size: int, mtime_ns: int) -> FrameListing:
    """``list_frames`` of one state of a file: size and mtime are there for the cache to notice a change."""
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise VideoError(f"{path}: holds no video stream")
            names = set(container.format.name.split(","))
            codec = stream.codec_context
            codec.thread_count = 1
            reason = ""
            if not names & DECORD_CONTAINERS:
                reason = f"container {container.format.name}"
            elif "avi" in names and (codec.name in {"h264", "hevc"} or codec.has_b_frames):
                reason = "avi with B-frames"
            elif codec.format is not None and max(part.bits for part in codec.format.components) > 8:
                reason = "more than 8 bits a pixel"
            if names & SEARCHABLE_CONTAINERS or not reason:
                listing = _list_by_packets(path, container, stream, reason)
                if listing is not None:
                    return listing
        return _list_by_decoding(path, reason or "unreliable time stamps")
    except av.error.FFmpegError as error:
        raise VideoError(f"{path}: not a readable video, or truncated ({error.strerror})") from error


def _list_by_packets(path: Path, container: Any, stream: Any, reason: str) -> FrameListing | None:
    """Frames from the time stamps of the packets; None where these do not tell one frame from the next."""
    pts, keyframes, trimmed, open_groups, first = [], [], False, False, None
    for packet in container.demux(stream):
        if first is None:
            first = next(iter(packet.decode()), None)
        if packet.size == 0:
            continue
        if packet.is_corrupt:
            raise VideoError(f"{path}: truncated or corrupt, packet {len(pts)} of {stream.frames or '?'} is damaged")
        if packet.pts is None:
            return None
        if packet.is_keyframe:
            keyframes.append(packet.pts)
        elif keyframes and packet.pts < keyframes[-1]:
            open_groups = True
        if packet.is_discard:
            trimmed = True
        else:
            pts.append(packet.pts)
    if first is None or not pts:
        raise VideoError(f"{path}: not a single frame can be decoded")
    if not trimmed and len(pts) < stream.frames and "avi" not in container.format.name:
        raise VideoError(f"{path}: truncated, {len(pts)} of {stream.frames} frames are in the file")
    in_order = np.sort(np.asarray(pts, dtype=np.int64))
    if np.any(np.diff(in_order) <= 0):
        return None
    times = _seconds(in_order, container, stream)
    _check_length(path, container, stream, times)
    height, width = _shown_size(first)
    return FrameListing(
        times=times,
        pts=in_order,
        keyframe_pts=np.sort(np.asarray(keyframes, dtype=np.int64)),
        height=height,
        width=width,
        av_only=reason or _untrustworthy(trimmed, open_groups),
    )


def _untrustworthy(trimmed: bool, open_groups: bool) -> str:
    if trimmed:
        return "an edit list that trims frames"
    return "open groups of pictures" if open_groups else ""


def _check_length(path: Path, container: Any, stream: Any, times: np.ndarray) -> None:
    """Refuse a file whose header promises much more than is there, of the kinds that do not notice it themselves."""
    if "avi" in container.format.name and len(times) < TRUNCATED * stream.frames:
        raise VideoError(f"{path}: truncated, {len(times)} of {stream.frames} frames are in the file")
    if "matroska" in container.format.name:
        promised = _promised_seconds(container, stream)
        if times[-1] < TRUNCATED * promised - 1:
            raise VideoError(f"{path}: truncated, its frames end at {times[-1]:.1f} s of {promised:.1f} s")


def _promised_seconds(container: Any, stream: Any) -> float:
    """How long a Matroska file says that its pictures last; 0 where it does not, as in a recording without an end."""
    import av

    hours, minutes, seconds = ([*stream.metadata.get("DURATION", "").split(":"), "", ""])[:3]
    try:
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:  # only the file as a whole has a duration, and sound may outlast the pictures
        alone = len(container.streams) == 1 and container.duration is not None
        return container.duration / av.time_base if alone else 0.0


def _list_by_decoding(path: Path, reason: str) -> FrameListing:
    """Frames of a stream without usable time stamps: decode it all once and count."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        size, pts = (0, 0), []
        try:
            for frame in decode(container, stream):
                size = size if pts else _shown_size(frame)
                pts.append(frame.pts)
        except av.error.FFmpegError as error:
            raise VideoError(f"{path}: corrupt after {len(pts)} decoded frames ({error.strerror})") from error
        if not pts:
            raise VideoError(f"{path}: not a single frame can be decoded")
        if None not in pts and all(before < after for before, after in itertools.pairwise(pts)):
            times = _seconds(np.asarray(pts, dtype=np.int64), container, stream)
        else:  # packed B-frames and the like: the number of a frame is all there is to go by
            start = min((value for value in pts if value is not None), default=0)
            rate = float(stream.average_rate or stream.guessed_rate or 25)
            times = _seconds(np.asarray([start]), container, stream) + np.arange(len(pts)) / rate
        _check_length(path, container, stream, times)
    return FrameListing(times, None, np.empty(0, np.int64), *size, av_only=reason)


def _seconds(pts: np.ndarray, container: Any, stream: Any) -> np.ndarray:
    """Time stamps in seconds from the start of the file, which is where a player's clock starts."""
    import av

    start = float(Fraction(container.start_time, av.time_base)) if container.start_time is not None else 0.0
    return np.maximum(pts * float(stream.time_base) - start, 0.0)  # the start is rounded to microseconds


def _shown_size(frame: Any) -> tuple[int, int]:
    return (frame.width, frame.height) if frame.rotation % 180 else (frame.height, frame.width)


def decode(container: Any, stream: Any) -> Iterator[Any]:
    """All frames from where the container stands. Damage before the first, as in a cut recording, is passed over."""
    import av

    started = False
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            if started:
                raise
            continue
        started = started or bool(frames)
        yield from frames
