"""The online linker, frame by frame on made-up streams, and the tubes of what it links."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_modules.linking.online import OnlineLinker, OnlineTubes

SQUARE = (0.0, 0.0, 100.0, 100.0)


def frame(*people, num_classes=1):
    """boxes, scores, person scores of (left edge of a box of 100 x 100, score of all classes, person score)."""
    left = torch.tensor([float(person[0]) for person in people])
    zero = torch.zeros(len(people))
    boxes = torch.stack([left, zero, left + 100, zero + 100], dim=1).reshape(-1, 4)
    scores = torch.tensor([float(person[1]) for person in people])[:, None].expand(-1, num_classes)
    return boxes, scores.clone(), torch.tensor([float(person[2]) for person in people])


def crowd(seed, num_frames=30, num_people=6, num_classes=3):
    """People who wander on lines of their own, seen most of the time, often twice, in random order."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.arange(num_people) * 300.0
    frames = []
    for step in range(num_frames):
        seen = (torch.rand(num_people, generator=generator) > 0.15).nonzero()[:, 0]
        seen = torch.cat([seen, seen[torch.rand(len(seen), generator=generator) > 0.5]])
        seen = seen[torch.randperm(len(seen), generator=generator)]
        corner = torch.stack([start[seen] + 3 * step, 5 * start[seen] / 300 + step], dim=1)
        corner = corner + torch.randn(corner.shape, generator=generator)
        boxes = torch.cat([corner, corner + 100], dim=1)
        persons = 0.4 + 0.6 * torch.rand(len(seen), generator=generator)
        frames.append((boxes, torch.rand(len(seen), num_classes, generator=generator), persons, seen))
    return frames


def test_people_keep_their_numbers_through_a_crowd():
    linker, owners = OnlineLinker(3, max_gap=8), {}
    for boxes, scores, persons, people in crowd(0):
        linked = linker.update(boxes, scores, persons)
        assert len(linked.track_ids) == len(people.unique())  # those who are seen twice count once
        for track, box in zip(linked.track_ids.tolist(), linked.boxes, strict=True):
            (row,) = (boxes == box).all(dim=1).nonzero()[:, 0]
            owners.setdefault(track, set()).add(int(people[row]))
    assert sorted(owner for (owner,) in owners.values()) == list(range(6))


def test_the_best_of_several_boxes_of_a_person_is_linked():
    linked = OnlineLinker(1).update(*frame((0, 0.1, 0.5), (5, 0.2, 0.9), (400, 0.3, 0.6)))
    assert linked.boxes[:, 0].tolist() == [5, 400]
    assert linked.person_scores.tolist() == pytest.approx([0.9, 0.6])
    assert linked.scores[:, 0].tolist() == pytest.approx([0.2, 0.3])
    two = OnlineLinker(1, nms_threshold=0.95).update(*frame((0, 0.1, 0.5), (5, 0.2, 0.9)))
    assert two.track_ids.tolist() == [0, 1]  # IoU 95 / 105


def test_scores_are_smoothed_over_the_past():
    linker = OnlineLinker(1, smoothing=0.75)
    smoothed = [float(linker.update(*frame((0, score, 1))).scores) for score in (0.8, 0.4, 0.0)]
    assert smoothed == pytest.approx([0.8, 0.7, 0.525])  # 0.75 * 0.8 + 0.25 * 0.4, ...
    raw = OnlineLinker(1, smoothing=0)
    assert [float(raw.update(*frame((0, score, 1))).scores) for score in (0.8, 0.4)] == pytest.approx([0.8, 0.4])


@pytest.mark.parametrize(("missed", "same"), [(1, True), (2, True), (3, False)])
def test_gaps_of_up_to_max_gap_frames_are_bridged(missed, same):
    linker = OnlineLinker(1, max_gap=2, smoothing=0.5)
    linker.update(*frame((0, 0.8, 1)))
    for _ in range(missed):
        assert not len(linker.update(*frame()).track_ids)
    linked = linker.update(*frame((10, 0.4, 1)))
    assert linked.track_ids.tolist() == [0 if same else 1]
    assert float(linked.scores) == pytest.approx(0.6 if same else 0.4)  # the past before the gap, or none


def test_numbers_are_never_used_again_until_reset():
    linker, seen = OnlineLinker(1, max_gap=0), []
    for left in (0, 500, 0, 500):
        seen += linker.update(*frame((left, 0.5, 1))).track_ids.tolist()
    assert seen == [0, 1, 2, 3]
    linker.reset()
    assert linker.update(*frame((0, 0.5, 1))).track_ids.tolist() == [0]


