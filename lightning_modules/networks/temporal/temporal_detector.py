"""A temporal action detector: any backbone, any head, and a projection between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from .backbones.segment_backbone import SegmentBackbone
from .heads.segment_head import SegmentHead

HeadFactory = Callable[[int, int], SegmentHead[Any]]
"""Makes a head for features of so many channels, and so many classes."""


class TemporalOutputs(NamedTuple):
    """Outputs of a temporal detector for B windows, T' features each."""

    features: Tensor
    """(B, D, T') projected features, zero where ``mask`` is False."""
    mask: Tensor
    """(B, T') bool."""
    dense: Any
    """Outputs of the head."""


class FeatureProjection(nn.Module):
    """1-D convolution over time, layer norm over channels, ReLU: (B, C, T') -> (B, dim, T')."""

    def __init__(self, in_channels: int, dim: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, dim, kernel_size, padding=kernel_size // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Set to zero where ``mask`` (B, T') is False."""
        hidden = self.conv(features.masked_fill(~mask[:, None], 0))
        hidden = self.norm(hidden.transpose(1, 2)).relu().transpose(1, 2)
        return hidden.masked_fill(~mask[:, None], 0)


def encode(backbone: SegmentBackbone, steps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Features (B, C, T') and which of them stand for at least one step that is there, (B, T') bool.

    Args:
        backbone: is given windows whose length is a multiple of its stride.
        steps: (B, T, ...). mask: (B, T) bool.
    """
    if steps.shape[2] != backbone.in_channels:
        raise ValueError(
            f"the backbone takes steps of {backbone.in_channels} channels, got {steps.shape[2]}; RGB has 3, optical "
            "flow 2, stored features have their own; set in_channels of the backbone"
        )
    stride = backbone.step_stride
    missing = -steps.shape[1] % stride
    if missing:
        steps = F.pad(steps, [0, 0] * (steps.dim() - 2) + [0, missing])
        mask = F.pad(mask, [0, missing])
    return backbone(steps, mask), mask.unflatten(1, (-1, stride)).any(-1)


class TemporalDetector(nn.Module):
    """Backbone, projection, head.

    Args:
        num_classes: K.
        backbone: see ``SegmentBackbone``.
        head: makes the head for ``dim`` channels and K classes, see ``SegmentHead``.
        dim: D, channels of the projected features.
    """

    def __init__(self, num_classes: int, backbone: SegmentBackbone, head: HeadFactory, dim: int = 128) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection = FeatureProjection(backbone.out_channels, dim)
        self.head = head(dim, num_classes)

    @property
    def num_classes(self) -> int:
        return self.head.num_classes

    @property
    def final_head(self) -> SegmentHead[Any]:
        """The head whose outputs count."""
        return self.head

    def forward(self, steps: Tensor, mask: Tensor) -> TemporalOutputs:
        """Normalised steps (B, T, C, H, W) or (B, T, C) of B windows, and ``mask`` (B, T) bool."""
        features, mask = encode(self.backbone, steps, mask)
        features = self.projection(features, mask)
        return TemporalOutputs(features, mask, self.head(features, mask))
