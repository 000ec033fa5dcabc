"""RoIAlign as two small matrix products per box.

Bilinear sampling on a grid of points is separable: one matrix gathers rows, one gathers columns. The values are those
of torchvision's compiled operator with ``aligned=True``, without gradient to the boxes. Samples more than one cell
outside the map count as zero. Unlike it the products have a fast backward pass, share their weights over all slots of a
clip, and export as plain matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import roi_align as torchvision_roi_align

RoiKernel = Literal["separable", "torchvision"]


def has_compiled_kernel(maps: Tensor) -> bool:
    """Return whether torchvision would run its compiled operator on these maps.

    Where it cannot load, and on GPUs under ``torch.use_deterministic_algorithms``, torchvision takes a plain Python
    form instead, whose values differ from the operator's. To ``torch.compile`` the operator is opaque and its choice of
    boxes depends on data, so the other form is compiled.
    """
    if torch.compiler.is_compiling():
        return False
    loaded = hasattr(torch.ops.torchvision, "roi_align")
    return loaded and not (torch.are_deterministic_algorithms_enabled() and maps.device.type != "cpu")


def sampling_matrix(start: Tensor, end: Tensor, bins: int, length: int, sampling_ratio: int) -> Tensor:
    """Weights that average ``sampling_ratio`` bilinear samples in each of ``bins`` bins between start and end.

    Shapes: start, end (...,), in cells of the map, half-pixel shift already taken off; returns (..., bins, length).
    """
    steps = torch.arange(bins * sampling_ratio, device=start.device, dtype=start.dtype) + 0.5
    samples = start[..., None] + (end - start)[..., None] * (steps / (bins * sampling_ratio))
    inside = (samples >= -1) & (samples <= length)
    cells = torch.arange(length, device=start.device, dtype=start.dtype)
    weights = (1 - (samples.clamp(0, length - 1)[..., None] - cells).abs()).clamp(min=0) * inside[..., None]
    return weights.unflatten(-2, (bins, sampling_ratio)).mean(dim=-2)


def separable_roi_align(maps: Tensor, boxes: Tensor, output_size: int, scale: float, sampling_ratio: int = 2) -> Tensor:
    """RoIAlign of the same boxes in each of a batch element's maps.

    Shapes: maps (B, C, h, w), boxes (B, P, 4) xyxy in pixels, scale in cells a pixel; returns (B, P, C, r, r).
    """
    x1, y1, x2, y2 = (boxes.detach() * scale - 0.5).unbind(-1)
    rows = sampling_matrix(y1, y2, output_size, maps.shape[-2], sampling_ratio).to(maps.dtype)  # (B, P, r, h)
    columns = sampling_matrix(x1, x2, output_size, maps.shape[-1], sampling_ratio).to(maps.dtype)  # (B, P, r, w)
    flat = maps.permute(0, 2, 3, 1).flatten(2)  # (B, h, w C)
    gathered = (rows.flatten(1, 2) @ flat).view(*rows.shape[:3], maps.shape[-1], maps.shape[1])  # (B, P, r, w, C)
    return (columns[:, :, None] @ gathered).permute(0, 1, 4, 2, 3)  # (B, P, r, r, C) -> (B, P, C, r, r)


def pyramid_levels(boxes: Tensor, num_levels: int, finest: int = 2, canonical_size: float = 224.0) -> Tensor:
    """The pyramid level of each box, (..., 4) -> (...,) int64 counted from the finest (FPN, eq. 1).

    floor(4 + log2(sqrt(area) / canonical_size)), kept within the levels there are.
    """
    sizes = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1).clamp(min=0).sqrt()
    levels = torch.floor(4 + torch.log2(sizes / canonical_size + 1e-8))
    return levels.clamp(finest, finest + num_levels - 1).long() - finest


def pyramid_roi_align(
    pyramid: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Tensor,
    output_size: int,
    kernel: RoiKernel = "separable",
    sampling_ratio: int = 2,
) -> Tensor:
    """RoIAlign of every box in the pyramid level that fits its size.

    ``separable`` reads every level and keeps one, which is fastest for small maps and in training. ``torchvision``
    reads one level per box with the compiled operator, which is fastest for large maps in eval. Both give the same
    values, and where the compiled operator is not to be had ``separable`` takes its place.

    Shapes: pyramid of (B, C, h_i, w_i), boxes (B, P, 4) xyxy in pixels; returns (B, P, C, r, r).
    """
    boxes = boxes.detach()
    levels = pyramid_levels(boxes, len(pyramid))
    if kernel == "separable" or not has_compiled_kernel(pyramid[0]):
        crops = [
            separable_roi_align(maps, boxes, output_size, 1 / stride, sampling_ratio)
            for maps, stride in zip(pyramid, strides, strict=True)
        ]
        chosen = [(levels == level)[..., None, None, None] for level in range(len(crops))]
        # `where`, not a sum of products: a NaN of a level that is not read must not spread.
        merged = crops[0]
        for crop, mask in zip(crops[1:], chosen[1:], strict=True):
            merged = torch.where(mask, crop, merged)
        return merged
    item = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)[:, None, None].expand_as(boxes[..., :1])
    rois, levels = torch.cat([item, boxes], dim=-1).flatten(0, 1), levels.flatten()
    merged = pyramid[0].new_zeros(len(rois), pyramid[0].shape[1], output_size, output_size)
    for level, (maps, stride) in enumerate(zip(pyramid, strides, strict=True)):
        index = torch.nonzero(levels == level)[:, 0]
        # The operator wants maps and boxes of one type, and half precision has too few digits for boxes.
        common = torch.promote_types(maps.dtype, rois.dtype)
        crop = torchvision_roi_align(
            maps.to(common), rois[index].to(common), output_size, 1 / stride, sampling_ratio, aligned=True
        )
        merged = merged.index_copy(0, index, crop.to(merged.dtype))
    return merged.unflatten(0, boxes.shape[:2])
