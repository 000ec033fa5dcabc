"""Losses of distillation, computed by hand."""

from math import log

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_modules.losses.distillation import ActionImitation, AttentionImitation, BoxImitation, FeatureLoss

SIZES = torch.tensor([[100, 200]])  # height, width


def divergence(teacher: float, student: float) -> float:
    """Of a coin with the student's odds from one with the teacher's."""
    return teacher * log(teacher / student) + (1 - teacher) * log((1 - teacher) / (1 - student))


def maps(*tokens: list[float]) -> torch.Tensor:
    """Tokens of one row as a map (1, C, 1, N)."""
    return torch.tensor(tokens).T[None, :, None]


def boxes_example() -> tuple[torch.Tensor, ...]:
    """Logits and boxes of a student (R = 1) and its teacher that agree; the second proposal is nobody for sure."""
    logits = torch.tensor([[[log(3), 0.0], [-40.0, 40.0]]])
    boxes = torch.tensor([[[0.0, 0.0, 100.0, 100.0], [50.0, 50.0, 60.0, 60.0]]])
    return logits[None].clone(), boxes[None].clone(), logits, boxes


def test_equal_features_are_no_loss_and_neither_are_rescaled_ones():
    generator = torch.Generator().manual_seed(0)
    taps = [torch.randn(2, 8, 3, 3, generator=generator) for _ in range(4)]
    assert FeatureLoss()(taps, taps) == 0
    assert FeatureLoss()([3 * tap + 5 for tap in taps], taps) < 1e-5


def test_features_by_hand():
    # Layer-normed over two channels, (1, 3) and (5, 1) are (-1, 1) and (1, -1): a squared difference of 4 in each.
    apart, same = maps([1.0, 3.0]), maps([5.0, 1.0])
    assert FeatureLoss()([apart], [same]).item() == pytest.approx(4, abs=1e-3)
    # The mean over tokens, then over layers.
    first = maps([1.0, 3.0], [1.0, 3.0]), maps([5.0, 1.0], [2.0, 6.0])
    assert FeatureLoss()([first[0], apart], [first[1], apart]).item() == pytest.approx((4 + 0) / 2 / 2, abs=1e-3)


def test_features_of_another_width_are_compared_through_a_learned_map_at_each_layer():
    loss = FeatureLoss((1, 2), num_layers=2)
    first, second = (projection.weight for projection in loss.projections)
    with torch.no_grad():
        first.copy_(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1))
        second.copy_(torch.tensor([2.0, 1.0]).view(2, 1, 1, 1))
    own, taught = maps([2.0]), maps([1.0, 3.0])  # (2, 6) has the direction of (1, 3), and (4, 2) the opposite one
    assert loss([own, own], [taught, taught]).item() == pytest.approx((0 + 4) / 2, abs=1e-3)
    loss([own, own], [taught, taught]).backward()
    assert second.grad is not None and second.grad.isfinite().all()


def test_attention_by_hand():
    # One query and two keys: scores 0 and ln 3 against 0 and 0, so (1/4, 3/4) against (1/2, 1/2).
    query = torch.ones(1, 1, 1, 1)
    own, other = (torch.tensor(scores).view(1, 1, 2, 1) for scores in ([0.0, log(3)], [0.0, 0.0]))
    imitation = AttentionImitation()
    assert imitation((query, own), (query, other)).item() == pytest.approx(log(2) - log(3) / 2)
    assert imitation((query, own), (query, own)).item() == pytest.approx(0)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_attention_is_compared_in_full_precision_under_autocast(half):
    torch.manual_seed(0)
    taught = [2 * torch.randn(2, 3, 6, 8) for _ in range(2)]
    own = [part + 0.01 * torch.randn_like(part) for part in taught]
    inside = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    logs = [
        (q.double() @ k.double().mT / 8**0.5).masked_fill(~inside[:, None, None], -torch.inf).log_softmax(-1)
        for q, k in (own, taught)
    ]
    there = inside[:, None, None].expand_as(logs[0])
    divergence = torch.where(there, logs[1].exp() * (logs[1] - logs[0]), 0).sum(-1).mean(1)
    with torch.autocast("cpu", half):
        loss = AttentionImitation()(own, taught, inside)
    assert loss.item() == pytest.approx(divergence[inside].mean().item(), rel=1e-3)


