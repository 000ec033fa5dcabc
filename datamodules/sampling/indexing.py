"""Frames of a clip, a window, a stream: integer arithmetic on frame numbers.

A *raw frame* is a frame of the file. A stream takes every ``stride``-th raw frame; the k-th frame taken is *slot* k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


def window_indices(keyframe: int, past: int, future: int, stride: int, length: int) -> np.ndarray:
    """``past`` frames that end with the keyframe, then ``future`` more, clamped to the video: (past + future,) int64.

    Where the window leaves the video its first or last frame is repeated, as EVAD pads its clips.

    >>> window_indices(10, past=4, future=2, stride=3, length=14).tolist()
    [1, 4, 7, 10, 13, 13]
    >>> window_indices(4, past=4, future=0, stride=3, length=14).tolist()
    [0, 0, 1, 4]
    """
    return np.clip(keyframe + stride * np.arange(1 - past, future + 1), 0, length - 1)


def num_slots(length: int, stride: int) -> int:
    """Return the number of frames that a stream takes of a video: frames 0, stride, 2 * stride, ...

    >>> num_slots(9, 4), num_slots(8, 4)
    (3, 2)
    """
    return -(-length // stride)


def keyframes_on_grid(frame_indices: Sequence[int] | np.ndarray, stride: int, length: int) -> np.ndarray:
    """Return the annotated raw frames that a stream is scored on: (S, 2) int64 (slot, position in ``frame_indices``).

    An annotated frame belongs to the last sampled frame at or before it, since a later one has not been seen at that
    moment. Where several fall into one slot, the one nearest to the sampled frame stands for it. Rows are in order of
    slots.

    Stride 4 takes frames 0, 4, 8. Of the annotated frames 1, 3, 4, 6, 9, slot 0 keeps 1, slot 1 keeps 4, slot 2 has 9:

    >>> keyframes_on_grid([1, 3, 4, 6, 9], stride=4, length=10).tolist()
    [[0, 0], [1, 2], [2, 4]]
    """
    frames = np.asarray(frame_indices, dtype=np.int64)
    if frames.size and (frames.min() < 0 or frames.max() >= length):
        raise ValueError(f"annotated frames {frames.min()}..{frames.max()} leave a video of {length} frames")
    order = np.argsort(frames, kind="stable")
    slots, first = np.unique(frames[order] // stride, return_index=True)
    return np.stack([slots, order[first]], axis=1)


def annotated_at(frames: np.ndarray, annotated: np.ndarray, stride: int) -> np.ndarray:
    """Return each sampled frame's annotation: positions in ``annotated``, -1 where there is none.

    The rule of ``keyframes_on_grid`` for a stream of any phase. ``annotated`` is ascending; sampled frames before the
    start of the video (negative) have none.

    >>> annotated_at(np.array([-1, 3, 7, 11]), np.array([0, 5, 6, 11]), stride=4).tolist()
    [-1, 1, -1, 3]
    """
    after = np.searchsorted(annotated, frames)
    found = np.minimum(after, len(annotated) - 1)
    belongs = (frames >= 0) & (annotated[found] >= frames) & (annotated[found] < frames + stride)
    return np.where(belongs, found, -1)


def sliding_windows(length: int, window: int, overlap: float) -> np.ndarray:
    """First steps of windows that cover a video of ``length`` steps: (S,) int64.

    Neighbours share ``overlap`` of a window; the last one ends with the video and may share more. A video shorter than
    a window has one.

    >>> sliding_windows(39, window=32, overlap=0.5).tolist()
    [0, 7]
    >>> sliding_windows(64, window=32, overlap=0.5).tolist(), sliding_windows(5, window=32, overlap=0.5).tolist()
    ([0, 16, 32], [0])
    """
    stride = max(1, round(window * (1 - overlap)))
    last = max(length - window, 0)
    return np.append(np.arange(0, last, stride), last)


class StreamChunk(NamedTuple):
    """A piece of one video on one lane of a batch."""

    video: int
    """Position of the video; -1 where the lane has run out of videos."""
    start: int
    """First slot of the piece."""
    valid: int
    """Number of slots of the piece that exist; the rest of the chunk is padding."""
    phase: int = 0
    """First raw frame of the stream that the piece belongs to."""


NOTHING = StreamChunk(video=-1, start=0, valid=0)


def stream_chunks(
    slots_per_video: Sequence[Sequence[int]], lanes: int, chunk: int, rank: int = 0, world_size: int = 1
) -> list[tuple[StreamChunk, ...]]:
    """The steps in which one rank streams its share of the videos: one ``StreamChunk`` a lane and step.

    A video is one stream, or one for each phase, which follow each other. Whole videos go to the lanes of all ranks,
    longest first, each to the lane with the least to do. Every slot of every stream occurs exactly once over all
    ranks; all ranks take equally many steps, the last ones with empty lanes.

    Args:
        slots_per_video: for each video the number of slots of each of its streams, which begin at raw frames 0, 1, ...
        lanes, chunk: streams at a time, and slots of each.
        rank, world_size: of the process.

    >>> for step in stream_chunks([[5], [2, 1], [3]], lanes=2, chunk=2):
    ...     print([tuple(chunk) for chunk in step])
    [(0, 0, 2, 0), (1, 0, 2, 0)]
    [(0, 2, 2, 0), (1, 0, 1, 1)]
    [(0, 4, 1, 0), (2, 0, 2, 0)]
    [(-1, 0, 0, 0), (2, 2, 1, 0)]
    """
    if lanes < 1 or chunk < 1:
        raise ValueError(f"lanes and chunk must be at least 1, got {lanes} and {chunk}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not one of {world_size}")
    table: list[list[StreamChunk]] = [[] for _ in range(lanes * world_size)]
    for video in sorted(range(len(slots_per_video)), key=lambda v: (-sum(slots_per_video[v]), v)):
        lane = min(table, key=len)
        for phase, slots in enumerate(slots_per_video[video]):
            lane.extend(StreamChunk(video, start, min(chunk, slots - start), phase) for start in range(0, slots, chunk))
    steps = max((len(lane) for lane in table), default=0)
    # Ranks take lanes in turn, so that the longest lanes do not all fall to the first rank.
    mine = table[rank::world_size]
    return [tuple(lane[step] if step < len(lane) else NOTHING for lane in mine) for step in range(steps)]
