"""A feature pyramid over the keyframe's maps (EVAD, `EVAD.md`, section 4), computed on the token grid."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.constants import constant
from ..layers.prepared import Preparable

Groups = tuple[tuple[int, ...], ...]

# A 3x3 convolution over a nearest-upsampled map sees, at the first row of a cell, the cell above and (twice) the cell
# itself; at the last row the cell itself (twice) and the one below; between them the cell alone. So its kernel folds
# into one of these few smaller ones: (offset of the first cell read, which kernel rows, one after the other, add up for
# each cell).
_FIRST: tuple[int, Groups] = (-1, ((0,), (1, 2)))
_MIDDLE: tuple[int, Groups] = (0, ((0, 1, 2),))
_LAST: tuple[int, Groups] = (0, ((0, 1), (2,)))


def _folded(weight: Tensor, rows: Groups, columns: Groups) -> Tensor:
    """(O, I, 3, 3) -> (O, I, len(rows), len(columns)): kernel rows and columns added up as the phase reads them."""
    # By slices: a list of places would be copied to a GPU anew each time.
    weight = torch.stack([weight[:, :, group[0] : group[-1] + 1].sum(2) for group in rows], dim=2)
    return torch.stack([weight[..., group[0] : group[-1] + 1].sum(-1) for group in columns], dim=-1)


def phase_kernels(weight: Tensor, factor: int) -> list[Tensor]:
    """The small kernels that a 3x3 kernel (O, I, 3, 3) is on maps upsampled ``factor`` times: one a phase, by rows."""
    kinds = _kinds(factor)
    return [_folded(weight, rows, columns) for _, rows in kinds for _, columns in kinds]


def _kinds(factor: int) -> tuple[tuple[int, Groups], ...]:
    return (_FIRST, _LAST) if factor == 2 else (_FIRST, _MIDDLE, _LAST)


def conv_after_upsampling(
    maps: Tensor, weight: Tensor, bias: Tensor, factor: int, kernels: list[Tensor] | None = None
) -> Tensor:
    """3x3 convolution (padding 1) of the ``factor`` times nearest-upsampled maps, without upsampling them.

    Equal to ``conv2d(interpolate(maps, scale_factor=factor, mode="nearest"), weight, bias, padding=1)``; within a cell
    of factor x factor pixels only the first, the last and the pixels between differ. So 4 (factor 2) or 9 (factor 4)
    small convolutions of the cells give all values. Factor 4 takes 25 instead of 144 multiply-adds per cell and channel
    pair.

    Shapes: maps (B, I, h, w), weight (O, I, 3, 3); returns (B, O, factor h, factor w). ``kernels`` are the weight's
    ``phase_kernels`` where they are known already.
    """
    if factor == 1:
        return F.conv2d(maps, weight, bias, padding=1)
    height, width = maps.shape[-2:]
    kinds, padded, phases = _kinds(factor), F.pad(maps, (1, 1, 1, 1)), []
    next_kernels = iter(kernels or phase_kernels(weight, factor))
    for row_offset, rows in kinds:
        top = 1 + row_offset
        for column_offset, columns in kinds:
            left = 1 + column_offset
            cells = padded[..., top : top + height + len(rows) - 1, left : left + width + len(columns) - 1]
            phases.append(F.conv2d(cells, next(next_kernels), bias))
    stacked = torch.stack(phases, dim=2).unflatten(2, (len(kinds), len(kinds)))  # (B, O, kinds, kinds, h, w)
    if factor > len(kinds):
        pixels = constant((0, *[1] * (factor - 2), 2), maps, torch.long)
        stacked = stacked.index_select(2, pixels).index_select(3, pixels)
    return stacked.permute(0, 1, 4, 2, 5, 3).reshape(maps.shape[0], -1, factor * height, factor * width)


class KeyframePyramid(Preparable):
    """FPN at strides 4, 8, 16 and 32 over four maps of stride 16; biases, no norm, no activation.

    The maps are resampled by nearest neighbour, which changes nothing for a 1x1 convolution. So laterals and top-down
    sums are computed on the token grid, and only the output convolutions know the finer strides. The values are those
    of upsampling first. Prepared for inference, the output convolutions keep their folded kernels.

    Shapes: maps (finest level first) of (B, C, h, w), h and w even; returns (B, D, 4h, 4w), (B, D, 2h, 2w),
    (B, D, h, w), (B, D, h/2, w/2).
    """

    num_levels = 4
    upsampling = (4, 2, 1)

    def __init__(self, in_dim: int, dim: int = 256, patch_size: int = 16) -> None:
        super().__init__()
        if patch_size < 4 or patch_size % 4:
            raise ValueError(
                f"patch_size={patch_size} does not divide by 4, but the pyramid's finest level has a quarter of it as "
                "its stride"
            )
        self.strides = (patch_size // 4, patch_size // 2, patch_size, patch_size * 2)
        self.laterals = nn.ModuleList(nn.Conv2d(in_dim, dim, 1) for _ in range(4))
        self.outputs = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(4))
        for conv in [*self.laterals, *self.outputs]:
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if maps[0].shape[-2] % 2 or maps[0].shape[-1] % 2:
            raise ValueError(
                f"the token grid is {tuple(maps[0].shape[-2:])} but the pyramid's coarsest level needs even numbers; "
                "pad frames to a multiple of twice the patch size"
            )
        kernels: dict[int, list[Tensor]] = self.kept or {}
        coarse = self.laterals[3](maps[3][..., ::2, ::2])
        levels = [self.outputs[3](coarse)]
        inner = F.interpolate(coarse, scale_factor=2, mode="nearest")
        for level in (2, 1, 0):
            inner = inner + self.laterals[level](maps[level])  # all on the token grid
            conv: Any = self.outputs[level]
            kept = kernels.get(level)
            levels.append(conv_after_upsampling(inner, conv.weight, conv.bias, self.upsampling[level], kept))
        return tuple(reversed(levels))

    def made_of_weights(self) -> dict[int, list[Tensor]]:
        """Level -> its phase kernels."""
        finer = [(level, factor) for level, factor in enumerate(self.upsampling) if factor > 1]
        return {level: phase_kernels(self.outputs[level].get_parameter("weight").detach(), by) for level, by in finer}