def test_tokens_of_padding_do_not_count():
    """With the second token in the padding, the losses are those of the first alone."""
    inside = torch.tensor([[[True, False]]])
    own, taught = maps([1.0, 3.0], [9.0, 2.0]), maps([5.0, 1.0], [2.0, 6.0])
    assert FeatureLoss()([own], [taught], inside) == FeatureLoss()([own[..., :1]], [taught[..., :1]])
    torch.manual_seed(0)
    pairs = [tuple(torch.randn(1, 2, 3, 4) for _ in range(2)) for _ in range(2)]
    whole = AttentionImitation()(*pairs, torch.tensor([[True, True, False]]))
    alone = AttentionImitation()(*(tuple(part[:, :, :2] for part in pair) for pair in pairs))
    torch.testing.assert_close(whole, alone)


def test_actions_are_imitated_under_autocast_on_a_gpu():
    """Autocast there refuses some losses that a CPU allows; tensors without content ask the same rules."""
    before = torch.is_autocast_enabled("cuda")
    with FakeTensorMode():
        student, teacher = torch.randn(2, 3, 4, 5, device="cuda"), torch.randn(3, 4, 5, device="cuda")
        persons = torch.rand(3, 4, device="cuda")
        torch.set_autocast_enabled("cuda", True)  # `torch.autocast` leaves it off where there is no GPU
        try:
            with pytest.raises(RuntimeError, match="unsafe to autocast"):
                torch.nn.functional.binary_cross_entropy(teacher.sigmoid(), teacher.sigmoid())
            assert ActionImitation()(student, teacher, persons).shape == ()
        finally:
            torch.set_autocast_enabled("cuda", before)


def test_features_of_another_number_of_layers_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        FeatureLoss()([maps([1.0, 3.0])], [])


def test_scores_that_the_teacher_is_not_sure_of_teach_nothing():
    """Of probabilities 0.6, 0.1 and 0.95 the first one is below a confidence of 0.8; an absence may be sure too."""
    teacher, persons = torch.tensor([[[0.6, 0.1, 0.95]]]).logit(), torch.ones(1, 1)
    student = torch.zeros(1, 1, 1, 3)
    sure, doubtful = divergence(0.1, 0.5) + divergence(0.95, 0.5), divergence(0.6, 0.5)
    assert ActionImitation(0.8)(student, teacher, persons).item() == pytest.approx(sure / 3, rel=1e-4)
    assert ActionImitation()(student, teacher, persons).item() == pytest.approx((sure + doubtful) / 3, rel=1e-4)
    for confidence in (0.4, 1.0):
        with pytest.raises(ValueError, match=f"confidence must be at least 0.5.*got {confidence}"):
            ActionImitation(confidence)


def test_perfect_imitation_of_actions_is_no_loss():
    teacher = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    student = teacher.expand(4, 2, 3, 5)
    assert ActionImitation()(student, teacher, torch.rand(2, 3)).item() == pytest.approx(0, abs=1e-6)


