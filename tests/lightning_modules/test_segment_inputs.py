"""From batches to what temporal detectors see, and back to seconds."""

import pytest
import torch

from datamodules.batches import SegmentBatch
from lightning_modules.networks.temporal.heads.segment_head import ScoredSegments
from lightning_modules.segment_inputs import FLOW_UNIT, features_to_seconds, seconds_to_features, steps_of


def window(**changes):
    """Two windows of 4 steps of 0.5 s; the first begins at 10 s, the second at 0 s and its video ends after 3 steps."""
    fields = dict.fromkeys(SegmentBatch._fields) | {
        "frames": torch.randint(0, 256, (2, 4, 3, 8, 8), dtype=torch.uint8),
        "image_sizes": torch.tensor([[8, 8], [6, 8]]),
        "mask": torch.tensor([[True] * 4, [True] * 3 + [False]]),
        "times": torch.tensor([[10.25, 10.75, 11.25, 11.75], [0.25, 0.75, 1.25, 1.75]], dtype=torch.float64),
        "step_seconds": torch.tensor([0.5, 0.5], dtype=torch.float64),
        "segments": (torch.tensor([[10.5, 11.5]], dtype=torch.float64), torch.zeros(0, 2, dtype=torch.float64)),
        "durations": torch.tensor([100.0, 1.4], dtype=torch.float64),
    }
    return SegmentBatch(**{**fields, **changes})


def test_seconds_count_features_from_the_start_of_the_window():
    first, second = seconds_to_features(window(), step_stride=1)
    assert first.tolist() == [[1.0, 3.0]] and second.shape == (0, 2)
    assert seconds_to_features(window(), step_stride=2)[0].tolist() == [[0.5, 1.5]]


def test_features_become_seconds_of_the_video_and_stay_in_it():
    found = ScoredSegments(torch.tensor([[1.0, 3.0], [-2.0, 9.0]]), torch.tensor([0.5, 0.4]), torch.tensor([0, 1]))
    assert features_to_seconds(found, window(), 0, 1).segments.tolist() == [[10.5, 11.5], [9.0, 14.5]]
    assert features_to_seconds(found, window(), 1, 1).segments.tolist() == [[0.5, 1.4], [0.0, 1.4]]
    assert features_to_seconds(found, window(), 0, 2).segments[0].tolist() == [11.0, 13.0]


def test_rgb_is_normalised_and_zero_behind_the_end_and_outside_the_picture():
    batch = window()
    steps = steps_of(batch, "rgb")
    torch.testing.assert_close(steps[0], (batch.frames[0] / 255 - 0.45) / 0.225)
    assert not steps[1, 3].any() and not steps[1, :, :, 6:].any() and steps[1, :3, :, :6].any()


def test_the_temporal_gradient_is_the_change_since_the_step_before():
    batch = window()
    gradient = steps_of(batch, "temporal_gradient")
    assert not gradient[:, 0].any() and not gradient[1, 3].any()
    expected = (batch.frames[0, 2].float() - batch.frames[0, 1].float()) / 255 / 0.225
    torch.testing.assert_close(gradient[0, 2], expected, atol=1e-5, rtol=1e-5)


def test_flow_is_counted_in_a_unit_and_features_come_time_first():
    flow = torch.randn(2, 4, 2, 8, 8)
    torch.testing.assert_close(steps_of(window(flow=flow), "flow"), flow / FLOW_UNIT)
    both = steps_of(window(flow=flow), "rgb_and_flow")
    torch.testing.assert_close(both[:, :, 3:], flow / FLOW_UNIT)
    assert both.shape == (2, 4, 5, 8, 8)
    features = torch.randn(2, 5, 4)
    torch.testing.assert_close(steps_of(window(features=features), "features"), features.transpose(1, 2))


def test_features_stored_side_by_side_are_told_apart():
    batch = window(features=torch.arange(6.0).repeat(2, 4, 1).transpose(1, 2))
    assert steps_of(batch, "rgb_features")[1, 2].tolist() == [0, 1, 2]
    assert steps_of(batch, "flow_features")[1, 2].tolist() == [3, 4, 5]
    with pytest.raises(ValueError, match="half of the channels of features, but there are 5"):
        steps_of(window(features=torch.randn(2, 5, 4)), "rgb_features")


@pytest.mark.parametrize(
    ("modality", "changes", "message"),
    [
        ("flow", {}, "the data has none; set data.init_args.flow"),
        ("features", {}, "the data has frames; set modality=rgb"),
        ("rgb", {"frames": None}, "the data has stored features; set modality=features"),
    ],
)
def test_a_modality_that_the_data_lacks_is_named(modality, changes, message):
    with pytest.raises(ValueError, match=message):
        steps_of(window(**changes), modality)
