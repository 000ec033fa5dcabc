"""Two temporal detectors, one on RGB and one on motion, whose outputs are averaged. Distillation is to replace it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..weights.loading import load_weights
from .backbones.segment_backbone import SegmentBackbone
from .heads.segment_head import SegmentHead
from .temporal_detector import TemporalDetector, TemporalOutputs


class TwoStreamDetector(nn.Module):
    """Late fusion: the mean of what two detectors with the same head predict at the same places.

    Args:
        num_classes: K.
        rgb: makes the detector on the first channels of each step. flow: that on the others. Both have the same
            ``dim``, head and stride.
        rgb_weights: weights file or checkpoint of the first. flow_weights: of the second.
    """

    def __init__(
        self,
        num_classes: int,
        rgb: Callable[[int], TemporalDetector],
        flow: Callable[[int], TemporalDetector],
        rgb_weights: str | None = None,
        flow_weights: str | None = None,
    ) -> None:
        super().__init__()
        self.rgb, self.flow = rgb(num_classes), flow(num_classes)
        if self.rgb.backbone.step_stride != self.flow.backbone.step_stride:
            raise ValueError("both streams need the same step_stride, or their predictions cannot be averaged")
        for network, weights in ((self.rgb, rgb_weights), (self.flow, flow_weights)):
            if weights is not None:
                load_weights(network, weights)

    @property
    def backbone(self) -> SegmentBackbone:
        """Return the backbone of RGB, which says how long a feature lasts."""
        return self.rgb.backbone

    @property
    def num_classes(self) -> int:
        return self.rgb.num_classes

    @property
    def final_head(self) -> SegmentHead[Any]:
        """A head that can decode the mean."""
        return self.rgb.head

    def forward(self, steps: Tensor, mask: Tensor) -> TemporalOutputs:
        """Steps (B, T, C, H, W) or (B, T, C) whose channels are those of RGB and then those of motion."""
        parts = steps.split([self.rgb.backbone.in_channels, self.flow.backbone.in_channels], dim=2)
        rgb, flow = (network(part, mask) for network, part in zip((self.rgb, self.flow), parts, strict=True))
        return TemporalOutputs(
            torch.cat([rgb.features, flow.features], 1), rgb.mask, tree_map(mean, rgb.dense, flow.dense)
        )


def mean(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean of two tensors; of masks and whole numbers, which are the same in both, the first."""
    return (first + second) / 2 if first.is_floating_point() else first
