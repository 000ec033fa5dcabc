"""Frames that a video file shows, and their times: read from its packets, with next to no decoding.

The list also says which reader to trust with the file. decord is wrong about these, without an error:

- MPEG-TS with B-frames: it never returns.
- An mp4 whose edit list trims, and avi with B-frames: frames are repeated or shifted.
- Open groups of pictures (frames stored after a keyframe but shown before it): a search jumps by two frames.
- Recovery points: they are taken for pictures (entry_points.py).
- Pixels of more than 8 bits: they become darker or brighter.

AV1 and raw streams it refuses by itself.
"""

from __future__ import annotations

import itertools
import stat
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import lru_cache
from os import stat_result
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.errors import UserError
from datamodules.video.entry_points import Entry, entry_test

SEARCHABLE_CONTAINERS = frozenset({"mov", "mp4", "matroska", "webm"})
"""Containers whose packets carry the time stamps of their frames, and that can be entered at any keyframe."""
DECORD_CONTAINERS = SEARCHABLE_CONTAINERS | {"avi"}
REORDERED_FRAMES = 32
"""Number of frames larger than any reordering by a codec."""
TRUNCATED = 0.9
"""A file with less than this part of the frames, or of the seconds, that its header promises has been cut off. Headers
of whole files differ by a few frames from what they hold (packed B-frames, rounded durations)."""


class VideoError(UserError):
    """A file that cannot be read as a video; the message names the file and the reason."""


class FrameListing(NamedTuple):
    """The N frames that a player shows of a file, as its packets tell; size after the rotation the file asks for."""

    times: np.ndarray
    """(N,) float64, seconds from the start of the file, increasing."""
    pts: np.ndarray | None
    """(N,) int64 presentation times in the stream's unit; None where frames can only be found by counting."""
    entry_pts: np.ndarray
    """Presentation times of the frames at which decoding may begin, ascending; not every keyframe is one."""
    height: int
    width: int
    av_only: str
    """Reason why PyAV must read this file; empty where decord may."""


def list_frames(path: str | Path) -> FrameListing:
    """List a file's frames. A second call for an unchanged file costs nothing."""
    path = Path(path)
    facts = state_of(path)
    if stat.S_ISDIR(facts.st_mode):
        raise VideoError("is a folder, not a video file", path)
    if not stat.S_ISREG(facts.st_mode):
        raise VideoError("is a pipe or a device, not a video file", path, "save what comes out of it, and name that")
    if facts.st_size == 0:
        raise VideoError("the file is empty (0 bytes)", path)
    return _list_unchanged(path, facts.st_size, facts.st_mtime_ns)


def state_of(path: Path, kind: str = "video file") -> stat_result:
    """Status of a video as the file system has it.

    Raises:
        VideoError: it is not there, or must not be looked at.
    """
    try:
        return path.stat()
    except FileNotFoundError:
        raise VideoError(f"no such {kind}", path) from None
    except OSError as error:  # no permission, a name that is too long, a file among the folders, links in a circle
        raise VideoError(f"cannot be read ({error.strerror})", path) from None


def open_container(path: str | Path) -> Any:
    """Open a file with PyAV; titles and the like may be in any encoding."""
    import av

    return av.open(str(path), metadata_errors="replace")


@lru_cache(maxsize=1024)
def _list_unchanged(path: Path, size: int, mtime_ns: int) -> FrameListing:
    """``list_frames`` of one state of a file: size and mtime are there for the cache to notice a change."""
    import av

    try:
        with open_container(path) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise VideoError("holds no video stream", path)
            names = set(container.format.name.split(","))
            codec = stream.codec_context
            if codec is None:
                raise VideoError("its pictures are in a format that cannot be decoded", path)
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
    except PermissionError as error:
        raise VideoError(f"cannot be read ({error.strerror})", path) from error
    except av.error.FFmpegError as error:
        raise VideoError(f"not a readable video, or truncated ({error.strerror})", path) from error


def _list_by_packets(path: Path, container: Any, stream: Any, reason: str) -> FrameListing | None:
    """Frames from the time stamps of the packets; None where these do not tell one frame from the next."""
    entry = entry_test(stream.codec_context.name, stream.codec_context.extradata)
    # FFmpeg takes the flag from packets that it sees through; the index still has it, and decord believes that.
    index, by_pts = _flagged_in_index(stream), "matroska" in container.format.name
    pts, entries, flagged, kinds, trimmed, first, end = [], [], None, set(), False, None, 0
    tested: set[int] = set()
    for packet in container.demux(stream):
        if first is None:
            first = next(iter(packet.decode()), None)
        if packet.size == 0:
            continue
        if packet.is_corrupt:
            promised = stream.frames or "?"
            raise VideoError(f"truncated or corrupt, packet {len(pts)} of {promised} is damaged", path)
        if packet.pts is None:
            return None
        end = max(end, _end(packet))
        place = packet.pts if by_pts else packet.dts
        if packet.is_keyframe or place in index:
            flagged = packet.pts
            kind = entry(bytes(packet))
            kinds.add(kind)
            tested.add(place)
            if kind is not Entry.NONE:
                entries.append(packet.pts)
        elif flagged is not None and packet.pts < flagged:
            kinds.add(Entry.OPEN)
        if packet.is_discard:
            trimmed = True
        else:
            pts.append(packet.pts)
    if _flagged_in_index(stream) - tested:  # some indices are read on the way
        kinds.add(Entry.NONE)
    if first is None or not pts:
        raise VideoError("not a single frame can be decoded", path)
    if not trimmed and len(pts) < stream.frames and "avi" not in container.format.name:
        raise VideoError(f"truncated, {len(pts)} of {stream.frames} frames are in the file", path)
    in_order = np.sort(np.asarray(pts, dtype=np.int64))
    if np.any(np.diff(in_order) <= 0):
        return None
    if first.pts != in_order[0]:
        in_order = _shown(path, in_order)
        if in_order is None:
            return None
    times = _seconds(in_order, container, stream)
    _check_length(path, container, stream, times, end)
    height, width = _shown_size(first)
    return FrameListing(
        times=times,
        pts=in_order,
        entry_pts=np.sort(np.asarray(entries, dtype=np.int64)),
        height=height,
        width=width,
        av_only=reason or _untrustworthy(trimmed, kinds),
    )


