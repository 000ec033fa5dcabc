"""EVAD's set loss and action loss, with deep supervision (`EVAD.md`, section 7)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .matching import BoxMatcher, paired_giou


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a scalar over all processes of a distributed run; itself where there is one."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / dist.get_world_size()


class DetectionLoss(nn.Module):
    """Named losses of a batch of keyframes: ``person``, ``l1``, ``giou`` and ``action``, and their weighted mean.

    Every refinement stage is matched and supervised on persons and boxes; every decoder block on actions, with the
    matches of the last stage. A term is the mean over its stages or blocks, already weighted. ``total`` weighs each
    stage and block equally, like EVAD's mean over all its terms.

    - ``person``: cross-entropy over all proposals, class weights 1 and ``nobody_weight``, weighted mean.
    - ``l1``, ``giou``: summed over matched pairs, divided by the number of true boxes (mean over processes, at least
      1).
    - ``action``: binary cross-entropy, mean over matched proposals and classes.

    A batch without any box gives zeros for the last three that still carry gradient. Keyframes that are not annotated
    are left out of everything.
    """

    def __init__(
        self,
        person_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        action_weight: float = 12.0,
        nobody_weight: float = 0.1,
        matcher: BoxMatcher | None = None,
    ) -> None:
        super().__init__()
        self.person_weight, self.l1_weight, self.giou_weight = person_weight, l1_weight, giou_weight
        self.action_weight, self.nobody_weight = action_weight, nobody_weight
        self.matcher = matcher or BoxMatcher(person_weight, l1_weight, giou_weight)

    def forward(
        self,
        person_logits: Tensor,
        boxes: Tensor,
        action_logits: Tensor,
        target_boxes: Sequence[Tensor],
        target_labels: Sequence[Tensor],
        annotated: Tensor,
        image_sizes: Tensor,
    ) -> dict[str, Tensor]:
        """Losses by name, ``total`` among them.

        Args:
            person_logits: (R, B, Q, 2) after each of R stages. boxes: (R, B, Q, 4) xyxy in pixels.
            action_logits: (D, B, Q, K) after each of D decoder blocks.
            target_boxes: B entries (M, 4). target_labels: B entries (M, K) multi-hot.
            annotated: (B,) bool. image_sizes: (B, 2) height, width.
        """
        used = annotated.nonzero()[:, 0]
        person_logits, boxes, action_logits = (part[:, used].float() for part in (person_logits, boxes, action_logits))
        chosen = used.tolist()
        counts = [len(target_boxes[index]) for index in chosen]
        true_boxes = torch.cat([target_boxes[index] for index in chosen] or [boxes.new_zeros(0, 4)]).float()
        true_labels = torch.cat(
            [target_labels[index] for index in chosen] or [boxes.new_zeros(0, action_logits.shape[-1])]
        ).float()
        scale = image_sizes[used].flip(-1).repeat(1, 2).to(boxes)
        num_boxes = mean_over_processes(boxes.new_tensor(float(len(true_boxes)))).clamp(min=1)

        person, l1, giou = [], [], []
        for stage_logits, stage_boxes in zip(person_logits, boxes, strict=True):
            matches = self.matcher(stage_logits, stage_boxes, true_boxes, counts, scale)
            person.append(self._person_loss(stage_logits, matches.keyframe, matches.proposal))
            found, true = stage_boxes[matches.keyframe, matches.proposal], true_boxes[matches.target]
            l1.append(((found - true) / scale[matches.keyframe]).abs().sum() / num_boxes)
            giou.append((1 - paired_giou(found, true)).sum() / num_boxes)
        actions = [
            self._action_loss(logits[matches.keyframe, matches.proposal], true_labels[matches.target])
            for logits in action_logits
        ]

        num_terms = 3 * len(person) + len(actions)
        losses = {
            "person": self.person_weight * torch.stack(person).mean(),
            "l1": self.l1_weight * torch.stack(l1).mean(),
            "giou": self.giou_weight * torch.stack(giou).mean(),
            "action": self.action_weight * torch.stack(actions).mean(),
        }
        localisation = losses["person"] + losses["l1"] + losses["giou"]
        losses["total"] = (len(person) * localisation + len(actions) * losses["action"]) / num_terms
        return losses

    def _person_loss(self, logits: Tensor, keyframe: Tensor, proposal: Tensor) -> Tensor:
        if not logits.numel():
            return logits.sum()
        target = torch.ones(logits.shape[:2], dtype=torch.long, device=logits.device)
        target[keyframe, proposal] = 0
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), logits.new_tensor([1.0, self.nobody_weight]))

    @staticmethod
    def _action_loss(logits: Tensor, labels: Tensor) -> Tensor:
        if not logits.numel():
            return logits.sum()
        return F.binary_cross_entropy_with_logits(logits, labels)
