"""Matching of proposals with true boxes, against every permutation and against torchvision."""

from itertools import permutations

import pytest
import torch
from torchvision.ops import generalized_box_iou

from lightning_modules.losses.matching import BoxMatcher, ProposalMatcher, paired_giou

SIZE = torch.tensor([200.0, 100.0, 200.0, 100.0])  # width, height, width, height


def random_boxes(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=generator) * 60
    return torch.cat([corner, corner + 1 + torch.rand(*shape, 2, generator=generator) * 40], dim=-1)


def cheapest_by_trial(logits, boxes, targets, scale, class_cost=2.0, l1_cost=5.0, giou_cost=2.0):
    """The proposals of one keyframe, one a target, found by adding up the cost of every choice there is."""
    person = logits.softmax(-1)[:, 0]
    overlap = generalized_box_iou(boxes, targets)

    def cost(proposal: int, target: int) -> float:
        l1 = ((boxes[proposal] - targets[target]) / scale).abs().sum()
        return float(-class_cost * person[proposal] + l1_cost * l1 - giou_cost * overlap[proposal, target])

    choices = permutations(range(len(boxes)), len(targets))
    return min(choices, key=lambda choice: sum(cost(proposal, target) for target, proposal in enumerate(choice)))


def test_giou_is_that_of_torchvision():
    first, second = random_boxes(5, seed=1), random_boxes(7, seed=2)
    ours = paired_giou(first[:, None].expand(5, 7, 4), second.expand(5, 7, 4))
    torch.testing.assert_close(ours, generalized_box_iou(first, second))


def test_giou_by_hand():
    square = torch.tensor([0.0, 0.0, 10.0, 10.0])
    half, apart = torch.tensor([0.0, 0.0, 10.0, 5.0]), torch.tensor([20.0, 0.0, 30.0, 10.0])
    assert paired_giou(square, square) == 1
    assert paired_giou(square, half) == 0.5
    assert paired_giou(square, apart) == pytest.approx(-1 / 3)  # a third of the hull belongs to neither


def test_giou_of_boxes_without_area_is_finite_and_so_is_its_gradient():
    point = torch.tensor([[5.0, 5.0, 5.0, 5.0], [5.0, 5.0, 5.0, 5.0]], requires_grad=True)
    other = torch.tensor([[5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 8.0, 8.0]])
    giou = paired_giou(point, other)
    giou.sum().backward()
    assert giou.isfinite().all()
    assert point.grad.isfinite().all()


@pytest.mark.parametrize("seed", range(5))
def test_matches_are_the_cheapest_of_all_permutations(seed):
    counts = [2, 0, 3, 1]
    boxes, targets = random_boxes(4, 4, seed=seed), random_boxes(sum(counts), seed=100 + seed)
    logits = torch.randn(4, 4, 2, generator=torch.Generator().manual_seed(seed))
    matches = BoxMatcher()(logits, boxes, targets, counts, SIZE.expand(4, 4))
    found = list(zip(*(part.tolist() for part in matches), strict=True))

    expected, start = [], 0
    for keyframe, count in enumerate(counts):
        own = targets[start : start + count]
        chosen = cheapest_by_trial(logits[keyframe], boxes[keyframe], own, SIZE)
        expected += [(keyframe, proposal, start + target) for target, proposal in enumerate(chosen)]
        start += count
    assert found == expected


def test_each_cost_decides_alone_when_the_others_are_off():
    target = torch.tensor([[0.0, 0.0, 40.0, 40.0]])
    boxes = torch.tensor([[[0.0, 0.0, 40.0, 20.0], [2.0, 2.0, 42.0, 42.0], [100.0, 0.0, 140.0, 40.0]]])
    logits = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [5.0, 0.0]]])

    def taken(*costs: float) -> int:
        return BoxMatcher(*costs)(logits, boxes, target, [1], SIZE[None]).proposal.item()

    assert taken(1.0, 0.0, 0.0) == 2  # the likeliest person
    assert taken(0.0, 1.0, 0.0) == 1  # corners off by 2 pixels each
    assert taken(0.0, 0.0, 1.0) == 1  # IoU 0.82 against 0.5
    # Wide frames count a horizontal pixel for less: with x twenty times as cheap, the far box of the right height wins.
    wide = torch.tensor([[10_000.0, 100.0, 10_000.0, 100.0]])
    assert BoxMatcher(0.0, 1.0, 0.0)(logits, boxes, target, [1], wide).proposal.item() == 2


def test_more_people_than_proposals_leaves_people_out():
    boxes, targets = random_boxes(1, 2), random_boxes(5, seed=3)
    matches = BoxMatcher()(torch.zeros(1, 2, 2), boxes, targets, [5], SIZE[None])
    assert sorted(matches.proposal.tolist()) == [0, 1]
    assert len(set(matches.target.tolist())) == 2


def test_a_proposal_that_is_not_a_number_is_taken_last():
    boxes, targets = random_boxes(1, 3), random_boxes(2, seed=4)
    boxes[0, 1] = float("nan")
    matches = BoxMatcher()(torch.zeros(1, 3, 2), boxes, targets, [2], SIZE[None])
    assert sorted(matches.proposal.tolist()) == [0, 2]


