"""The pyramid that never upsamples against convolutions after real upsampling."""

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.networks.detection.pyramid import KeyframePyramid, conv_after_upsampling
from tests.networks.tiny import randomise


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("grid", [(4, 6), (2, 2), (1, 1), (3, 5)])
def test_the_folded_convolution_equals_the_convolution_of_the_upsampled_map(factor, grid):
    generator = torch.Generator().manual_seed(factor)
    maps = torch.randn(2, 3, *grid, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, 3, 3, 3, generator=generator, dtype=torch.float64)
    bias = torch.randn(5, generator=generator, dtype=torch.float64)
    upsampled = maps.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    expected = F.conv2d(upsampled, weight, bias, padding=1)
    torch.testing.assert_close(conv_after_upsampling(maps, weight, bias, factor), expected, rtol=0, atol=1e-10)


def slow_pyramid(pyramid: KeyframePyramid, maps: list[torch.Tensor]) -> list[torch.Tensor]:
    """Resample first, as the published network does, then laterals, top-down sums and output convolutions."""
    scales = (4, 2, 1, 0.5)
    resampled = [F.interpolate(m, scale_factor=s, mode="nearest") for m, s in zip(maps, scales, strict=True)]
    inner, levels = None, []
    for number in (3, 2, 1, 0):
        lateral = pyramid.laterals[number](resampled[number])
        inner = lateral if inner is None else lateral + F.interpolate(inner, scale_factor=2, mode="nearest")
        levels.insert(0, pyramid.outputs[number](inner))
    return levels


def test_the_pyramid_and_its_gradients_equal_those_of_upsampling_first():
    pyramid = randomise(KeyframePyramid(7, 5)).double()
    results = []
    for forward in (pyramid, lambda maps: slow_pyramid(pyramid, maps)):
        generator = torch.Generator().manual_seed(1)
        maps = torch.randn(4, 2, 7, 4, 6, generator=generator, dtype=torch.float64)
        maps = [one.clone().requires_grad_(True) for one in maps]
        levels = forward(maps)
        pyramid.zero_grad()
        sum((level.square() * (number + 1)).sum() for number, level in enumerate(levels)).backward()
        results.append([*levels, *(one.grad for one in maps), *(p.grad.clone() for p in pyramid.parameters())])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_levels_have_the_strides_they_name():
    pyramid = KeyframePyramid(7, 5, patch_size=16)
    assert pyramid.strides == (4, 8, 16, 32)
    levels = pyramid(tuple(torch.zeros(1, 7, 4, 6) for _ in range(4)))
    assert [tuple(level.shape) for level in levels] == [
        (1, 5, 64 // stride, 96 // stride) for stride in pyramid.strides
    ]


def test_biases_start_at_zero_and_weights_do_not():
    pyramid = KeyframePyramid(7, 5)
    for name, parameter in pyramid.named_parameters():
        assert parameter.any() != name.endswith("bias")


def test_an_odd_token_grid_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 6\).*multiple of twice the patch size"):
        KeyframePyramid(7, 5)(tuple(torch.zeros(1, 7, 3, 6) for _ in range(4)))
