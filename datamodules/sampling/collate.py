"""Collation of samples to batches: padding to a common size, and pixels from (H, W, 3) to (3, H, W)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.batches import ClipBatch

SIZE_MULTIPLE = 32
"""Networks halve the frame up to five times."""


def padded_size(height: int, width: int) -> tuple[int, int]:
    """The size of a frame in a batch of its own.

    >>> padded_size(96, 100)
    (96, 128)
    """
    return -(-height // SIZE_MULTIPLE) * SIZE_MULTIPLE, -(-width // SIZE_MULTIPLE) * SIZE_MULTIPLE


def kinds_of_size(sizes: Iterable[tuple[int, int]]) -> np.ndarray:
    """(V,) int64, a number for each of V frame sizes (height, width), the same where their padded sizes are.

    >>> kinds_of_size([(96, 100), (64, 64), (90, 128)]).tolist()
    [1, 0, 1]
    """
    return np.unique([padded_size(*size) for size in sizes], axis=0, return_inverse=True)[1].reshape(-1)


class ClipSample(NamedTuple):
    """One clip before it becomes part of a ClipBatch; L keyframes, M boxes on each."""

    frames: np.ndarray
    """(T, h, w, 3) uint8, or maps of them (T, C, h, w) float16."""
    annotated: np.ndarray
    """(L,) bool."""
    exists: np.ndarray
    """(L,) bool."""
    boxes: list[np.ndarray]
    """L arrays (M, 4), xyxy in pixels of the frames."""
    labels: list[np.ndarray]
    """L arrays (M, K) multi-hot."""
    video_id: str
    timestamps: np.ndarray
    """(L,) seconds."""
    original_size: tuple[int, int]
    size: tuple[int, int] | None = None
    """Height and width of the frames that maps are of; None of pixels."""


def stack_frames(clips: Sequence[np.ndarray], at_least: tuple[int, int] = (1, 1)) -> tuple[Tensor, Tensor]:
    """B clips (T, h, w, 3) of any sizes -> (B, T, 3, H, W) uint8 padded with zeros, and (B, 2) sizes h, w.

    H and W are the largest h and w, and no smaller than ``at_least``, rounded up to a multiple of SIZE_MULTIPLE.
    """
    sizes = torch.tensor([clip.shape[1:3] for clip in clips])
    height, width = padded_size(*torch.maximum(sizes.amax(0), torch.tensor(at_least)).tolist())
    shape = (len(clips), len(clips[0]), 3, height, width)
    same = bool((sizes == torch.tensor([height, width])).all())
    frames = torch.empty(shape, dtype=torch.uint8) if same else torch.zeros(shape, dtype=torch.uint8)
    for into, clip in zip(frames, clips, strict=True):
        into[:, :, : clip.shape[1], : clip.shape[2]].copy_(torch.from_numpy(clip).permute(0, 3, 1, 2))
    return frames, sizes


def stack_maps(maps: Sequence[np.ndarray]) -> Tensor:
    """B clips of maps (T, C, h, w) of any sizes -> (B, T, C, H, W) float16, padded with zeros to the largest."""
    height, width = (max(clip.shape[axis] for clip in maps) for axis in (2, 3))
    stacked = torch.zeros(len(maps), *maps[0].shape[:2], height, width, dtype=torch.float16)
    for into, clip in zip(stacked, maps, strict=True):
        into[..., : clip.shape[2], : clip.shape[3]] = torch.from_numpy(clip)
    return stacked


def stack_clips(
    clips: Sequence[np.ndarray], sizes: Sequence[tuple[int, int] | None], at_least: tuple[int, int] = (1, 1)
) -> tuple[Tensor, Tensor]:
    """``stack_frames``, or ``stack_maps`` of clips whose ``sizes`` (height and width of their frames) are given."""
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return stack_frames(clips, at_least)
    return stack_maps(clips), torch.tensor(known)


def stack_flow(flows: Sequence[np.ndarray], size: tuple[int, int]) -> Tensor:
    """B windows (T, 2, h, w) of any sizes -> (B, T, 2, H, W) float32 padded with zeros to ``size``, which is H, W."""
    stacked = torch.zeros(len(flows), len(flows[0]), 2, *size)
    for into, flow in zip(stacked, flows, strict=True):
        into[..., : flow.shape[2], : flow.shape[3]] = torch.from_numpy(flow)
    return stacked


def collate_clips(samples: Sequence[ClipSample], keyframes: tuple[int, ...]) -> ClipBatch:
    """Collate samples of one shape of window; ``keyframes`` are the supervised positions in it."""
    frames, sizes = stack_clips([sample.frames for sample in samples], [sample.size for sample in samples])
    return ClipBatch(
        frames=frames,
        image_sizes=sizes,
        keyframes=keyframes,
        annotated=torch.from_numpy(np.stack([sample.annotated for sample in samples])),
        exists=torch.from_numpy(np.stack([sample.exists for sample in samples])),
        boxes=tuple(torch.from_numpy(boxes.astype(np.float32)) for sample in samples for boxes in sample.boxes),
        labels=tuple(torch.from_numpy(labels.astype(np.float32)) for sample in samples for labels in sample.labels),
        video_ids=tuple(sample.video_id for sample in samples),
        timestamps=torch.from_numpy(np.stack([sample.timestamps for sample in samples])),
        original_sizes=torch.tensor([sample.original_size for sample in samples]),
    )
