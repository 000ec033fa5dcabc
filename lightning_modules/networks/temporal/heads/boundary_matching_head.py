"""Segment detection by scoring every (start, duration) cell and every boundary (BMN, Lin et al., ICCV 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...layers.linear import Linear
from ..suppression import top_segments
from .segment_head import ScoredSegments, SegmentHead
from .segment_losses import balanced_entropy, balanced_square, class_imitation, imitation_entropy, masked_focal_loss
from .segment_pyramid import TimeConvs
from .segment_targets import as_truth, boundary_targets, cell_targets


class BoundaryMatchingOutput(NamedTuple):
    """Outputs for boundaries and cells; cell (d, i) is the segment from time i to time i + d + 1, in features."""

    boundary_logits: Tensor
    """(B, T', 2) float32: that a segment starts at time i, and that one ends at time i + 1."""
    class_logits: Tensor
    """(B, D, T', K) float32."""
    completeness_logits: Tensor
    """(B, D, T') float32: the logit of the tIoU with the nearest true segment."""
    mask: Tensor
    """(B, T') bool."""
    cells: Tensor
    """(B, D, T') bool: whether all of the cell's features are valid."""


@dataclass(frozen=True)
class CellMap:
    """The map of all segments that a ``BoundaryMatchingHead`` scores.

    Args:
        max_duration: D, features; a longer segment can only be found in part.
        num_samples: N, bins of a cell.
        context: how far a cell looks to either side, in its own duration.
        dim: channels of the map.
    """

    max_duration: int = 64
    num_samples: int = 8
    context: float = 0.25
    dim: int = 64

    def __post_init__(self) -> None:
        if self.max_duration < 1 or self.num_samples < 1:
            raise ValueError(
                f"max_duration and num_samples must be at least 1, got {self.max_duration} and {self.num_samples}"
            )


def sampling_kernel(max_duration: int, num_samples: int, context: float) -> tuple[Tensor, int]:
    """Weights with which the samples of a cell read features around its start: (D, N, W), and the place of the start.

    A cell of duration d, and ``context`` x d on both sides of it, is divided into N bins. A sample is the mean over a
    bin of the linearly interpolated features (BMN's sampling). The features in a bin do not depend on where a cell
    starts. So sampling is a convolution and needs no matrix of the size of a window.
    """
    durations = torch.arange(1, max_duration + 1, dtype=torch.float64)[:, None]
    spread = 1 + 2 * context
    points_per_bin = ceil(spread * max_duration / num_samples)  # so that long bins leave no feature out
    fractions = (torch.arange(num_samples * points_per_bin, dtype=torch.float64) + 0.5) / (num_samples * points_per_bin)
    places = durations * (spread * fractions - context) - 0.5  # feature i is at i + 0.5
    before = places.floor()
    first = int(before.min())
    width = int(before.max()) + 2 - first
    kernel = torch.zeros(max_duration, num_samples, width, dtype=torch.float64)
    for feature, weight in ((before, before + 1 - places), (before + 1, places - before)):
        index = (feature - first).long().unflatten(1, (num_samples, points_per_bin))
        kernel.scatter_add_(2, index, weight.unflatten(1, (num_samples, points_per_bin)) / points_per_bin)
    return kernel.float(), -first


class BoundaryMatchingLayer(nn.Module):
    """Features (B, T, in_dim) -> cells (B, D, T, dim): the samples of a cell, weighted by a learned matrix each.

    BMN samples first and then applies a convolution over the samples. Both are linear, so here the features pass the N
    matrices first and are sampled afterwards. The result is the same, without BMN's (N, D, T, C) tensor.
    """

    kernel: Tensor

    def __init__(self, in_dim: int, cells: CellMap) -> None:
        super().__init__()
        self.dim, self.num_samples = cells.dim, cells.num_samples
        self.weigh = Linear(in_dim, cells.dim * cells.num_samples, bias=False)
        self.bias = nn.Parameter(torch.zeros(cells.dim))
        kernel, self.start = sampling_kernel(cells.max_duration, cells.num_samples, cells.context)
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        weighed = self.weigh(tokens).unflatten(2, (self.dim, self.num_samples)).permute(0, 2, 3, 1)  # (B, C, N, T)
        padded = F.pad(weighed.flatten(0, 1), (self.start, self.kernel.shape[-1] - 1 - self.start))
        sampled = F.conv1d(padded, self.kernel.to(padded.dtype))  # (B C, D, T)
        return sampled.unflatten(0, (-1, self.dim)).permute(0, 2, 3, 1) + self.bias


class BoundaryMatchingHead(SegmentHead[BoundaryMatchingOutput]):
    """Class scores and completeness (tIoU) of all cells up to ``max_duration``, and start and end scores of all times.

    BMN proposes without classes; here the map has K class scores a cell, learned with the focal loss. A segment's score
    is its class score times the root of completeness, start and end scores. BMN draws cells and boundaries until its
    classes are balanced. Here they are weighted, which is the same on average and deterministic.

    Args:
        in_channels: C of the features. num_classes: K.
        dim: channels of what boundaries and cells read.
        cells: size of the map.
        embedding_depth: convolutions in front.
        class_threshold: tIoU from which on a cell has the class of a segment; how well it fits is left to completeness.
        boundary_radius: distance in features up to which a time counts as a start or an end.
        completeness_weight, boundary_weight: in ``total``; the class term counts once.
        class_prior: score that every class starts from.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        dim: int = 128,
        cells: CellMap = CellMap(),
        embedding_depth: int = 2,
        class_threshold: float = 0.5,
        boundary_radius: float = 1.0,
        completeness_weight: float = 10.0,
        boundary_weight: float = 1.0,
        class_prior: float = 0.01,
    ) -> None:
        super().__init__()
        if embedding_depth < 1:
            raise ValueError(f"embedding_depth must be at least 1, got {embedding_depth}")
        self.in_channels, self.num_classes, self.max_duration = in_channels, num_classes, cells.max_duration
        self.class_threshold, self.boundary_radius = class_threshold, boundary_radius
        self.completeness_weight, self.boundary_weight = completeness_weight, boundary_weight
        self.embedding = TimeConvs(in_channels, dim, embedding_depth)
        self.boundary_convs = TimeConvs(dim, dim, 1)
        self.boundaries = Linear(dim, 2)
        self.matching = BoundaryMatchingLayer(dim, cells)
        self.map_norm = nn.LayerNorm(cells.dim)
        self.map_convs = nn.ModuleList(nn.Conv2d(cells.dim, cells.dim, 3, padding=1) for _ in range(2))
        self.classes, self.completeness = Linear(cells.dim, num_classes), Linear(cells.dim, 1)
        nn.init.constant_(self.classes.bias, -log((1 - class_prior) / class_prior))

    def forward(self, features: Tensor, mask: Tensor) -> BoundaryMatchingOutput:
        # Not a product: zero times NaN is NaN.
        tokens = self.embedding(features.masked_fill(~mask[:, None], 0).transpose(1, 2), mask)
        cells = valid_cells(mask, self.max_duration)
        inside = cells[:, None]
        maps = F.relu(self.map_norm(self.matching(tokens))).permute(0, 3, 1, 2) * inside  # (B, C, D, T')
        for conv in self.map_convs:
            maps = F.relu(conv(maps)) * inside
        maps = maps.permute(0, 2, 3, 1)
        return BoundaryMatchingOutput(
            self.boundaries(self.boundary_convs(tokens, mask)).float(),
            self.classes(maps).float(),
            self.completeness(maps)[..., 0].float(),
            mask,
            cells,
        )

    def loss(
        self, outputs: BoundaryMatchingOutput, segments: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """``classes`` (focal, per positive cell), ``completeness`` (L2), ``boundaries`` (cross-entropy), ``total``."""
        truth = as_truth(segments, labels, self.num_classes)
        cells = cell_targets(truth, outputs.cells, self.class_threshold)
        boundaries = torch.stack(boundary_targets(truth, outputs.mask.shape[1], self.boundary_radius), dim=-1)
        is_positive = (cells.classes > 0).any(-1)
        classes = masked_focal_loss(outputs.class_logits, cells.classes, outputs.cells)
        losses = {
            "classes": classes / is_positive.sum().clamp(min=1),
            "completeness": balanced_square(outputs.completeness_logits.sigmoid(), cells.overlap, outputs.cells),
            "boundaries": balanced_entropy(outputs.boundary_logits[..., 0], boundaries[..., 0], outputs.mask)
            + balanced_entropy(outputs.boundary_logits[..., 1], boundaries[..., 1], outputs.mask),
        }
        losses["total"] = (
            losses["classes"]
            + self.completeness_weight * losses["completeness"]
            + self.boundary_weight * losses["boundaries"]
        )
        return losses

    def imitation(self, outputs: BoundaryMatchingOutput, teacher: BoundaryMatchingOutput) -> dict[str, Tensor]:
        """``classes``: see ``class_imitation``. ``segments``: completeness and boundaries, weighted as in the loss; the
        boundaries' cross-entropy minus the teacher's entropy, mean over valid times."""
        completeness = balanced_square(
            outputs.completeness_logits.sigmoid(), teacher.completeness_logits.detach().sigmoid(), outputs.cells
        )
        boundaries = imitation_entropy(outputs.boundary_logits, teacher.boundary_logits).sum(-1) * outputs.mask
        boundaries = boundaries.sum() / outputs.mask.sum().clamp(min=1)
        return {
            "classes": class_imitation(outputs.class_logits, teacher.class_logits, outputs.cells),
            "segments": self.completeness_weight * completeness + self.boundary_weight * boundaries,
        }

    def decode(
        self, outputs: BoundaryMatchingOutput, score_threshold: float, max_segments: int
    ) -> list[ScoredSegments]:
        """Score: class x sqrt(completeness x start x end). Cells that are not all inside are left out."""
        batch, durations, length = outputs.cells.shape
        starts, ends = outputs.boundary_logits.sigmoid().unbind(-1)
        first = torch.arange(length, device=outputs.cells.device)
        last = first + torch.arange(durations, device=outputs.cells.device)[:, None]  # (D, T'), the last feature
        quality = outputs.completeness_logits.sigmoid() * starts[:, None] * ends[:, last.clamp(max=length - 1)]
        scores = outputs.class_logits.sigmoid() * (quality.sqrt() * outputs.cells)[..., None]
        segments = torch.stack([first.expand_as(last), last + 1], dim=-1).float()
        return top_segments(
            scores.flatten(1, 2), segments.flatten(0, 1).expand(batch, -1, -1), score_threshold, max_segments
        )


def valid_cells(mask: Tensor, max_duration: int) -> Tensor:
    """(B, T) bool -> (B, D, T): whether the d + 1 features from i on all exist and are valid."""
    length = mask.shape[1]
    seen = F.pad(mask.cumsum(1), (1, 0))  # valid features before time i
    start = torch.arange(length, device=mask.device)
    duration = torch.arange(1, max_duration + 1, device=mask.device)[:, None]
    end = start + duration
    return (seen[:, end.clamp(max=length)] - seen[:, :-1][:, None] == duration) & (end <= length)
