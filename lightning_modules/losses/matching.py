"""Hungarian matching of proposals with true boxes (DETR's matcher with EVAD's costs; `evad-facts`, section 7)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn


class Matches(NamedTuple):
    """Index triples of the pairs of one batch: keyframe, proposal of that keyframe, row of all true boxes joined."""

    keyframe: Tensor
    proposal: Tensor
    target: Tensor


class BoxMatcher(nn.Module):
    """Assigns each true box the proposal that is cheapest for all together; no gradient.

    cost = class_cost * (-person probability) + l1_cost * L1 + giou_cost * (-GIoU), L1 over xyxy divided by the frame's
    size, GIoU in pixels.
    """

    def __init__(self, class_cost: float = 2.0, l1_cost: float = 5.0, giou_cost: float = 2.0) -> None:
        super().__init__()
        self.class_cost, self.l1_cost, self.giou_cost = class_cost, l1_cost, giou_cost

    @torch.no_grad()
    def forward(
        self, person_logits: Tensor, boxes: Tensor, targets: Tensor, counts: list[int], scale: Tensor
    ) -> Matches:
        """person_logits (B, Q, 2), boxes (B, Q, 4); targets (sum of counts, 4) of all keyframes joined, ``counts`` of
        each; scale (B, 4) = width, height, width, height."""
        repeats = torch.tensor(counts, dtype=torch.long, device=boxes.device)  # an empty list would make floats
        owner = torch.arange(len(boxes), device=boxes.device).repeat_interleave(repeats)
        # One row a true box against the proposals of its own keyframe: (M, Q).
        own_boxes, own_persons = boxes.float()[owner], person_logits.float().softmax(-1)[owner, :, 0]
        l1 = ((own_boxes - targets[:, None]) / scale[owner][:, None]).abs().sum(-1)
        giou = paired_giou(own_boxes, targets[:, None].expand_as(own_boxes))
        cost = (self.l1_cost * l1 - self.class_cost * own_persons - self.giou_cost * giou).cpu()
        rows, columns = [], []
        for first, block in zip(_starts(counts), cost.split(counts), strict=True):
            row, column = linear_sum_assignment(block.nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6).numpy())
            rows.append(torch.from_numpy(row) + first)
            columns.append(torch.from_numpy(column))
        target = torch.cat(rows).to(boxes.device) if rows else owner
        proposal = torch.cat(columns).to(boxes.device) if columns else owner
        return Matches(owner[target], proposal, target)


def _starts(counts: list[int]) -> list[int]:
    """Where each keyframe's rows begin: [2, 0, 3] -> [0, 2, 2]."""
    return [sum(counts[:index]) for index in range(len(counts))]


def paired_giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU of boxes pair by pair, (..., 4) and (..., 4) -> (...)  (Rezatofighi et al., 2019)."""
    inner = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    outer = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    overlap, hull = inner.clamp(min=0).prod(-1), outer.clamp(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (first, second)]
    union = areas[0] + areas[1] - overlap
    tiny = torch.finfo(union.dtype).tiny
    return overlap / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)