def test_overlap_of_exactly_the_threshold_links():
    for left, expected in ((50, 0), (51, 1)):  # IoU 50 / 150 and less
        linker = OnlineLinker(1, iou_threshold=1 / 3)
        linker.update(*frame((0, 0.5, 1)))
        assert linker.update(*frame((left, 0.5, 1))).track_ids.tolist() == [expected]


def test_matching_is_the_best_of_all_and_not_the_first_that_comes():
    linker = OnlineLinker(1)
    linker.update(*frame((0, 0.5, 0.9), (60, 0.5, 0.8)))
    # The largest overlap is that of the box at 35 with the track at 60 (75 of 125), which would leave nothing for the
    # other: the box at 90 overlaps with the track at 0 by 10 of 190.
    linked = linker.update(*frame((35, 0.5, 0.9), (90, 0.5, 0.7)))
    assert dict(zip(linked.track_ids.tolist(), linked.boxes[:, 0].tolist(), strict=True)) == {0: 35, 1: 90}


def test_detections_below_the_person_score_neither_start_nor_continue_a_track():
    linker = OnlineLinker(1, min_score=0.5)
    assert not len(linker.update(*frame((0, 0.9, 0.49))).track_ids)
    assert len(linker.update(*frame((0, 0.9, 0.5))).track_ids)
    assert not len(linker.update(*frame((0, 0.9, 0.49))).track_ids)


def test_order_of_detections_changes_nothing_even_under_ties():
    plain, shuffled = OnlineLinker(3), OnlineLinker(3)
    generator = torch.Generator().manual_seed(1)
    for boxes, scores, persons, _ in crowd(2):
        persons = (persons * 3).round() / 3
        order = torch.randperm(len(boxes), generator=generator)
        torch.testing.assert_close(
            shuffled.update(boxes[order], scores[order], persons[order]), plain.update(boxes, scores, persons)
        )


def test_memory_does_not_grow_with_the_stream():
    linker = OnlineLinker(2, max_gap=3)
    for step in range(500):  # nobody is ever seen twice
        linker.update(*frame((step * 200, 0.5, 1), num_classes=2))
    assert len(linker._ids) == len(linker._boxes) == len(linker._scores) == 4


def test_results_have_the_type_of_the_detections():
    for dtype in (torch.float32, torch.float64):
        boxes, scores, persons = (column.to(dtype) for column in frame((0, 0.5, 0.9), num_classes=2))
        linked = OnlineLinker(2).update(boxes, scores, persons)
        assert linked.boxes.dtype == linked.scores.dtype == linked.person_scores.dtype == dtype
        assert linked.track_ids.dtype == torch.int64
    empty = OnlineLinker(2).update(torch.empty(0, 4), torch.empty(0, 2), torch.empty(0))
    assert [tuple(column.shape) for column in empty] == [(0,), (0, 4), (0, 2), (0,)]