def test_outputs_that_are_all_not_numbers_still_match():
    boxes = torch.full((1, 3, 4), float("nan"))
    matches = BoxMatcher()(torch.full((1, 3, 2), float("nan")), boxes, random_boxes(2), [2], SIZE[None])
    assert len(set(matches.proposal.tolist())) == 2


@pytest.mark.parametrize("counts", [[0, 0], []])
def test_keyframes_without_boxes_match_nothing(counts):
    keyframes = len(counts)
    matches = BoxMatcher()(
        torch.zeros(keyframes, 3, 2),
        random_boxes(keyframes, 3),
        torch.zeros(0, 4),
        counts,
        SIZE.expand(keyframes, 4),
    )
    assert [len(part) for part in matches] == [0, 0, 0]
    assert all(part.dtype == torch.int64 for part in matches)


def test_matching_keeps_no_graph():
    boxes = random_boxes(1, 3).requires_grad_()
    matches = BoxMatcher()(torch.zeros(1, 3, 2, requires_grad=True), boxes, random_boxes(1), [1], SIZE[None])
    assert not any(part.requires_grad for part in matches)


def test_the_teachers_persons_go_to_the_nearest_proposals_and_the_rest_is_shared_out():
    near = torch.tensor([[[0, 0, 10, 10], [50, 50, 60, 60], [80, 80, 90, 90.0]]])
    teachers = torch.tensor([[[49, 50, 60, 60], [0, 0, 30, 30], [81, 80, 90, 90], [0, 0, 11, 10.0]]])
    persons = torch.tensor([0.9, 0.01, 0.8, 0.7])
    logits = torch.stack([persons.log(), (1 - persons).log()], dim=-1)[None]
    places = ProposalMatcher()(torch.zeros(1, 3, 2), near, logits, teachers, torch.full((1, 4), 100.0))
    assert places.tolist() == [[3, 0, 2]]


def test_a_person_far_from_every_proposal_is_served_before_a_nobody_nearby():
    student = torch.tensor([[[0, 0, 10, 10.0]]])
    teachers = torch.tensor([[[0, 0, 10, 10], [70, 70, 99, 99.0]]])
    logits = torch.tensor([[[-4.0, 4.0], [4.0, -4.0]]])  # nobody, somebody
    places = ProposalMatcher()(torch.zeros(1, 1, 2), student, logits, teachers, torch.full((1, 4), 100.0))
    assert places.tolist() == [[1]]


def test_an_assignment_is_the_cheapest_of_all():
    torch.manual_seed(0)
    corners = torch.rand(2, 7, 2) * 50
    boxes = torch.cat([corners, corners + 5 + torch.rand(2, 7, 2) * 40], dim=-1)
    student, teachers, logits, own_logits = boxes[:, :3], boxes[:, 3:] + 1, torch.randn(2, 4, 2), torch.randn(2, 3, 2)
    scale = torch.tensor([[100.0, 80, 100, 80], [90, 100, 90, 100]])
    matcher = ProposalMatcher()
    places = matcher(own_logits, student, logits, teachers, scale)
    for item in range(2):

        def cost(own: int, other: int, item: int = item) -> float:
            one, two = student[item, own], teachers[item, other]
            person = logits[item, other].softmax(-1)[0]
            l1 = ((one - two) / scale[item]).abs().sum()
            price = 5 * l1 + 2 * (1 - paired_giou(one, two)) - 2 * own_logits[item, own].softmax(-1)[0]
            return float(person * (price - matcher.reward))

        best = min(permutations(range(4), 3), key=lambda order: sum(cost(*pair) for pair in enumerate(order)))
        assert places[item].tolist() == list(best)


def test_teacher_and_ground_truth_choose_the_same_proposal_of_two_near_a_person():
    person = torch.tensor([[20.0, 20, 60, 80]])
    own = person + torch.tensor([[1.0, 1, 1, 1], [0.5, 0.5, 0.5, 0.5]])  # the second is the nearer
    own_logits = torch.tensor([[2.0, -2.0], [-2.0, 2.0]])  # the student takes the first for the person
    scale = torch.full((1, 4), 100.0)
    found = BoxMatcher()(own_logits[None], own[None], person, [1], scale)
    teachers = torch.cat([person, torch.tensor([[0.0, 0, 5, 5]])])
    places = ProposalMatcher()(own_logits[None], own[None], torch.tensor([[[9.0, -9], [-9, 9]]]), teachers[None], scale)
    assert found.proposal.tolist() == [0]
    assert places.tolist() == [[0, 1]]


def test_a_student_with_more_proposals_than_its_teacher_is_refused():
    with pytest.raises(ValueError, match="2 proposals but its teacher only 1"):
        ProposalMatcher()(*(torch.zeros(1, *shape) for shape in ((2, 2), (2, 4), (1, 2), (1, 4))), torch.ones(1, 4))
