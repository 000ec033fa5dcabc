"""Hungarian matching of proposals with true boxes (DETR's matcher with EVAD's costs; `EVAD.md`, section 7)."""

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
    """One-to-one assignment of proposals to true boxes at the lowest total cost; no gradient.

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
        # One row per true box against the proposals of its keyframe: (M, Q).
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


class ProposalMatcher(nn.Module):
    """One-to-one assignment of teacher proposals to student proposals, without gradient.

    Where a student carries proposals over from the frame before, or has fewer than its teacher, their order says
    nothing. Each proposal that the teacher takes for a person goes to the student's cheapest, by the costs of
    ``BoxMatcher``. The cost of a pair is the teacher's person probability x (l1_cost * L1 + giou_cost * (1 - GIoU) -
    class_cost * the student's person probability - reward). L1 is over xyxy divided by the frame's size. The reward
    makes persons worth assigning, however far away. Without the class cost teacher and ground truth would choose
    different proposals for one person, and teach the student to see it twice.
    """

    reward = 100.0

    def __init__(self, class_cost: float = 2.0, l1_cost: float = 5.0, giou_cost: float = 2.0) -> None:
        super().__init__()
        self.class_cost, self.l1_cost, self.giou_cost = class_cost, l1_cost, giou_cost

    @torch.no_grad()
    def forward(
        self, logits: Tensor, boxes: Tensor, teacher_logits: Tensor, teacher_boxes: Tensor, scale: Tensor
    ) -> Tensor:
        """Person logits (B, Q, 2) and boxes (B, Q, 4) of the student; teacher_logits (B, P, 2) and teacher_boxes
        (B, P, 4), P >= Q; scale (B, 4) = width, height, width, height. Returns (B, Q) int64, places among the
        teacher's."""
        if boxes.shape[1] > teacher_boxes.shape[1]:
            raise ValueError(
                f"the student has {boxes.shape[1]} proposals but its teacher only {teacher_boxes.shape[1]} to imitate"
            )
        own, other = boxes.float()[:, :, None], teacher_boxes.float()[:, None]  # (B, Q, 1, 4), (B, 1, P, 4)
        l1 = ((own - other) / scale[:, None, None]).abs().sum(-1)
        giou = paired_giou(*torch.broadcast_tensors(own, other))
        persons = teacher_logits.float().softmax(-1)[:, None, :, 0]
        own_persons = logits.float().softmax(-1)[:, :, None, 0]
        price = self.l1_cost * l1 + self.giou_cost * (1 - giou) - self.class_cost * own_persons
        cost = persons * (price - self.reward)
        costs = cost.nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6).cpu().numpy()
        # With every row assigned, the columns come in the order of the rows.
        places = [torch.from_numpy(linear_sum_assignment(keyframe)[1]) for keyframe in costs]
        return torch.stack(places).to(boxes.device)


def _starts(counts: list[int]) -> list[int]:
    """Return where each keyframe's rows begin: [2, 0, 3] -> [0, 2, 2]."""
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