def test_wrong_arguments_are_refused():
    for wrong in ({"num_classes": 0}, {"iou_threshold": 0}, {"smoothing": 1}, {"max_gap": -1}, {"nms_threshold": 2}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            OnlineLinker(**({"num_classes": 1} | wrong))
    linker = OnlineLinker(2)
    with pytest.raises(ValueError, match=r"scores must be \(1, 2\), got \(1, 1\)"):
        linker.update(*frame((0, 0.5, 1)))
    boxes, scores, persons = frame((0, 0.5, 1), num_classes=2)
    with pytest.raises(ValueError, match="NaN"):
        linker.update(boxes * float("nan"), scores, persons)


# ---------------------------------------------------------------------------------------------------------------------
# Tubes.


def tubes_of(frames, **options):
    linking = {name: options.pop(name) for name in ("smoothing", "max_gap") if name in options}
    tubes = OnlineTubes(OnlineLinker(1, **({"smoothing": 0} | linking)), **({"min_frames": 1} | options))
    for people in frames:
        tubes.add(*frame(*people))
    return tubes.tubes()


def test_a_class_lasts_while_its_smoothed_score_is_above_the_threshold():
    scores = (0.9, 0.1, 0.5, 0.7, 0.3, 0.6)
    found = tubes_of([[(step, score, 1)] for step, score in enumerate(scores)], score_threshold=0.5)
    assert [tube["frames"].tolist() for tube in found] == [[0], [2, 3], [5]]
    assert [tube["score"] for tube in found] == pytest.approx([0.9, 0.6, 0.6])
    np.testing.assert_allclose(found[1]["boxes"][:, 0], [2, 3])
    smoothed = tubes_of([[(0, score, 1)] for score in (0.8, 0.4, 0.4)], score_threshold=0.5, smoothing=0.5)
    assert [tube["frames"].tolist() for tube in smoothed] == [[0, 1, 2]]  # 0.8, 0.6, 0.5
    assert smoothed[0]["score"] == pytest.approx(1.9 / 3)


def test_gaps_are_interpolated_or_keep_the_last_box():
    frames = [[(0, 0.6, 1)], [], [], [(30, 0.8, 1)]]
    (bridged,) = tubes_of(frames)
    assert bridged["frames"].tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(bridged["boxes"][:, 0], [0, 10, 20, 30])
    assert bridged["score"] == pytest.approx(0.7)  # unseen frames have no score
    (causal,) = tubes_of(frames, interpolate_gaps=False)
    np.testing.assert_allclose(causal["boxes"][:, 0], [0, 0, 0, 30])
    assert len(tubes_of(frames, max_gap=1)) == 2


def test_a_tube_ends_where_its_person_was_last_seen():
    (found,) = tubes_of([[], [(0, 0.6, 1)], [(0, 0.6, 1)], [], []])
    assert found["frames"].tolist() == [1, 2]


def test_ends_that_are_weak_beside_a_tubes_best_score_are_cut():
    """Of a best score of 0.9 half is 0.45: the first two frames and the last go, the dip in the middle stays."""
    frames = [[(0, score, 1)] for score in (0.2, 0.4, 0.5, 0.3, 0.9, 0.2)]
    (whole,) = tubes_of(frames)
    (cut,) = tubes_of(frames, end_share=0.5)
    assert whole["frames"].tolist() == [0, 1, 2, 3, 4, 5] and cut["frames"].tolist() == [2, 3, 4]
    assert cut["score"] == pytest.approx((0.5 + 0.3 + 0.9) / 3)
    with pytest.raises(ValueError, match=r"end_share must be in \[0, 1\], got 2"):
        tubes_of(frames, end_share=2)


def test_a_tube_may_end_with_a_strong_frame_and_begin_with_a_weak_one():
    frames = [[(0, score, 1)] for score in (0.2, 0.4, 0.5, 0.3, 0.9, 0.2)]
    (found,) = tubes_of(frames, end_share=0.5, begin_share=0.0)
    assert found["frames"].tolist() == [0, 1, 2, 3, 4]
    (found,) = tubes_of(frames, begin_share=1.0)
    assert found["frames"].tolist() == [4, 5]
    with pytest.raises(ValueError, match=r"begin_share must be in \[0, 1\], got -1"):
        tubes_of(frames, begin_share=-1)


def test_a_tube_with_a_lead_begins_earlier_in_its_track_with_the_boxes_and_the_score_that_it_had():
    frames = [[(step, score, 1)] for step, score in enumerate((0.1, 0.1, 0.1, 0.6, 0.8))]
    (plain,), (early,) = (tubes_of(frames, score_threshold=0.5, lead=lead) for lead in (0, 2))
    assert plain["frames"].tolist() == [3, 4] and early["frames"].tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(early["boxes"][:, 0], [1, 2, 3, 4])
    assert early["score"] == plain["score"] == pytest.approx(0.7)
    (whole,) = tubes_of(frames, score_threshold=0.5, lead=9)  # no earlier than its track
    assert whole["frames"].tolist() == [0, 1, 2, 3, 4]
    unseen = [[(0, 0.1, 1)], [], [], [(0, 0.6, 1)]]  # a lead counts frames, not those in which the track was seen
    assert [tube["frames"].tolist() for tube in tubes_of(unseen, score_threshold=0.5, lead=2)] == [[3]]
    with pytest.raises(ValueError, match="lead must not be negative, got -1"):
        tubes_of(frames, lead=-1)


def test_short_tubes_are_left_out():
    frames = [[(0, score, 1)] for score in (0.9, 0.0, 0.9, 0.9)]
    assert [tube["frames"].tolist() for tube in tubes_of(frames, min_frames=2)] == [[2, 3]]


def test_a_person_has_a_tube_for_each_class():
    tubes = OnlineTubes(OnlineLinker(3), score_threshold=0.5)
    for _ in range(4):
        tubes.add(torch.tensor([SQUARE]), torch.tensor([[0.9, 0.1, 0.6]]), torch.ones(1))
    assert [(tube["label"], len(tube["frames"])) for tube in tubes.tubes()] == [(0, 4), (2, 4)]


def test_later_frames_change_neither_numbers_nor_scores():
    frames = [frame_[:3] for frame_ in crowd(4)]
    first, whole = OnlineLinker(3), OnlineLinker(3)
    part = [first.update(*frame_) for frame_ in frames[:15]]
    everything = [whole.update(*frame_) for frame_ in frames]
    torch.testing.assert_close(part, everything[:15])


def test_no_frame_and_nobody_make_no_tube():
    assert OnlineTubes(OnlineLinker(1)).tubes() == []
    assert tubes_of([[], []]) == []
