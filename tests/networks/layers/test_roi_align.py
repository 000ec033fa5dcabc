"""RoIAlign against torchvision's operator and against scalar loops; pyramid levels against the equation."""

import math

import pytest
import torch
from torchvision.ops import roi_align as torchvision_roi_align

from lightning_modules.networks.layers import roi_align
from lightning_modules.networks.layers.roi_align import (
    pyramid_levels,
    pyramid_roi_align,
    sampling_matrix,
    separable_roi_align,
)
from tests.networks.detection import slow_evad

BOXES = torch.tensor(
    [
        [10.0, 8.0, 60.0, 50.0],
        [0.0, 0.0, 96.0, 64.0],
        [-30.0, -20.0, 20.0, 30.0],  # leaves the frame on the left and at the top
        [80.0, 50.0, 150.0, 130.0],  # and on the right and below
        [-300.0, -200.0, 400.0, 300.0],
        [300.0, 10.0, 340.0, 40.0],  # outside altogether
        [33.3, 12.7, 33.3, 12.7],  # a point
        [50.0, 40.0, 20.0, 10.0],  # inside out
    ]
)
STRIDES = (4, 8, 16, 32)


def some_maps(batch=2, channels=3, height=4, width=6):
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("output_size", [1, 2, 5, 7])
def test_the_separable_form_equals_the_compiled_operator(output_size):
    maps, boxes = some_maps(), torch.stack([BOXES, BOXES.flip(0) + 3])
    ours = separable_roi_align(maps, boxes, output_size, 1 / 16)
    theirs = torchvision_roi_align(maps, list(boxes), output_size, 1 / 16, 2, aligned=True).unflatten(0, (2, -1))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_both_kernels_equal_scalar_loops():
    maps = some_maps(batch=1)
    expected = [slow_evad.roi_align(maps[0].double().numpy(), box.double().numpy(), 3, 1 / 16) for box in BOXES]
    expected = torch.stack([torch.from_numpy(crop) for crop in expected]).float()
    separable = separable_roi_align(maps, BOXES[None], 3, 1 / 16)[0]
    compiled = torchvision_roi_align(maps, [BOXES], 3, 1 / 16, 2, aligned=True)
    torch.testing.assert_close(separable, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)


def test_sampling_weights_of_a_bin_inside_the_map_sum_to_one_and_outside_to_zero():
    weights = sampling_matrix(torch.tensor([0.5, -9.0]), torch.tensor([4.5, -5.0]), bins=4, length=6, sampling_ratio=2)
    assert weights.shape == (2, 4, 6)
    torch.testing.assert_close(weights.sum(-1), torch.tensor([[1.0] * 4, [0.0] * 4]))


def test_samples_more_than_a_cell_outside_count_as_zero_and_nearer_ones_as_the_border():
    """A row of one value a cell: samples at -1.5 (out), -0.5, 0.5 and 1.5, one a bin."""
    weights = sampling_matrix(torch.tensor([-2.0]), torch.tensor([2.0]), bins=4, length=3, sampling_ratio=1)
    expected = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0.5, 0.5, 0], [0, 0.5, 0.5]]])
    torch.testing.assert_close(weights, expected)


def test_levels_follow_the_square_root_of_the_area():
    sides = [1, 55.9, 56.1, 111.9, 112.1, 223.9, 224.1, 447.9, 448.1, 5000]
    boxes = torch.tensor([[5.0, 7.0, 5 + side / 2, 7 + 2 * side] for side in sides])
    expected = [min(max(math.floor(4 + math.log2(side / 224)), 2), 5) - 2 for side in sides]
    assert pyramid_levels(boxes, 4).tolist() == expected == [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]


def test_boxes_without_area_belong_to_the_finest_level():
    assert pyramid_levels(torch.tensor([[3.0, 3, 3, 3], [9, 9, 3, 10]]), 4).tolist() == [0, 0]


