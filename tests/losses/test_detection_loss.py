"""The detection loss: numbers by hand, a slow plain version, and what gets no gradient."""

from itertools import permutations
from math import log

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torchvision.ops import generalized_box_iou

from lightning_modules.losses.detection import DetectionLoss
from lightning_modules.losses.matching import BoxMatcher

TERMS = ("person", "l1", "giou", "action")


def example(counts: list[int], stages: int = 2, blocks: int = 3, proposals: int = 4, classes: int = 3, seed: int = 0):
    """Random arguments of the loss for one keyframe an entry of ``counts``; the outputs are leaves with gradient."""
    generator = torch.Generator().manual_seed(seed)

    def boxes(*shape: int) -> torch.Tensor:
        corner = torch.rand(*shape, 2, generator=generator) * 40
        return torch.cat([corner, corner + 1 + torch.rand(*shape, 2, generator=generator) * 40], dim=-1)

    keyframes = len(counts)
    outputs = (
        torch.randn(stages, keyframes, proposals, 2, generator=generator),
        boxes(stages, keyframes, proposals),
        torch.randn(blocks, keyframes, proposals, classes, generator=generator),
    )
    truth = (
        [boxes(count) for count in counts],
        [(torch.rand(count, classes, generator=generator) < 0.4).float() for count in counts],
        torch.ones(keyframes, dtype=torch.bool),
        torch.tensor([[80, 96]]).repeat(keyframes, 1),
    )
    return tuple(output.requires_grad_() for output in outputs), truth


def match_by_trial(logits, boxes, targets, scale) -> tuple[int, ...]:
    person, overlap = logits.softmax(-1)[:, 0], generalized_box_iou(boxes, targets)
    l1 = ((boxes[:, None] - targets[None]) / scale).abs().sum(-1)
    cost = 5 * l1 - 2 * person[:, None] - 2 * overlap
    choices = permutations(range(len(boxes)), len(targets))
    return min(choices, key=lambda choice: sum(float(cost[p, t]) for t, p in enumerate(choice)))


def all_terms(outputs, truth) -> dict[str, list[torch.Tensor]]:
    """Every weighted term of the published loss, one keyframe, stage and block after the other."""
    (person_logits, boxes, action_logits), (true_boxes, true_labels, _, sizes) = outputs, truth
    keyframes, num_boxes = range(len(true_boxes)), max(1, sum(len(entry) for entry in true_boxes))
    terms: dict[str, list[torch.Tensor]] = {name: [] for name in TERMS}
    chosen: list[tuple[int, ...]] = []
    for logits, found in zip(person_logits, boxes, strict=True):
        scales = [sizes[k].flip(0).repeat(2).float() for k in keyframes]
        with torch.no_grad():
            chosen = [match_by_trial(logits[k], found[k], true_boxes[k], scales[k]) for k in keyframes]
        entropies, weights, l1, giou = [], [], torch.zeros(()), torch.zeros(())
        for k in keyframes:
            for proposal in range(found.shape[1]):
                nobody = int(proposal not in chosen[k])
                weights.append(0.1 if nobody else 1.0)
                entropies.append(-weights[-1] * logits[k, proposal].log_softmax(0)[nobody])
            for target, proposal in enumerate(chosen[k]):
                pair = found[k, proposal], true_boxes[k][target]
                l1 = l1 + ((pair[0] - pair[1]) / scales[k]).abs().sum()
                giou = giou + 1 - generalized_box_iou(pair[0][None], pair[1][None])[0, 0]
        terms["person"].append(2 * sum(entropies) / sum(weights))
        terms["l1"].append(5 * l1 / num_boxes)
        terms["giou"].append(2 * giou / num_boxes)
    for logits in action_logits:
        pairs = [
            F.binary_cross_entropy_with_logits(logits[k, proposal], true_labels[k][target])
            for k in keyframes
            for target, proposal in enumerate(chosen[k])  # the last stage's
        ]
        terms["action"].append(12 * torch.stack(pairs).mean())
    return terms


def test_one_keyframe_by_hand():
    logits = torch.tensor([[[[0.0, 0.0], [log(3), 0.0]]]])  # nobody: 1/2 and 1/4
    boxes = torch.tensor([[[[0.0, 0.0, 100.0, 50.0], [10.0, 10.0, 20.0, 20.0]]]])
    actions = torch.tensor([[[[0.0, log(3)], [9.0, 9.0]]]])
    target, label = torch.tensor([[0.0, 0.0, 100.0, 100.0]]), torch.tensor([[1.0, 0.0]])
    losses = DetectionLoss()(
        logits, boxes, actions, [target], [label], torch.tensor([True]), torch.tensor([[100, 200]])
    )
    person = 2 * (log(2) + 0.1 * log(4)) / 1.1
    action = 12 * (log(2) + log(4)) / 2
    assert losses["person"].item() == pytest.approx(person)
    assert losses["l1"].item() == pytest.approx(5 * 50 / 100)
    assert losses["giou"].item() == pytest.approx(2 * 0.5)
    assert losses["action"].item() == pytest.approx(action)
    assert losses["total"].item() == pytest.approx((person + 2.5 + 1 + action) / 4)


