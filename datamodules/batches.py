"""The agreement between datamodules and lightning_modules: what a batch holds, field by field.

Pixels travel as uint8 RGB and are normalised on the device. In their place may be float16 maps computed from them by a
network's frozen stem (``MapFacts``): (B, T, C, H / stride, W / stride). Boxes are xyxy in pixels of the unpadded
network input, corners without +1. Labels are multi-hot over ``num_classes``; a box without any action (an idle person)
has a row of zeros.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor


class MapFacts(NamedTuple):
    """Origin of maps that stand in the place of pixels."""

    stem: str
    """Fingerprint of its weights."""
    name: str
    """Name of the stem in messages."""
    channels: int
    stride: int
    """Pixels of a frame from one cell of its map to the next."""


class ClipBatch(NamedTuple):
    """B clips of T sampled frames, L of which (the keyframes) are supervised.

    A clip detector has one keyframe in the middle of its clip (L = 1). A streaming student is trained on the frames up
    to its last keyframe; only its teacher sees those after it. A clip with an empty video id is a placeholder in
    evaluation for one that cannot be read: it must not count.
    """

    frames: Tensor
    """(B, T, 3, H, W) uint8, padded with zeros at the right and at the bottom to multiples of 32."""
    image_sizes: Tensor
    """(B, 2) int64, height and width of each clip before padding."""
    keyframes: tuple[int, ...]
    """L indices into T, ascending, the same for every clip of the batch."""
    annotated: Tensor
    """(B, L) bool: whether the keyframe carries annotation at all (an annotated keyframe may hold no box)."""
    exists: Tensor
    """(B, L) bool: False before the start of the video, where its first frame is repeated, and in a placeholder."""
    boxes: tuple[Tensor, ...]
    """B * L entries, clip-major: (M, 4) float32."""
    labels: tuple[Tensor, ...]
    """B * L entries, clip-major: (M, num_classes) float32 multi-hot."""
    video_ids: tuple[str, ...]
    """B names; empty for a placeholder."""
    timestamps: Tensor
    """(B, L) float64, seconds from the start of the video."""
    original_sizes: Tensor
    """(B, 2) int64, height and width of the original video."""


class Capture(NamedTuple):
    """Arrival of a live source's frames."""

    received: Tensor
    """(B, T) float64, when each frame was there, in seconds of ``time.monotonic``."""
    dropped: int
    """Frames due so far that were left out, since the model was busy with others; of all sources together."""
    reconnections: int
    """Times that the source was lost and found again; of all sources together."""


SourceState = Literal["connecting", "running", "stalled", "lost", "given up", "ended"]


class SourceHealth(NamedTuple):
    """State of one of several sources of frames."""

    name: str
    """Name as in ``video_ids``; ids of a folder's videos begin with it."""
    state: SourceState
    """Connecting: no frame yet. Running: frames come. Stalled: connected, but no frame for long. Lost: reconnection is
    tried. Given up: it is tried no more. Ended: the source is at its end."""
    received: int
    """Frames that came in so far, due or not."""
    dropped: int
    """Frames left out, as in ``Capture``; this and ``reconnections`` are of this source alone."""
    reconnections: int
    problem: str | None
    """Reason why it is lost or was given up; None while all is well."""


class StreamBatch(NamedTuple):
    """The next chunk of T frames of each of B parallel streams."""

    frames: Tensor
    """(B, T, 3, H, W) uint8, padded with zeros at the right and at the bottom to multiples of 32."""
    image_sizes: Tensor
    """(B, 2) int64, height and width of each stream before padding."""
    is_first: Tensor
    """(B,) bool: the chunk's first frame is the first of its stream, so the lane starts from the initial state."""
    is_valid: Tensor
    """(B, T) bool: False where a stream has ended (the frame is padding and must neither count nor advance a state)."""
    is_last: Tensor
    """(B,) bool: the stream ends with this chunk. For a live source this is not known beforehand."""
    annotated: Tensor
    """(B, T) bool: whether the frame carries annotation."""
    boxes: tuple[Tensor, ...]
    """B * T entries, lane-major: (M, 4) float32."""
    labels: tuple[Tensor, ...]
    """B * T entries, lane-major: (M, num_classes) float32 multi-hot."""
    video_ids: tuple[str, ...]
    """B names; empty for a lane that has run out of videos."""
    timestamps: Tensor
    """(B, T) float64, seconds from the start of the video."""
    original_sizes: Tensor
    """(B, 2) int64, height and width of the original video."""
    frame_indices: Tensor
    """(B, T) int64, numbers of the frames in their video, counted from 0; of a live source, frames received before."""
    pictures: tuple[np.ndarray, ...] = ()
    """B * T frames as they were read, lane-major: (h, w, 3) uint8 of the original size. Empty unless predicting."""
    capture: Capture | None = None
    """Arrival of the frames, of a live source or of several sources at once; None otherwise."""
    lanes: tuple[int, ...] | None = None
    """Number of the lane that each of the B rows is, where only some of the lanes have a frame; every row is valid
    then, but in a chunk that only ends a stream. None where row i is lane i."""


