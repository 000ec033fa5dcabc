"""Any backbone and any head make a temporal detector."""

import pytest
import torch

from lightning_modules.networks.temporal.temporal_detector import FeatureProjection, TemporalDetector
from tests.networks.temporal.temporal_parts import MeanColour, StepHead


def detector(num_classes=4, **backbone):
    torch.manual_seed(0)
    return TemporalDetector(num_classes, MeanColour(**backbone), StepHead, dim=6).eval()


@pytest.mark.parametrize("num_classes", [1, 20, 200])
def test_outputs_have_a_row_a_feature_and_as_many_classes_as_the_head(num_classes):
    outputs = detector(num_classes, step_stride=2)(torch.randn(3, 10, 3, 4, 4), torch.ones(3, 10, dtype=torch.bool))
    assert outputs.features.shape == (3, 6, 5) and outputs.mask.shape == (3, 5)
    assert outputs.dense.logits.shape == (3, 5, num_classes)


def test_a_window_of_any_length_is_padded_to_the_stride_and_a_half_filled_feature_counts():
    network, steps = detector(step_stride=4), torch.randn(2, 10, 3, 4, 4)
    mask = torch.arange(10) < torch.tensor([[10], [5]])
    outputs = network(steps, mask)
    assert outputs.mask.tolist() == [[True, True, True], [True, True, False]]
    padded = torch.cat([steps, torch.zeros(2, 2, 3, 4, 4)], 1)
    again = network(padded, torch.nn.functional.pad(mask, (0, 2)))
    torch.testing.assert_close(again.features, outputs.features)


def test_what_lies_behind_the_end_of_a_video_changes_nothing():
    network, steps = detector(), torch.randn(1, 8, 3, 4, 4)
    mask = torch.arange(8)[None] < 5
    noisy = torch.where(mask[:, :, None, None, None], steps, torch.full_like(steps, 1e6))
    clean, dirty = network(steps, mask), network(noisy, mask)
    torch.testing.assert_close(dirty.features, clean.features)
    assert not clean.features[:, :, 5:].any()


def test_a_projection_is_a_convolution_a_norm_over_channels_and_a_relu():
    torch.manual_seed(0)
    projection, features = FeatureProjection(3, 5), torch.randn(2, 3, 7)
    padded = torch.nn.functional.pad(features, (1, 1))
    for t in range(7):
        hidden = (projection.conv.weight * padded[:, None, :, t : t + 3]).sum((2, 3)) + projection.conv.bias
        hidden = (hidden - hidden.mean(1, keepdim=True)) / (hidden.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        expected = hidden.clamp(min=0)
        found = projection(features, torch.ones(2, 7, dtype=torch.bool))[:, :, t]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_steps_of_another_modality_are_refused():
    with pytest.raises(ValueError, match="takes steps of 2 channels, got 3; RGB has 3, optical flow 2"):
        detector(in_channels=2)(torch.randn(1, 4, 3, 4, 4), torch.ones(1, 4, dtype=torch.bool))
