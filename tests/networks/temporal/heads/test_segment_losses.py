"""Segment losses against numbers by hand, and imitation at its minimum."""

from math import log

import pytest
import torch

from lightning_modules.networks.temporal.heads.segment_losses import (
    balanced_entropy,
    balanced_square,
    class_imitation,
    distance_iou_loss,
    masked_focal_loss,
)


@pytest.mark.parametrize(
    ("segment", "target", "loss"),
    [
        ((2, 6), (2, 6), 0),
        ((0, 4), (2, 6), 1 - 2 / 6 + (2 / 6) ** 2),
        ((0, 8), (2, 4), 1 - 2 / 8 + (1 / 8) ** 2),
        ((0, 1), (3, 4), 1 + (3 / 4) ** 2),
        ((5, 5), (5, 5), 1),
    ],
)
def test_distance_iou_by_hand(segment, target, loss):
    result = distance_iou_loss(torch.tensor(segment).double(), torch.tensor(target).double())
    torch.testing.assert_close(result, torch.tensor(loss).double())


def test_distance_iou_of_equal_segments_has_no_gradient():
    segments = torch.tensor([[2.0, 6.0], [0.5, 9.0]], requires_grad=True)
    distance_iou_loss(segments, segments.detach().clone()).sum().backward()
    torch.testing.assert_close(segments.grad, torch.zeros(2, 2))


def test_focal_loss_by_hand_and_only_where_valid():
    logits = torch.zeros(1, 2, 2)
    targets = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    expected = (0.25 + 0.75) * 0.5**2 * log(2)
    result = masked_focal_loss(logits, targets, torch.tensor([[True, False]]))
    torch.testing.assert_close(result, torch.tensor(expected))


def test_balanced_entropy_is_the_mean_of_the_sides_means():
    logits = torch.tensor([2.0, -1.0, 0.5, 9.0])
    targets = torch.tensor([True, False, False, True])
    mask = torch.tensor([True, True, True, False])
    positive, negative = torch.nn.functional.softplus(torch.tensor([-2.0])), torch.nn.functional.softplus(logits[1:3])
    torch.testing.assert_close(balanced_entropy(logits, targets, mask), (positive.mean() + negative.mean()) / 2)
    nothing = balanced_entropy(logits, torch.zeros(4, dtype=torch.bool), mask)
    torch.testing.assert_close(nothing, torch.nn.functional.softplus(logits[:3]).mean() / 2)


def test_balanced_square_counts_each_third_of_overlap_alike():
    targets, values = torch.tensor([0.0, 0.1, 0.2, 0.5, 0.9, 0.8]), torch.tensor([0.1, 0.1, 0.5, 0.2, 0.9, 0.0])
    mask = torch.tensor([True, True, True, True, True, False])
    expected = ((0.01 + 0 + 0.09) / 3 + 0.09 + 0) / 3
    torch.testing.assert_close(balanced_square(values, targets, mask), torch.tensor(expected))


def test_class_imitation_by_hand():
    """One place, one class: KL divergence of 1/2 from 1/4 over at least one thing found."""
    student, teacher = torch.full((1, 1, 1), -log(3)), torch.zeros(1, 1, 1)
    expected = -0.5 * log(1 / 4) - 0.5 * log(3 / 4) - log(2)
    result = class_imitation(student, teacher, torch.ones(1, 1, dtype=torch.bool))
    torch.testing.assert_close(result, torch.tensor(expected))
    # Four such places are divided by the 4 x 1/2 that the teacher found.
    many = class_imitation(student.expand(1, 4, 1), teacher.expand(1, 4, 1), torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(many, torch.tensor(2 * expected))
