"""Actor localisation with learned proposals, after Sparse R-CNN (EVAD, `EVAD.md`, section 5)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torchvision.ops import box_convert

from ..layers.constants import constant
from ..layers.linear import Linear
from ..layers.prepared import Preparable, in_float32_on_cpu
from ..layers.roi_align import RoiKernel, pyramid_roi_align
from ..layers.roi_gather import PyramidTable

MAX_LOG_SCALE = math.log(100_000 / 16)
DELTA_WEIGHTS = (2.0, 2.0, 1.0, 1.0)


class LocalizedActors(NamedTuple):
    """Person logits (R, B, P, 2) (person, background) and boxes (R, B, P, 4) xyxy in pixels after each of R stages."""

    person_logits: Tensor
    boxes: Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision has too few digits for boxes and scores."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def apply_deltas(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Move and scale xyxy boxes by (dx, dy, dw, dh) (R-CNN parametrisation, weights 2, 2, 1, 1); width is x2 - x1."""
    shift, log_scale = (deltas / constant(DELTA_WEIGHTS, deltas)).chunk(2, dim=-1)  # (..., 2) each, as all below
    start, end = boxes.chunk(2, dim=-1)
    size = end - start
    centre = (start + end) / 2 + shift * size
    half = size * log_scale.clamp(max=MAX_LOG_SCALE).exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def person_like(logits: Tensor) -> Tensor:
    """Person logits (..., 2) -> (...): ranks proposals as their probability does, without its ties at 0 and 1."""
    return logits[..., 0] - logits[..., 1]