@pytest.mark.parametrize(("stages", "blocks"), [(1, 1), (2, 3), (6, 6)])
def test_total_is_the_mean_of_all_weighted_terms(stages, blocks):
    outputs, truth = example([2, 0, 3], stages, blocks)
    losses, terms = DetectionLoss()(*outputs, *truth), all_terms(outputs, truth)
    for name in TERMS:
        torch.testing.assert_close(losses[name], torch.stack(terms[name]).mean())
    every = torch.stack([term for name in TERMS for term in terms[name]])
    assert len(every) == 3 * stages + blocks
    torch.testing.assert_close(losses["total"], every.mean())


def test_gradients_are_those_of_the_slow_version():
    outputs, truth = example([2, 0, 3])
    ours = torch.autograd.grad(DetectionLoss()(*outputs, *truth)["total"], outputs)
    terms = all_terms(outputs, truth)
    theirs = torch.autograd.grad(torch.stack([term for name in TERMS for term in terms[name]]).mean(), outputs)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other)


def test_only_matched_proposals_learn_boxes_and_actions_and_all_learn_who_is_a_person():
    outputs, truth = example([2, 0])
    gradients = torch.autograd.grad(DetectionLoss()(*outputs, *truth)["total"], outputs)
    person, boxes, actions = (gradient.abs().sum(-1) > 0 for gradient in gradients)  # (stage or block, keyframe, Q)
    assert person.all()
    assert boxes.sum(-1).tolist() == [[2, 0], [2, 0]]
    assert actions.sum(-1).tolist() == [[2, 0]] * 3
    assert (actions == boxes[-1]).all()  # every block follows the matches of the last stage


@pytest.mark.parametrize("counts", [[0, 0], [0]])
def test_a_batch_without_a_box_trains(counts):
    outputs, truth = example(counts)
    losses = DetectionLoss()(*outputs, *truth)
    assert [losses[name].item() for name in ("l1", "giou", "action")] == [0, 0, 0]
    assert losses["person"] > 0
    gradients = torch.autograd.grad(losses["total"], outputs)  # raises where an output has no part in the loss
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[0].any()


def test_a_batch_without_an_annotated_keyframe_is_zero_and_still_carries_gradient():
    outputs, truth = example([2, 1])
    boxes, labels, _, sizes = truth
    losses = DetectionLoss()(*outputs, boxes, labels, torch.tensor([False, False]), sizes)
    assert {name: loss.item() for name, loss in losses.items()} == dict.fromkeys((*TERMS, "total"), 0.0)
    gradients = torch.autograd.grad(losses["total"], outputs)
    assert all((gradient == 0).all() for gradient in gradients)


def test_keyframes_without_annotation_are_as_if_they_were_not_there():
    outputs, (boxes, labels, _, sizes) = example([2, 1, 3, 0])
    annotated, used = torch.tensor([True, False, True, False]), [0, 2]
    with torch.no_grad():
        for output in outputs:
            output[:, [1, 3]] = float("nan")  # not even this may be noticed
    losses = DetectionLoss()(*outputs, boxes, labels, annotated, sizes)
    alone = DetectionLoss()(
        *(output[:, used] for output in outputs),
        [boxes[index] for index in used],
        [labels[index] for index in used],
        annotated[used],
        sizes[used],
    )
    torch.testing.assert_close(losses, alone, rtol=0, atol=0)
    gradients = torch.autograd.grad(losses["total"], outputs)
    assert all((gradient[:, [1, 3]] == 0).all() for gradient in gradients)


def test_weights_scale_their_terms():
    outputs, truth = example([2, 1])
    matcher = BoxMatcher()  # the same costs, so that the matches stay
    plain = DetectionLoss(1, 1, 1, 1, matcher=matcher)(*outputs, *truth)
    weighted = DetectionLoss(2, 3, 5, 7, matcher=matcher)(*outputs, *truth)
    for name, weight in zip(TERMS, (2, 3, 5, 7), strict=True):
        torch.testing.assert_close(weighted[name], weight * plain[name])


def test_nobody_weight_is_the_share_of_the_unmatched_in_the_person_loss():
    outputs, truth = example([1], stages=1, proposals=3)
    with torch.no_grad():
        outputs[0].zero_()
        outputs[0][..., 0] = log(3)  # person 3/4, so a matched proposal costs ln 4/3 and the other two ln 4 each
    for weight in (0.1, 1.0, 3.0):
        loss = DetectionLoss(person_weight=1, nobody_weight=weight)(*outputs, *truth)["person"]
        assert loss.item() == pytest.approx((log(4 / 3) + 2 * weight * log(4)) / (1 + 2 * weight))


def test_box_terms_are_divided_by_the_mean_number_of_boxes_over_all_processes(monkeypatch):
    outputs, truth = example([3, 1])
    alone = DetectionLoss()(*outputs, *truth)

    def as_if_the_other_process_had_two_boxes(value: torch.Tensor) -> None:
        value += 2

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", as_if_the_other_process_had_two_boxes)
    losses = DetectionLoss()(*outputs, *truth)
    for name in ("l1", "giou"):  # (4 + 2) / 2 instead of 4
        torch.testing.assert_close(losses[name], alone[name] * 4 / 3)
    torch.testing.assert_close(losses["action"], alone["action"])


def test_half_precision_outputs_are_taken_in_full_precision():
    outputs, truth = example([2, 1])
    half = [output.detach().bfloat16() for output in outputs]
    losses = DetectionLoss()(*half, *truth)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    torch.testing.assert_close(losses, DetectionLoss()(*(output.float() for output in half), *truth))