@pytest.mark.parametrize("kernel", ["separable", "torchvision"])
def test_every_box_is_read_from_its_own_level(kernel):
    pyramid = tuple(some_maps(2, 3, 256 // stride, 384 // stride) + stride for stride in STRIDES)
    boxes = torch.stack([BOXES * scale for scale in (1.0, 3.0)])
    ours = pyramid_roi_align(pyramid, STRIDES, boxes, 3, kernel)
    levels = pyramid_levels(boxes, 4)
    assert levels.unique().tolist() == [0, 1, 2, 3]
    for item in range(2):
        for number, box in enumerate(boxes[item]):
            level = int(levels[item, number])
            alone = torchvision_roi_align(
                pyramid[level][item : item + 1], [box[None]], 3, 1 / STRIDES[level], 2, aligned=True
            )
            torch.testing.assert_close(ours[item, number], alone[0], rtol=1e-4, atol=1e-4)


def test_both_kernels_give_the_same_gradient_to_the_maps_and_none_to_the_boxes():
    gradients = []
    for kernel in ("separable", "torchvision"):
        pyramid = [some_maps(1, 3, 64 // stride, 96 // stride).requires_grad_(True) for stride in STRIDES]
        boxes = (BOXES[None] * 2).requires_grad_(True)
        crops = pyramid_roi_align(pyramid, STRIDES, boxes, 2, kernel)
        (crops * torch.arange(crops.numel()).view_as(crops)).sum().backward()
        assert boxes.grad is None
        gradients.append([maps.grad if maps.grad is not None else torch.zeros_like(maps) for maps in pyramid])
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-2)


def test_a_nan_in_a_level_that_a_box_does_not_read_does_not_reach_it():
    pyramid = [some_maps(1, 2, 64 // stride, 96 // stride) for stride in STRIDES]
    pyramid[3][:] = torch.nan
    small = BOXES[None, :1]
    for kernel in ("separable", "torchvision"):
        assert pyramid_roi_align(pyramid, STRIDES, small, 2, kernel).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kernel", ["separable", "torchvision"])
def test_maps_of_any_precision_are_read_with_boxes_in_float32(kernel, dtype):
    pyramid = tuple(some_maps(2, 3, 64 // stride, 96 // stride) for stride in STRIDES)
    boxes = torch.stack([BOXES, BOXES + 1])
    expected = pyramid_roi_align(pyramid, STRIDES, boxes, 3, kernel)
    crops = pyramid_roi_align([maps.to(dtype) for maps in pyramid], STRIDES, boxes, 3, kernel)
    assert crops.dtype == dtype
    torch.testing.assert_close(crops.float(), expected, rtol=0.02, atol=0.05 if dtype == torch.bfloat16 else 1e-4)


def test_where_the_compiled_operator_cannot_load_the_exact_form_takes_its_place(monkeypatch):
    pyramid = [some_maps(1, 3, 64 // stride, 96 // stride) for stride in STRIDES]
    compiled = pyramid_roi_align(pyramid, STRIDES, BOXES[None], 3, "torchvision")

    def python_form(*arguments, **named):
        raise AssertionError("torchvision would take its Python form here, whose values differ")

    monkeypatch.setattr(roi_align, "torchvision_roi_align", python_form)
    monkeypatch.setattr(roi_align.torch.ops, "torchvision", object())  # as where its extension has not been loaded
    assert not roi_align.has_compiled_kernel(pyramid[0])
    torch.testing.assert_close(pyramid_roi_align(pyramid, STRIDES, BOXES[None], 3, "torchvision"), compiled)


def test_deterministic_algorithms_leave_the_compiled_operator_to_the_cpu():
    torch.use_deterministic_algorithms(True)
    try:
        assert roi_align.has_compiled_kernel(torch.zeros(1))
        assert not roi_align.has_compiled_kernel(torch.zeros(1, device="meta"))  # stands for a GPU
    finally:
        torch.use_deterministic_algorithms(False)