def most_person_like(person_logits: Tensor, boxes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` proposals with the highest person score after the last stage, in the order of their places.

    Shapes: (R, B, P, 2) and (R, B, P, 4) -> the same with ``count`` proposals.
    """
    chosen = person_like(person_logits[-1]).topk(count, dim=1).indices.sort(dim=1).values  # (B, count)

    def take(values: Tensor) -> Tensor:
        return values.gather(2, chosen[None, ..., None].expand(len(values), -1, -1, values.shape[-1]))

    return take(person_logits), take(boxes)


class DynamicInteraction(nn.Module):
    """Two matrices made from a proposal's feature filter its RoI: (B, P, D), (B, P, D, r, r) -> (B, P, D)."""

    def __init__(self, dim: int, dynamic_dim: int, roi_size: int) -> None:
        super().__init__()
        self.dynamic_dim = dynamic_dim
        self.dynamic_layer = Linear(dim, 2 * dim * dynamic_dim)
        self.norm1 = nn.LayerNorm(dynamic_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.out_layer = Linear(dim * roi_size**2, dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, features: Tensor, crops: Tensor) -> Tensor:
        inner, outer = self.dynamic_layer(features).chunk(2, dim=-1)
        inner = inner.view(*features.shape, self.dynamic_dim)  # (B, P, D, E)
        outer = outer.view(*features.shape[:-1], self.dynamic_dim, features.shape[-1])  # (B, P, E, D)
        points = crops.flatten(3).transpose(2, 3)  # (B, P, r r, D)
        points = self.norm1(points @ inner).relu()
        points = self.norm2(points @ outer).relu()
        return self.norm3(self.out_layer(points.flatten(2))).relu()


class RefinementStage(nn.Module):
    """Refinement of every proposal: self-attention, dynamic interaction with its RoI, MLP, class, box. Post-norm."""

    def __init__(self, dim: int, num_heads: int, dynamic_dim: int, hidden_dim: int, roi_size: int) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads, qkv_bias=True)
        self.inst_interact = DynamicInteraction(dim, dynamic_dim, roi_size)
        self.linear1 = Linear(dim, hidden_dim)
        self.linear2 = Linear(hidden_dim, dim)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.cls_module = self._tower(dim, 1)
        self.reg_module = self._tower(dim, 3)
        self.class_logits = Linear(dim, 2)
        self.bboxes_delta = Linear(dim, 4)

    @staticmethod
    def _tower(dim: int, layers: int) -> nn.Sequential:
        parts = [(Linear(dim, dim, bias=False), nn.LayerNorm(dim), nn.ReLU()) for _ in range(layers)]
        return nn.Sequential(*(part for group in parts for part in group))

    def forward(self, features: Tensor, crops: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """features (B, P, D), crops (B, P, D, r, r), boxes (B, P, 4) -> features, person logits, refined boxes."""
        features = self.norm1(features + self.self_attn(features))
        features = self.norm2(features + self.inst_interact(features, crops))
        features = self.norm3(features + self.linear2(self.linear1(features).relu()))
        person_logits = self.class_logits(self.cls_module(features))
        deltas = self.bboxes_delta(self.reg_module(features))
        return features, at_least_float32(person_logits), apply_deltas(boxes, at_least_float32(deltas))


class Localizer(Preparable):
    """Learned proposals refined over ``num_stages`` stages; boxes are detached between stages, features are not.

    Prepared for inference on a CPU, it pools boxes by ``PyramidTable`` for any ``roi_kernel``.

    Args:
        proposal_boxes: where proposals start: the whole ``image`` (as published), or a ``grid`` of person-sized boxes,
            which learns sooner from scratch.
        roi_kernel: see ``pyramid_roi_align``.
    """

    def __init__(
        self,
        dim: int = 256,
        num_proposals: int = 100,
        num_stages: int = 6,
        num_heads: int = 8,
        dynamic_dim: int = 64,
        hidden_dim: int = 2048,
        roi_size: int = 7,
        proposal_boxes: Literal["image", "grid"] = "image",
        roi_kernel: RoiKernel = "torchvision",
    ) -> None:
        super().__init__()
        if num_stages < 1 or num_proposals < 1:
            raise ValueError(f"num_stages and num_proposals must be at least 1, got {num_stages} and {num_proposals}")
        if dim % num_heads:
            raise ValueError(f"the localizer's dim={dim} does not divide into num_heads={num_heads}")
        self.dim, self.roi_size, self.roi_kernel = dim, roi_size, roi_kernel
        self.stages = nn.ModuleList(
            RefinementStage(dim, num_heads, dynamic_dim, hidden_dim, roi_size) for _ in range(num_stages)
        )
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        if proposal_boxes == "grid":
            # A grid says something about where people are only as long as the first refinements do not scatter it.
            for stage in self.stages:
                nn.init.zeros_(stage.get_parameter("bboxes_delta.weight"))
                nn.init.zeros_(stage.get_parameter("bboxes_delta.bias"))
        self.proposal_features = nn.Parameter(torch.randn(num_proposals, dim))
        self.proposal_boxes = nn.Parameter(self._initial_boxes(num_proposals, proposal_boxes))

    @staticmethod
    def _initial_boxes(num_proposals: int, start: Literal["image", "grid"]) -> Tensor:
        """(P, 4) cxcywh as fractions of the frame."""
        if start == "image":
            return torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(num_proposals, 1)
        columns = math.ceil(math.sqrt(2 * num_proposals))  # people are narrow: more columns than rows
        rows = math.ceil(num_proposals / columns)
        places = torch.cartesian_prod((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns)
        sizes = torch.tensor([0.25, 0.6]).expand(num_proposals, 2)
        return torch.cat([places[:num_proposals].flip(1), sizes], dim=1)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that do not decay although they are matrices."""
        return {"proposal_features", "proposal_boxes"}

    @property
    def num_proposals(self) -> int:
        return len(self.proposal_boxes)

    def proposals(self, image_sizes: Tensor) -> tuple[Tensor, Tensor]:
        """The learned proposals: features (B, P, D), and boxes (B, P, 4) xyxy in pixels of frames of these sizes."""
        scale = at_least_float32(image_sizes.flip(-1).repeat(1, 2)[:, None].to(self.proposal_boxes))  # (B, 1, 4)
        start = self.kept
        boxes = (self.made_of_weights() if start is None else start) * scale
        return self.proposal_features.expand(boxes.shape[0], -1, -1), boxes

    def forward(
        self,
        pyramid: tuple[Tensor, ...],
        strides: tuple[int, ...],
        image_sizes: Tensor,
    ) -> LocalizedActors:
        """Refine proposals on pyramid maps (B, D, h_i, w_i), with unpadded sizes (B, 2) (height, width) in pixels."""
        features, boxes = self.proposals(image_sizes)
        logits, stages = [], []
        gathers = self.kept is not None and in_float32_on_cpu(pyramid[0])
        table = PyramidTable(pyramid, strides) if gathers else None
        for stage in self.stages:
            if table is None:
                crops = pyramid_roi_align(pyramid, strides, boxes, self.roi_size, self.roi_kernel)
            else:
                crops = table.pooled(boxes, self.roi_size)
            features, person_logits, boxes = stage(features, crops, boxes)
            logits.append(person_logits)
            stages.append(boxes)
            boxes = boxes.detach()
        return LocalizedActors(torch.stack(logits), torch.stack(stages))

    def made_of_weights(self) -> Tensor:
        """Return the boxes that proposals start from, (P, 4) xyxy as fractions of the frame."""
        return box_convert(self.proposal_boxes, "cxcywh", "xyxy")
