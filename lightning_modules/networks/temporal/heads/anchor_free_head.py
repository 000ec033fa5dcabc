"""Anchor-free segment detection on a pyramid in time, in ActionFormer's manner (Zhang et al., ECCV 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..suppression import top_segments
from .segment_head import ScoredSegments, SegmentHead
from .segment_losses import class_imitation, distance_iou_loss, masked_focal_loss
from .segment_pyramid import PyramidSize, SegmentPyramid, TimeConv, TimeConvs
from .segment_targets import as_truth, point_targets


class AnchorFreeOutput(NamedTuple):
    """Outputs for the P points of all levels, the finest level first."""

    class_logits: Tensor
    """(B, P, K) float32."""
    segments: Tensor
    """(B, P, 2) float32, start and end in features."""
    times: Tensor
    """(B, P) float32, where in time the points are."""
    strides: Tensor
    """(B, P) float32, features from a point to the next of its level."""
    mask: Tensor
    """(B, P) bool, False after the end of the video."""


class Tower(nn.Module):
    """Convolutions shared by all levels, then one without norm to ``out_dim`` values per point."""

    def __init__(self, dim: int, out_dim: int, depth: int) -> None:
        super().__init__()
        self.convs = TimeConvs(dim, dim, depth)
        self.out = TimeConv(dim, out_dim)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, out_dim) float32."""
        return self.out(self.convs(tokens, mask)).float()


class AnchorFreeHead(SegmentHead[AnchorFreeOutput]):
    """Head whose points each give class scores and the distances to the start and the end of their segment.

    Level l has a point at each 2^l-th feature, where its strided kernels are centred. Its segments have their more
    distant end ``finest_range`` x 2^(l - 1) to 2^l features away. The first level begins at 0, the last is open.

    Differences from ActionFormer:

    - Distances pass a softplus, since a ReLU leaves points with distance zero without gradient.
    - Losses are divided by the number of positive points of the batch (at least 1) instead of its running mean. So the
      loss depends on the batch alone.
    - The gates of the blocks start at ``layer_scale`` = 0.1 (there 1e-4). A gate moves by about the learning rate per
      step, and trainings here are short.

    Args:
        in_channels: C of the features. num_classes: K.
        pyramid: sizes of the pyramid.
        tower_depth: convolutions in front of class scores and of distances.
        finest_range: largest distance in features that the finest level predicts.
        centre_radius: points at most so many strides from the middle of a segment learn to find it.
        segment_weight: of the distance-IoU loss in ``total``; the focal loss counts once.
        imitation_threshold: segments are imitated where the teacher's highest class score is above it.
        class_prior: score that every class starts from.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        pyramid: PyramidSize = PyramidSize(),  # noqa: B008  (frozen)
        tower_depth: int = 2,
        finest_range: float = 4.0,
        centre_radius: float = 1.5,
        segment_weight: float = 1.0,
        imitation_threshold: float = 0.1,
        class_prior: float = 0.01,
    ) -> None:
        super().__init__()
        self.in_channels, self.num_classes, self.num_levels = in_channels, num_classes, pyramid.num_levels
        self.finest_range, self.centre_radius = finest_range, centre_radius
        self.segment_weight, self.imitation_threshold = segment_weight, imitation_threshold
        self.pyramid = SegmentPyramid(in_channels, pyramid)
        self.class_tower = Tower(pyramid.dim, num_classes, tower_depth)
        self.segment_tower = Tower(pyramid.dim, 2, tower_depth)
        self.level_scales = nn.Parameter(torch.ones(pyramid.num_levels))
        nn.init.constant_(self.class_tower.out.get_parameter("bias"), -log((1 - class_prior) / class_prior))

    def forward(self, features: Tensor, mask: Tensor) -> AnchorFreeOutput:
        # Not a product: zero times NaN is NaN.
        tokens = features.masked_fill(~mask[:, None], 0).transpose(1, 2)
        padding = -tokens.shape[1] % 2 ** (self.num_levels - 1)
        levels = self.pyramid(F.pad(tokens, (0, 0, 0, padding)), F.pad(mask, (0, padding)))
        outputs = [self._answers(level, *pair) for level, pair in enumerate(levels)]
        return AnchorFreeOutput(*(torch.cat(parts, dim=1) for parts in zip(*outputs, strict=True)))

    def _answers(self, level: int, tokens: Tensor, mask: Tensor) -> AnchorFreeOutput:
        stride = 2**level
        raw = self.segment_tower(tokens, mask) * self.level_scales[level].float()
        before, after = (stride * F.softplus(raw)).unbind(-1)
        times = stride * torch.arange(mask.shape[1], device=mask.device, dtype=torch.float32) + 0.5
        segments = torch.stack([times - before, times + after], dim=-1)
        times = times.expand_as(before)
        return AnchorFreeOutput(self.class_tower(tokens, mask), segments, times, torch.full_like(times, stride), mask)

    def loss(
        self, outputs: AnchorFreeOutput, segments: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """``classes`` (focal) and ``segments`` (distance IoU), each per positive point, and their weighted sum."""
        farthest = self.finest_range * outputs.strides
        targets = point_targets(
            as_truth(segments, labels, self.num_classes),
            outputs.times,
            outputs.strides,
            nearest=torch.where(outputs.strides > 1, farthest / 2, 0.0),
            farthest=torch.where(outputs.strides < 2 ** (self.num_levels - 1), farthest, torch.inf),
            radius=self.centre_radius,
        )
        is_positive = targets.is_positive & outputs.mask
        num_positive = is_positive.sum().clamp(min=1)
        distances = distance_iou_loss(outputs.segments, targets.segments)
        losses = {
            "classes": masked_focal_loss(outputs.class_logits, targets.classes, outputs.mask) / num_positive,
            "segments": (distances * is_positive).sum() / num_positive,
        }
        losses["total"] = losses["classes"] + self.segment_weight * losses["segments"]
        return losses

    def imitation(self, outputs: AnchorFreeOutput, teacher: AnchorFreeOutput) -> dict[str, Tensor]:
        """``classes``: see ``class_imitation``. ``segments``: the distance-IoU loss against the teacher's, mean
        weighted by its highest class score where that is above the threshold, over weights of 1 at least."""
        weights = teacher.class_logits.detach().sigmoid().amax(-1) * outputs.mask
        weights = weights * (weights > self.imitation_threshold)
        distances = distance_iou_loss(outputs.segments, teacher.segments.detach())
        return {
            "classes": class_imitation(outputs.class_logits, teacher.class_logits, outputs.mask),
            "segments": (weights * distances).sum() / weights.sum().clamp(min=1),
        }

    def decode(self, outputs: AnchorFreeOutput, score_threshold: float, max_segments: int) -> list[ScoredSegments]:
        """A point's score is its class score; its segment may reach beyond the window."""
        scores = outputs.class_logits.sigmoid() * outputs.mask[..., None]
        return top_segments(scores, outputs.segments, score_threshold, max_segments)
