"""The agreement between datamodules and lightning_modules: what a batch holds, field by field.

Pixels travel as uint8 RGB and are normalised on the device. Boxes are xyxy in pixels of the unpadded network input,
corners without +1. Labels are multi-hot over ``num_classes``; a box without any action (somebody standing idle) has a
row of zeros.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ClipBatch(NamedTuple):
    """B clips of T sampled frames, L of which (the keyframes) are supervised.

    A clip detector has one keyframe in the middle of its clip (L = 1). A streaming student is trained on the frames up
    to its last keyframe; the frames after it are the future that only its teacher may see.
    """

    frames: Tensor
    """(B, T, 3, H, W) uint8, padded with zeros at the right and at the bottom to multiples of 32."""
    image_sizes: Tensor
    """(B, 2) int64, height and width of each clip before padding."""
    keyframes: tuple[int, ...]
    """L indices into T, ascending, the same for every clip of the batch."""
    annotated: Tensor
    """(B, L) bool: whether the keyframe carries annotation at all (an annotated keyframe may hold no box)."""
    boxes: tuple[Tensor, ...]
    """B * L entries, clip-major: (M, 4) float32."""
    labels: tuple[Tensor, ...]
    """B * L entries, clip-major: (M, num_classes) float32 multi-hot."""
    video_ids: tuple[str, ...]
    """B names."""
    timestamps: Tensor
    """(B, L) float64, seconds from the start of the video."""
    original_sizes: Tensor
    """(B, 2) int64, height and width of the original video."""


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