def _shown(path: Path, pts: np.ndarray) -> np.ndarray | None:
    """Without the frames at the start that are never shown, as in a recording that begins between two entries.

    None where a decoder does not give the others one after the other.
    """
    with open_container(path) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        given = [frame.pts for frame in itertools.islice(decode(container.demux(stream)), REORDERED_FRAMES)]
    shown = pts[pts >= given[0]] if given and given[0] is not None else pts[:0]
    return shown if given and shown[: len(given)].tolist() == given else None


def _flagged_in_index(stream: Any) -> set[int]:
    """Time stamps of the keyframes that the container lists: of decoding, in Matroska of showing."""
    return {place.timestamp for place in stream.index_entries if place.is_keyframe}


def _end(packet: Any) -> int:
    """The place behind a packet in the order of storage, in the stream's unit; 0 where it has none."""
    place = packet.pts if packet.dts is None else packet.dts
    return 0 if place is None or packet.size == 0 else place + 1


def _untrustworthy(trimmed: bool, kinds: set[Entry]) -> str:
    if trimmed:
        return "an edit list that trims frames"
    if Entry.NONE in kinds:
        return "keyframes that do not stand alone"
    return "open groups of pictures" if Entry.OPEN in kinds else ""


def _check_length(path: Path, container: Any, stream: Any, times: np.ndarray, end: int) -> None:
    """Refuse a file whose header promises much more than is there, of the kinds that do not notice it themselves.

    Args:
        end: place behind the last packet, in the stream's unit. In an avi file that unit is one frame, and places
            without a frame, where the one before is shown for longer, count.
    """
    if "avi" in container.format.name and end < TRUNCATED * stream.frames:
        raise VideoError(f"truncated, {end} of {stream.frames} frames are in the file", path)
    if "matroska" in container.format.name:
        # Counted from zero, not from the first frame: in the parts of a recording the clock goes on.
        promised = _promised_seconds(container, stream) - _start(container)
        if times[-1] < TRUNCATED * promised - 1:
            raise VideoError(f"truncated, its frames end at {times[-1]:.1f} s of {promised:.1f} s", path)


def _promised_seconds(container: Any, stream: Any) -> float:
    """Return the duration that a Matroska file states for its pictures; 0 if none, as in recordings without end."""
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

    with open_container(path) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        size, pts, end = (0, 0), [], 0

        def packets() -> Iterator[Any]:
            nonlocal end
            for packet in container.demux(stream):
                end = max(end, _end(packet))
                yield packet

        try:
            for frame in decode(packets()):
                size = size if pts else _shown_size(frame)
                pts.append(frame.pts)
        except av.error.FFmpegError as error:
            raise VideoError(f"corrupt after {len(pts)} decoded frames ({error.strerror})", path) from error
        if not pts:
            raise VideoError("not a single frame can be decoded", path)
        if None not in pts and all(before < after for before, after in itertools.pairwise(pts)):
            times = _seconds(np.asarray(pts, dtype=np.int64), container, stream)
        else:  # packed B-frames and similar: only the number of a frame is known
            start = min((value for value in pts if value is not None), default=0)
            rate = float(stream.average_rate or stream.guessed_rate or 25)
            times = _seconds(np.asarray([start]), container, stream) + np.arange(len(pts)) / rate
        _check_length(path, container, stream, times, end)
    return FrameListing(times, None, np.empty(0, np.int64), *size, av_only=reason)


def _seconds(pts: np.ndarray, container: Any, stream: Any) -> np.ndarray:
    """Time stamps in seconds from the start of the file, which is where a player's clock starts."""
    return np.maximum(pts * float(stream.time_base) - _start(container), 0.0)  # the start is rounded to microseconds


def _start(container: Any) -> float:
    """Return the seconds on the file's own clock at which it starts."""
    import av

    return float(Fraction(container.start_time, av.time_base)) if container.start_time is not None else 0.0


def _shown_size(frame: Any) -> tuple[int, int]:
    return (frame.width, frame.height) if frame.rotation % 180 else (frame.height, frame.width)


def decode(packets: Iterable[Any]) -> Iterator[Any]:
    """Yield all frames of a stream's packets. Damage before the first, as in a cut recording, is passed over."""
    import av

    started = False
    for packet in packets:
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            if started:
                raise
            continue
        started = started or bool(frames)
        yield from frames
