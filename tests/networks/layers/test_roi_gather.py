"""RoIAlign by one lookup against scalar loops and torchvision's operator."""

import pytest
import torch
from torchvision.ops import roi_align as torchvision_roi_align

from lightning_modules.networks.layers.roi_align import pyramid_levels
from lightning_modules.networks.layers.roi_gather import PyramidTable, bin_cells, weighted_sums
from tests.networks.detection import slow_evad
from tests.networks.layers.test_roi_align import BOXES, STRIDES, some_maps


def some_pyramid(batch=1):
    return [some_maps(batch, 3, 256 // stride, 384 // stride) + stride for stride in STRIDES]


@pytest.mark.parametrize("bins", [1, 3, 7])
def test_every_box_is_read_from_its_own_level_and_its_own_picture(bins):
    pyramid, boxes = some_pyramid(batch=2), torch.stack([BOXES * scale for scale in (1.0, 3.0)])
    crops, levels = PyramidTable(pyramid, STRIDES).pooled(boxes, bins), pyramid_levels(boxes, 4)
    assert levels.unique().tolist() == [0, 1, 2, 3]
    for item in range(2):
        for number, box in enumerate(boxes[item]):
            level = int(levels[item, number])
            maps = pyramid[level][item : item + 1]
            alone = torchvision_roi_align(maps, [box[None]], bins, 1 / STRIDES[level], 2, aligned=True)
            torch.testing.assert_close(crops[item, number], alone[0], rtol=1e-4, atol=1e-4)


def test_bins_equal_scalar_loops():
    maps = some_maps(batch=1)
    width, height = torch.tensor([[6.0]]), torch.tensor([[4.0]])
    found = bin_cells(BOXES, 1 / 16, width, height, 3)
    crops = weighted_sums(maps[0].flatten(1).T.contiguous(), found.places, found.weights)  # (N, 9, C)
    for box, crop in zip(BOXES, crops, strict=True):
        expected = torch.from_numpy(slow_evad.roi_align(maps[0].double().numpy(), box.double().numpy(), 3, 1 / 16))
        torch.testing.assert_close(crop.T, expected.float().flatten(1), rtol=1e-4, atol=1e-5)


def test_no_place_lies_outside_the_map_whatever_the_box():
    wild = torch.cat([BOXES * 1e6, BOXES * -1e6, torch.tensor([[torch.nan] * 4, [-torch.inf, 0, torch.inf, 5]])])
    found = bin_cells(wild, 1 / 16, torch.tensor([[6.0]]), torch.tensor([[4.0]]), 3)
    assert found.places.min() >= 0 and found.places.max() < 24


def test_a_nan_in_a_level_that_a_box_does_not_read_does_not_reach_it():
    pyramid = some_pyramid()
    pyramid[3][:] = torch.nan
    assert PyramidTable(pyramid, STRIDES).pooled(BOXES[None, :1], 2).isfinite().all()


def test_a_box_of_nan_gives_nan_and_leaves_the_others_alone():
    boxes = BOXES.clone()
    boxes[1] = torch.nan
    crops = PyramidTable(some_pyramid(), STRIDES).pooled(boxes[None], 2)[0]
    assert crops[1].isnan().all()
    assert crops[[0, *range(2, len(BOXES))]].isfinite().all()