def test_actions_by_hand():
    teacher, student = torch.tensor([[[log(3)], [0.0]]]), torch.tensor([[[[0.0], [log(3)]]]])
    imitation = ActionImitation()
    first, second = divergence(3 / 4, 1 / 2), divergence(1 / 2, 3 / 4)
    assert imitation(student, teacher, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(first)
    assert imitation(student, teacher, torch.tensor([[0.0, 1.0]])).item() == pytest.approx(second)
    assert imitation(student, teacher, torch.tensor([[0.9, 0.3]])).item() == pytest.approx(
        (0.9 * first + 0.3 * second) / 1.2
    )


def test_actions_of_every_decoder_block_count_alike():
    teacher = torch.tensor([[[log(3)]]])
    student = torch.tensor([0.0, log(3), log(3)]).view(3, 1, 1, 1)
    loss = ActionImitation()(student, teacher, torch.ones(1, 1))
    assert loss.item() == pytest.approx(divergence(3 / 4, 1 / 2) / 3)


def test_a_teacher_that_sees_nobody_teaches_no_actions():
    student = torch.zeros(1, 1, 2, 3, requires_grad=True)
    loss = ActionImitation()(student, torch.ones(1, 2, 3), torch.zeros(1, 2))
    loss.backward()
    assert loss == 0
    assert (student.grad == 0).all()


def test_a_teacher_beyond_doubt_gives_finite_losses():
    student = torch.zeros(1, 1, 1, 2, requires_grad=True)
    loss = ActionImitation()(student, torch.tensor([[[200.0, -200.0]]]), torch.ones(1, 1))
    loss.backward()
    assert loss.item() == pytest.approx(log(2))
    assert student.grad.isfinite().all()


def test_perfect_imitation_of_boxes_is_no_loss():
    logits, boxes, teacher_logits, teacher_boxes = boxes_example()
    stages = logits.expand(3, 1, 2, 2), boxes.expand(3, 1, 2, 4)
    assert BoxImitation()(*stages, teacher_logits, teacher_boxes, SIZES).item() == pytest.approx(0, abs=1e-6)


def test_boxes_by_hand():
    logits, boxes, teacher_logits, teacher_boxes = boxes_example()
    boxes[0, 0, 0] = torch.tensor([0.0, 0.0, 100.0, 50.0])  # 50 of 100 rows off: L1 1/2; IoU = GIoU = 1/2
    loss = BoxImitation()(logits, boxes, teacher_logits, teacher_boxes, SIZES)
    assert loss.item() == pytest.approx(5 * 0.5 + 2 * 0.5)
    boxes[0, 0, 0] = torch.tensor([0.0, 0.0, 50.0, 100.0])  # 50 of 200 columns off
    loss = BoxImitation()(logits, boxes, teacher_logits, teacher_boxes, SIZES)
    assert loss.item() == pytest.approx(5 * 0.25 + 2 * 0.5)


def test_person_scores_by_hand():
    logits, boxes, teacher_logits, teacher_boxes = boxes_example()
    logits[0, 0, 0] = 0  # 1/2 where the teacher says 3/4; the other proposal agrees
    loss = BoxImitation()(logits, boxes, teacher_logits, teacher_boxes, SIZES)
    assert loss.item() == pytest.approx(2 * divergence(3 / 4, 1 / 2) / 2, rel=1e-4)


def test_boxes_count_as_much_as_the_teacher_takes_them_for_a_person():
    logits, boxes, teacher_logits, teacher_boxes = boxes_example()
    boxes[0, 0, 1] += 30  # nobody's box
    assert BoxImitation()(logits, boxes, teacher_logits, teacher_boxes, SIZES).item() == pytest.approx(0, abs=1e-6)


def test_every_refinement_stage_is_compared_with_the_teachers_last():
    logits, boxes, teacher_logits, teacher_boxes = boxes_example()
    off = boxes.clone()
    off[0, 0, 0, 3] = 50
    once = BoxImitation()(logits, off, teacher_logits, teacher_boxes, SIZES)
    stages = torch.cat([logits, logits]), torch.cat([off, boxes])
    torch.testing.assert_close(BoxImitation()(*stages, teacher_logits, teacher_boxes, SIZES), once / 2)


def test_a_teacher_sure_of_nobody_gives_finite_gradients():
    logits, boxes, _, teacher_boxes = boxes_example()
    sure = torch.tensor([[[-300.0, 300.0], [-300.0, 300.0]]])
    logits, boxes = torch.zeros_like(logits).requires_grad_(), (boxes + 1).requires_grad_()
    loss = BoxImitation()(logits, boxes, sure, teacher_boxes, SIZES)
    loss.backward()
    assert loss.item() == pytest.approx(2 * log(2), rel=1e-4)
    assert logits.grad.isfinite().all()
    assert boxes.grad.isfinite().all()