class TrueKeyframe(NamedTuple):
    """The ground truth of one keyframe that detectors are scored on: M boxes, K classes."""

    video_id: str
    timestamp: float
    """Seconds as the data set's annotation counts them: AVA's films begin at 900."""
    boxes: np.ndarray
    """(M, 4) float32 xyxy in pixels of the original video."""
    labels: np.ndarray
    """(M, K) multi-hot."""
    original_size: tuple[int, int]
    """Height and width of the original video."""


class TrueTube(NamedTuple):
    """One person doing one action without a break, in the sampled frames of a video."""

    label: int
    frames: np.ndarray
    """(T,) int64, consecutive numbers of sampled frames."""
    boxes: np.ndarray
    """(T, 4) float32 xyxy in pixels of the original video."""
    person: int = -1
    """Number of the person within the video; -1 where it is not annotated."""


class TrueTubes(NamedTuple):
    """The ground truth of one video that tubes are scored on."""

    num_slots: int
    """Number of frames that a stream takes of the video."""
    annotated: dict[float, int]
    """Time stamps, as batches have them, of the annotated ones among the sampled frames, and the number of each."""
    tubes: tuple[TrueTube, ...]


class SegmentBatch(NamedTuple):
    """B windows of T steps of untrimmed videos; a step is a sampled frame or a stored feature.

    In evaluation the windows of a video follow each other, on one process, until ``is_last``. A window whose video id
    is empty stands in where a process has run out of videos: it must not count.
    """

    features: Tensor | None
    """(B, C, T) float32, zeros where ``mask`` is False; None where there are frames."""
    frames: Tensor | None
    """(B, T, 3, H, W) uint8, padded with zeros at the right and at the bottom to multiples of 32; zeros where ``mask``
    is False. None where there are features."""
    flow: Tensor | None
    """(B, T, 2, H, W) float32, motion since the frame before: pixels of these frames, x (to the right) then y (down).
    Zero at the first step of a video, where ``mask`` is False and in the padding; cut and mirrored as the frames are.
    None where it was not asked for."""
    mask: Tensor
    """(B, T) bool: False after the end of the video."""
    is_new: Tensor
    """(B, T) bool: False after the end of the video, and in evaluation for steps that an earlier window has shown."""
    image_sizes: Tensor | None
    """(B, 2) int64, height and width of the frames before padding."""
    times: Tensor
    """(B, T) float64, the middle of each step in seconds from the start of the video; goes on evenly after its end."""
    step_seconds: Tensor
    """(B,) float64, from one step to the next."""
    segments: tuple[Tensor, ...]
    """B entries: (n, 2) float64, start and end in seconds from the start of the video, cut to what the window shows."""
    labels: tuple[Tensor, ...]
    """B entries: (n,) int64 class ids."""
    video_segments: tuple[Tensor, ...]
    """B entries: (m, 2) float64, all segments of the window's video, uncut."""
    video_labels: tuple[Tensor, ...]
    """B entries: (m,) int64."""
    video_ambiguous: tuple[Tensor, ...]
    """B entries: (k, 2) float64, spans of the window's video that are annotated as ambiguous."""
    video_ids: tuple[str, ...]
    """B names; empty for a window that stands in."""
    durations: Tensor
    """(B,) float64, length of each window's video in seconds."""
    is_last: Tensor
    """(B,) bool: no further window of this video follows in the evaluation."""
