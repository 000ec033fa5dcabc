"""Two temporal detectors whose answers are averaged."""

import pytest
import torch

from lightning_modules.networks.temporal.temporal_detector import TemporalDetector
from lightning_modules.networks.temporal.two_stream_detector import TwoStreamDetector
from lightning_modules.networks.weights.loading import save_weights
from tests.networks.temporal.temporal_parts import MeanColour, StepHead


def detector(in_channels, seed=0, **changes):
    torch.manual_seed(seed)
    return TemporalDetector(4, MeanColour(in_channels, **changes), StepHead, dim=6).eval()


def test_predictions_are_the_mean_of_both_streams_on_their_own_channels():
    rgb, flow, steps, mask = detector(3), detector(2, seed=1), torch.randn(2, 5, 5, 4, 4), torch.ones(2, 5).bool()
    found = TwoStreamDetector(4, lambda _: rgb, lambda _: flow)(steps, mask)
    first, second = rgb(steps[:, :, :3], mask).dense, flow(steps[:, :, 3:], mask).dense
    torch.testing.assert_close(found.dense.logits, (first.logits + second.logits) / 2)
    torch.testing.assert_close(found.dense.reach, (first.reach + second.reach) / 2)
    assert torch.equal(found.dense.mask, mask)


def test_each_stream_takes_the_weights_of_its_own_training(tmp_path):
    for name, seed, channels in (("rgb", 7, 3), ("flow", 8, 2)):
        save_weights(detector(channels, seed).state_dict(), tmp_path / f"{name}.pt")
    network = TwoStreamDetector(
        4, lambda _: detector(3), lambda _: detector(2), str(tmp_path / "rgb.pt"), str(tmp_path / "flow.pt")
    )
    expected = detector(3, 7).projection.conv.weight.half().float()
    assert torch.equal(network.rgb.projection.conv.weight, expected)


def test_streams_of_unlike_stride_are_refused():
    with pytest.raises(ValueError, match="both streams need the same step_stride"):
        TwoStreamDetector(4, lambda _: detector(3), lambda _: detector(2, step_stride=2))
