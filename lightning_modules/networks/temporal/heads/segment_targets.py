"""Targets for the dense places of segment heads, made of the true segments of their windows.

Times are in units of features. B windows, N true segments of the window that has most, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

SAME_LENGTH = 1e-3
"""Segments whose lengths differ by no more are equally short."""


class Truth(NamedTuple):
    """True segments as tensors; at least one row per window."""

    segments: Tensor
    """(B, N, 2) float32, zeros where there is none."""
    classes: Tensor
    """(B, N, K) float32, one-hot, zeros where there is no segment."""
    is_real: Tensor
    """(B, N) bool."""


class PointTargets(NamedTuple):
    """Targets for P points."""

    classes: Tensor
    """(B, P, K) float32, multi-hot; zeros for background."""
    segments: Tensor
    """(B, P, 2) float32; of no meaning for background."""
    is_positive: Tensor
    """(B, P) bool."""


class CellTargets(NamedTuple):
    """Targets for the cells of D durations and T starts."""

    classes: Tensor
    """(B, D, T, K) float32, multi-hot."""
    overlap: Tensor
    """(B, D, T) float32, tIoU with the nearest true segment of any class."""


def as_truth(segments: Sequence[Tensor], labels: Sequence[Tensor], num_classes: int) -> Truth:
    """B entries (n, 2) and (n,) -> padded tensors."""
    for window, (some, ids) in enumerate(zip(segments, labels, strict=True)):
        if len(some) != len(ids):
            raise ValueError(f"window {window} has {len(some)} segments but {len(ids)} labels")
    padded = pad_sequence([some.reshape(-1, 2).float() for some in segments], batch_first=True)
    missing = max(0, 1 - padded.shape[1])
    counts = torch.tensor([len(some) for some in segments], device=padded.device)
    padded = F.pad(padded, (0, 0, 0, missing))
    is_real = torch.arange(padded.shape[1], device=padded.device) < counts[:, None]
    ids = F.pad(pad_sequence([ids.long() for ids in labels], batch_first=True), (0, missing))
    return Truth(padded, F.one_hot(ids, num_classes).float() * is_real[..., None], is_real)


def point_targets(
    truth: Truth, times: Tensor, strides: Tensor, nearest: Tensor, farthest: Tensor, radius: float
) -> PointTargets:
    """Assign to each point the shortest segment that it may have (ActionFormer's rule).

    Allowed is one around the point, whose middle is less than ``radius`` strides away, and whose more distant end is
    ``nearest`` to ``farthest`` away. Of equally short segments the point takes all classes and the first one's ends.

    Shapes: times, strides, nearest and farthest (B, P).
    """
    times, strides, nearest, farthest = (part[..., None] for part in (times, strides, nearest, farthest))
    start, end = truth.segments[:, None].unbind(-1)  # (B, 1, N)
    middle, reach = (start + end) / 2, radius * strides
    is_inside = (times > torch.maximum(start, middle - reach)) & (times < torch.minimum(end, middle + reach))
    distance = torch.maximum(times - start, end - times)
    is_allowed = is_inside & (distance >= nearest) & (distance <= farthest) & truth.is_real[:, None]
    length = (end - start).where(is_allowed, torch.inf)  # (B, P, N)
    shortest, index = length.min(dim=-1, keepdim=True)
    chosen = is_allowed & (length <= shortest + SAME_LENGTH)
    classes = (chosen.float() @ truth.classes).clamp(max=1)
    segments = truth.segments.gather(1, index.expand(-1, -1, 2))
    return PointTargets(classes, segments, shortest[..., 0].isfinite())


def cell_targets(truth: Truth, cells: Tensor, threshold: float) -> CellTargets:
    """A cell has the classes of segments that it overlaps by ``threshold`` or more, or than which none overlaps more.

    So every segment has a cell, also one that is shorter than a feature or longer than the longest duration.

    Shapes: cells (B, D, T) bool, False for a cell that is not all inside its window; row d is of duration d + 1.
    """
    durations, length = cells.shape[1:]
    start = torch.arange(length, device=cells.device, dtype=torch.float32)
    end = start + torch.arange(1, durations + 1, device=cells.device)[:, None]  # (D, T)
    true_start, true_end = truth.segments[..., None, None, :].unbind(-1)  # (B, N, 1, 1)
    both = (torch.minimum(end, true_end) - torch.maximum(start, true_start)).clamp(min=0)
    either = (end - start) + (true_end - true_start) - both
    overlap = both / either * cells[:, None] * truth.is_real[..., None, None]  # (B, N, D, T)
    best = overlap.amax(dim=(2, 3), keepdim=True)
    is_close = (overlap >= best.clamp(max=threshold)) & (overlap > 0)
    classes = torch.einsum("bndt,bnk->bdtk", is_close.float(), truth.classes).clamp(max=1)
    return CellTargets(classes, overlap.amax(dim=1))


def boundary_targets(truth: Truth, length: int, radius: float) -> tuple[Tensor, Tensor]:
    """Return where a true segment starts within ``radius`` of time i, and where one ends so near i + 1: (B, T) each."""
    times = torch.arange(length, device=truth.segments.device, dtype=torch.float32)
    start, end = truth.segments[..., None].unbind(-2)  # (B, N, 1)
    starts = ((times - start).abs() <= radius) & truth.is_real[..., None]
    ends = ((times + 1 - end).abs() <= radius) & truth.is_real[..., None]
    return starts.any(1), ends.any(1)
