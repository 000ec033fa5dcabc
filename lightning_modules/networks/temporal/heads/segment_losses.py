"""Differences between predicted segments and what they should be, on dense outputs: tensors in, tensors out.

They live beside the heads that use them, because networks know nothing of ``losses``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

SHORTEST = 1e-6
"""Smallest length, in features, that is divided by."""


def masked_focal_loss(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Sigmoid focal loss (Lin et al., 2017; alpha 0.25, gamma 2), summed over places whose ``mask`` is True.

    Shapes: logits and targets (..., K), mask (...).
    """
    return (sigmoid_focal_loss(logits, targets) * mask[..., None]).sum()


def distance_iou_loss(segments: Tensor, targets: Tensor) -> Tensor:
    """1 - IoU + (distance of the middles / length of the smallest segment around both)^2, (..., 2) twice -> (...).

    The one-dimensional form of Zheng et al., 2020 (arXiv 1911.08287), equation 7.
    """
    start, end = segments.unbind(-1)
    true_start, true_end = targets.unbind(-1)
    both = (torch.minimum(end, true_end) - torch.maximum(start, true_start)).clamp(min=0)
    either = (end - start) + (true_end - true_start) - both
    around = torch.maximum(end, true_end) - torch.minimum(start, true_start)
    apart = 0.5 * (start + end - true_start - true_end)
    return 1 - both / either.clamp(min=SHORTEST) + (apart / around.clamp(min=SHORTEST)).square()


def imitation_entropy(logits: Tensor, teacher: Tensor) -> Tensor:
    """Binary cross-entropy with the teacher's scores minus their entropy, so that perfect imitation is zero; (...)."""
    teacher = teacher.detach()
    soft = teacher.sigmoid()
    cross = F.binary_cross_entropy_with_logits(logits, soft, reduction="none")
    return cross - F.binary_cross_entropy_with_logits(teacher, soft, reduction="none")


def class_imitation(logits: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """``imitation_entropy`` summed over valid places and classes, divided by what the teacher believes to have found.

    That is the sum over places of its highest class score, at least 1. It replaces the number of positives in the loss
    against ground truth. So the two terms are of similar size however many places are background. Shapes: logits and
    teacher (..., K), mask (...).
    """
    found = (teacher.detach().sigmoid().amax(-1) * mask).sum().clamp(min=1)
    return (imitation_entropy(logits, teacher) * mask[..., None]).sum() / found


def balanced_entropy(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy, half of it the mean over positive and half the mean over negative places; BMN's
    weighted logistic loss (Lin et al., 2019).

    Shapes: logits (...), targets (...) bool, mask (...) bool. An empty side is zero.
    """
    loss = F.binary_cross_entropy_with_logits(logits, targets.to(logits), reduction="none")
    sides = torch.stack([targets & mask, ~targets & mask]).flatten(1).to(loss)
    return 0.5 * ((sides * loss.flatten()).sum(1) / sides.sum(1).clamp(min=1)).sum()


def balanced_square(values: Tensor, targets: Tensor, mask: Tensor, edges: tuple[float, float] = (0.3, 0.7)) -> Tensor:
    """Mean squared difference, a third each for targets below, between and above the ``edges``.

    BMN draws equally many cells of each third; this is what that is on average. Shapes (...). An empty
    third is zero.
    """
    low, high = (targets > edge for edge in edges)
    thirds = torch.stack([~low, low & ~high, high]) & mask
    thirds = thirds.flatten(1).to(values)
    squares = (values - targets).square().flatten()
    return ((thirds * squares).sum(1) / thirds.sum(1).clamp(min=1)).mean()
