"""The localizer: box arithmetic by hand, its starting boxes, and where gradients may flow."""

import math

import pytest
import torch
from torchvision.ops import box_convert

from lightning_modules.networks.detection.localizer import Localizer, apply_deltas
from tests.networks.detection import slow_evad
from tests.networks.tiny import randomise

STRIDES = (4, 8, 16, 32)


def tiny_localizer(**changes) -> Localizer:
    sizes = {"dim": 8, "num_proposals": 5, "num_stages": 3, "num_heads": 2, "dynamic_dim": 3, "hidden_dim": 8}
    return randomise(Localizer(**(sizes | {"roi_size": 2} | changes)))


def some_pyramid(batch=2):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(batch, 8, 64 // stride, 96 // stride, generator=generator) for stride in STRIDES)


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        ([0, 0, 0, 0], [10, 20, 30, 60]),
        ([2, 0, 0, 0], [30, 20, 50, 60]),  # dx is divided by 2: one width to the right
        ([0, -1, 0, 0], [10, 0, 30, 40]),  # half a height up
        ([0, 0, math.log(2), math.log(0.5)], [0, 30, 40, 50]),  # twice as wide, half as high, same centre
        ([0, 0, 99, 0], [20 - 62_500, 20, 20 + 62_500, 60]),  # the scale is at most 100,000 / 16
    ],
)
def test_deltas_move_and_scale_a_box_20_wide_and_40_high(deltas, expected):
    moved = apply_deltas(torch.tensor([[10.0, 20, 30, 60]]), torch.tensor([deltas], dtype=torch.float32))
    torch.testing.assert_close(moved, torch.tensor([expected], dtype=torch.float32), rtol=1e-5, atol=1e-3)


def test_deltas_agree_with_the_plain_formula():
    boxes, deltas = torch.rand(6, 4) * 50, torch.randn(6, 4)
    boxes[:, 2:] += boxes[:, :2]
    expected = [
        slow_evad.refine_box(*pair) for pair in zip(boxes.double().numpy(), deltas.double().numpy(), strict=True)
    ]
    moved = apply_deltas(boxes, deltas).double()
    torch.testing.assert_close(moved, torch.stack([torch.from_numpy(box) for box in expected]), rtol=1e-4, atol=1e-4)


def test_proposals_start_as_the_whole_image_as_published():
    localizer = Localizer(dim=8, num_heads=2, num_proposals=3, hidden_dim=8)
    assert localizer.proposal_boxes.tolist() == [[0.5, 0.5, 1, 1]] * 3


@pytest.mark.parametrize("num_proposals", [1, 8, 12, 100])
def test_a_grid_of_proposals_covers_the_frame_with_boxes_of_different_places(num_proposals):
    localizer = Localizer(dim=8, num_heads=2, num_proposals=num_proposals, hidden_dim=8, proposal_boxes="grid")
    boxes = localizer.proposal_boxes.detach()
    assert boxes.shape == (num_proposals, 4)
    assert len({tuple(box) for box in boxes.tolist()}) == num_proposals
    assert ((boxes[:, :2] > 0) & (boxes[:, :2] < 1)).all()
    assert (boxes[:, 3] > boxes[:, 2]).all(), "people stand"


def test_proposals_scale_with_each_image_and_not_with_the_padding():
    localizer = tiny_localizer(num_stages=1)
    with torch.no_grad():
        localizer.stages[0].bboxes_delta.weight.zero_()
        localizer.stages[0].bboxes_delta.bias.zero_()
        boxes = localizer(some_pyramid(), STRIDES, torch.tensor([[64, 96], [50, 33]])).boxes[-1]
        fractions = box_convert(localizer.proposal_boxes, "cxcywh", "xyxy")
    torch.testing.assert_close(boxes[0], fractions * torch.tensor([96, 64, 96, 64]), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(boxes[1], fractions * torch.tensor([33, 50, 33, 50]), rtol=1e-5, atol=1e-4)


def gradients_of(part, localizer) -> set[str]:
    localizer.zero_grad()
    part.sum().backward()
    return {name for name, one in localizer.named_parameters() if one.grad is not None and one.grad.any()}


def test_boxes_are_detached_between_stages_and_features_are_not():
    localizer = tiny_localizer()
    sizes = torch.tensor([[64, 96]] * 2)
    first = gradients_of(localizer(some_pyramid(), STRIDES, sizes).boxes[0], localizer)
    assert {"proposal_boxes", "stages.0.bboxes_delta.weight"} <= first
    last = gradients_of(localizer(some_pyramid(), STRIDES, sizes).boxes[-1], localizer)
    assert {"proposal_features", "stages.0.linear2.weight", "stages.2.bboxes_delta.weight"} <= last
    assert not last & {"proposal_boxes", "stages.0.bboxes_delta.weight", "stages.1.bboxes_delta.weight"}
    people = gradients_of(localizer(some_pyramid(), STRIDES, sizes).person_logits[-1], localizer)
    assert not any("bboxes_delta" in name or "reg_module" in name for name in people)


def test_matrices_start_xavier_uniform():
    localizer = Localizer(dim=32, num_stages=1, num_heads=2, hidden_dim=64, dynamic_dim=4, num_proposals=3)
    for name, parameter in localizer.stages.named_parameters():
        if parameter.dim() == 2:
            bound = math.sqrt(6 / sum(parameter.shape))
            assert 0.9 * bound < parameter.abs().max() <= bound, name


def test_both_kernels_localize_alike():
    results, sizes = [], torch.tensor([[64, 96], [50, 90]])
    for kernel in ("separable", "torchvision"):
        with torch.no_grad():
            results.append(tiny_localizer(roi_kernel=kernel)(some_pyramid(), STRIDES, sizes))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-3)
