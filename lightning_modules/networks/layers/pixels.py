"""Conversion of uint8 pixels to network input, on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MEAN, STD = 0.45, 0.225
"""EVAD's normalisation, the same for every channel (`EVAD.md`, section 9)."""


def normalise_frames(frames: Tensor, image_sizes: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 (B, T, 3, H, W) -> normalised ``dtype``; pixels outside ``image_sizes`` (B, 2) are zero, as EVAD pads.

    Maps of a stem in place of pixels, which are floating-point numbers, only change their ``dtype``.
    """
    if frames.is_floating_point():
        return frames.to(dtype)
    normalised = (frames.to(dtype) / 255 - MEAN) / STD
    if image_sizes is None:
        return normalised
    rows = torch.arange(frames.shape[-2], device=frames.device) < image_sizes[:, 0, None]  # (B, H)
    columns = torch.arange(frames.shape[-1], device=frames.device) < image_sizes[:, 1, None]  # (B, W)
    inside = rows[:, :, None] & columns[:, None, :]
    # A masked fill, not a product: padding must be zero for any content.
    return normalised.masked_fill(~inside[:, None, None], 0)


def gather_clips(frames: Tensor, places: Tensor, wanted: Tensor | None = None) -> Tensor:
    """Frames (B, T, 3, H, W) -> the clips of L keyframes, (B L, 3, T', H, W), each frame copied once.

    places (L, T') say which frames a clip has, the same in every sample; wanted (N,), which of the B L clips to take.
    """
    batch, length, channels = frames.shape[:3]
    samples = torch.arange(batch, device=frames.device)[:, None, None, None] * length
    planes = (samples + places[:, None]) * channels + torch.arange(channels, device=frames.device)[:, None]
    planes = planes.flatten(0, 1) if wanted is None else planes.flatten(0, 1)[wanted]  # (N, 3, T')
    return frames.flatten(0, 2).index_select(0, planes.flatten()).view(*planes.shape, *frames.shape[-2:])


def pad_clips(clips: Sequence[Tensor], multiple: int) -> tuple[Tensor, Tensor]:
    """Clips (C, T, H_i, W_i) -> a batch (B, C, T, H, W) padded right and below, and the sizes (B, 2) before padding."""
    sizes = torch.tensor([clip.shape[-2:] for clip in clips], device=clips[0].device)
    height, width = (-(-int(side) // multiple) * multiple for side in sizes.amax(0))
    batch = [F.pad(clip, (0, width - clip.shape[-1], 0, height - clip.shape[-2])) for clip in clips]
    return torch.stack(batch), sizes
