"""Decoding by hand: threshold, clipping, rescaling, both rules for the score."""

import math

import pytest
import torch

from lightning_modules.networks.detection.outputs import Detections, DetectorOutputs, decode_detections


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def detections(persons, boxes, actions) -> Detections:
    """From person probabilities (B, Q), boxes (B, Q, 4) and action probabilities (B, Q, K)."""
    person_logits = torch.tensor([[[logit(p), 0.0] for p in row] for row in persons])
    action_logits = torch.tensor([[[logit(p) for p in one] for one in row] for row in actions])
    return Detections(person_logits, torch.tensor(boxes, dtype=torch.float32), action_logits)


ONE = detections(
    [[0.9, 0.7001, 0.6]],
    [[[10, 20, 30, 40], [-5, -5, 500, 500], [1, 2, 3, 4]]],
    [[[0.8, 0.1], [0.5, 0.25], [0.9, 0.9]]],
)
SIZES = torch.tensor([[80, 160]]), torch.tensor([[240, 320]])  # height x 3, width x 2


def test_proposals_at_the_threshold_stay_and_are_rescaled_to_the_original_video():
    (decoded,) = decode_detections(ONE, *SIZES)
    torch.testing.assert_close(decoded.boxes[0], torch.tensor([20.0, 60, 60, 120]))
    clipped_before_rescaling = torch.tensor([0.0, 0, 2 * 159, 3 * 79])
    torch.testing.assert_close(decoded.boxes[1], clipped_before_rescaling)
    torch.testing.assert_close(decoded.scores, torch.tensor([[0.8, 0.1], [0.5, 0.25]]))
    torch.testing.assert_close(decoded.person_scores, torch.tensor([0.9, 0.7001]))


def test_the_score_may_be_person_times_action():
    (decoded,) = decode_detections(ONE, *SIZES, person_threshold=0.0, score="person_x_action")
    expected = torch.tensor([[0.72, 0.09], [0.35005, 0.175025], [0.54, 0.54]])
    torch.testing.assert_close(decoded.scores, expected)


def test_where_no_proposal_passes_all_are_kept_and_other_frames_are_not_touched():
    two = detections([[0.1, 0.2], [0.95, 0.2]], [[[0, 0, 9, 9]] * 2] * 2, [[[0.5], [0.6]]] * 2)
    first, second = decode_detections(two, *(size.expand(2, 2) for size in SIZES))
    assert len(first.boxes) == 2 and len(second.boxes) == 1
    torch.testing.assert_close(second.scores, torch.tensor([[0.5]]))


def test_boxes_never_leave_the_original_video():
    sizes = torch.tensor([[64, 64]]), torch.tensor([[63, 65]])
    wild = detections([[0.9] * 3], [[[-1e6, -1e6, 1e6, 1e6], [63.9, 63.9, 99, 99], [5, 5, 1, 1]]], [[[0.5]] * 3])
    (decoded,) = decode_detections(wild, *sizes)
    assert (decoded.boxes >= 0).all()
    assert (decoded.boxes[:, [0, 2]] <= 65).all() and (decoded.boxes[:, [1, 3]] <= 63).all()


def test_each_frame_is_rescaled_by_its_own_sizes():
    two = detections([[0.9], [0.9]], [[[10, 10, 20, 20]]] * 2, [[[0.5]]] * 2)
    first, second = decode_detections(two, torch.tensor([[100, 100], [50, 200]]), torch.tensor([[200, 300], [50, 100]]))
    assert first.boxes.tolist() == [[30, 20, 60, 40]] and second.boxes.tolist() == [[5, 10, 10, 20]]


def test_half_precision_logits_are_scored_in_float32():
    half = Detections(*(part.bfloat16() for part in ONE))
    (decoded,) = decode_detections(half, *SIZES, person_threshold=0.0)
    assert {part.dtype for part in decoded} == {torch.float32}


@pytest.mark.parametrize("stages", [1, 3])
def test_the_detections_of_outputs_are_those_of_the_last_stage_and_block(stages):
    outputs = DetectorOutputs(torch.randn(stages, 2, 5, 2), torch.randn(stages, 2, 5, 4), torch.randn(2, 2, 5, 3), ())
    last = outputs.detections
    assert torch.equal(last.person_logits, outputs.person_logits[-1]) and torch.equal(last.boxes, outputs.boxes[-1])
    assert torch.equal(last.action_logits, outputs.action_logits[1])


@pytest.mark.parametrize("part", ["person_logits", "action_logits"])
def test_nan_is_an_error_that_names_the_keyframe(part):
    broken = Detections(*(part.repeat(3, 1, 1) for part in ONE))
    getattr(broken, part)[1, 0] = math.nan
    with pytest.raises(ValueError, match=r"keyframes \[1\] of 3 are NaN"):
        decode_detections(broken, *(sizes.expand(3, 2) for sizes in SIZES))
