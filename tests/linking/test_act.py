"""ACT's offline linking against a slow version and cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_modules.linking.act import ActTubes
from tests.metrics.test_video_map import slow_box_iou


def tubes_of(frames, num_classes=1, **options):
    """Frames of (left edge of a box of 100 x 100 pixels, score)."""
    tubes = ActTubes(num_classes, **({"min_frames": 1} | options))
    for people in frames:
        left = torch.tensor([float(person[0]) for person in people])
        boxes = torch.stack([left, 0 * left, left + 99, 0 * left + 99], dim=1).reshape(-1, 4)
        tubes.add(boxes, torch.tensor([float(person[1]) for person in people], dtype=torch.float64)[:, None])
    return tubes.tubes()


def lefts(tube):
    return dict(zip(tube["frames"].tolist(), tube["boxes"][:, 0].tolist(), strict=True))


def slow_link(frames, label, min_score=0.01, min_frames=15):
    """Tubes of a class as lists of (frame, box, score), as the protocol is described."""
    live, over = [], []
    for number, (boxes, scores) in enumerate(frames):
        free = []
        for score, box in sorted(zip(scores[:, label].tolist(), boxes.tolist(), strict=True), key=lambda row: -row[0]):
            if all(slow_box_iou(box, other, 1) <= 0.3 for _, other in free):
                free.append((score, box))
        free = free[:10]
        live.sort(key=lambda tube: -np.mean([score for *_, score in tube]))
        for tube in list(live):
            near = [entry for entry in free if slow_box_iou(tube[-1][1], entry[1], 1) >= 0.2]
            if near:
                best = max(near)
                free.remove(best)
                tube.append((number, best[1], best[0]))
            elif number - tube[-1][0] >= 5:
                live.remove(tube)
                over.append(tube)
        live += [[(number, box, score)] for score, box in free]
    return [
        tube
        for tube in over + live
        if np.mean([score for *_, score in tube]) >= min_score and tube[-1][0] - tube[0][0] + 1 >= min_frames
    ]


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_the_slow_version(seed):
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, 300, (5, 2))
    frames, tubes = [], ActTubes(3, min_frames=5)
    for step in range(40):
        people = rng.permutation(np.flatnonzero(rng.random(5) > 0.3).repeat(3))
        corner = start[people] + 2 * step + rng.normal(0, 6, (len(people), 2))
        boxes = np.concatenate([corner, corner + 60], axis=1)
        scores = rng.random((len(people), 3)) * [1, 0.3, 0.008]
        frames.append((boxes, scores))
        tubes.add(torch.from_numpy(boxes), torch.from_numpy(scores))
    found = tubes.tubes()
    for label in range(3):
        expected = slow_link(frames, label, min_frames=5)
        mine = [tube for tube in found if tube["label"] == label]
        assert (len(expected) > 4) == (label < 2)  # the scores of the last class are all below the least mean score
        assert [tube["score"] for tube in mine] == pytest.approx([np.mean([s for *_, s in tube]) for tube in expected])
        for tube, slow in zip(mine, expected, strict=True):
            assert tube["frames"].tolist() == list(range(slow[0][0], slow[-1][0] + 1))
            at = dict(zip(tube["frames"].tolist(), tube["boxes"].tolist(), strict=True))
            assert all(at[number] == pytest.approx(box) for number, box, _ in slow)


def test_a_tube_takes_the_best_scored_box_that_overlaps_and_not_the_nearest():
    (tube, other) = tubes_of([[(0, 0.9)], [(0, 0.5), (60, 0.7)]])
    assert lefts(tube) == {0: 0, 1: 60}  # 40 of 160 columns, above 0.2
    assert lefts(other) == {1: 0}
    assert tube["score"] == pytest.approx(0.8)


def test_tubes_of_a_better_mean_score_choose_first():
    frames = [[(0, 0.9), (100, 0.8)], [(50, 0.7)]]
    assert [len(tube["frames"]) for tube in tubes_of(frames)] == [2, 1]
    assert {tuple(lefts(tube)) for tube in tubes_of(frames)} == {(0, 1), (0,)}
    (chosen,) = (tube for tube in tubes_of(frames) if len(tube["frames"]) == 2)
    assert chosen["boxes"][0, 0] == 0


def test_boxes_of_a_frame_that_overlap_are_suppressed_and_ten_are_linked():
    (tube,) = tubes_of([[(0, 0.6), (10, 0.9)]])
    assert tube["boxes"][0, 0] == 10
    assert len(tubes_of([[(200 * place, 0.5) for place in range(12)]])) == 10


@pytest.mark.parametrize(("missed", "num_tubes"), [(4, 1), (5, 2)])
def test_a_tube_ends_when_it_has_missed_five_frames(missed, num_tubes):
    found = tubes_of([[(0, 0.5)], *[[]] * missed, [(10 * (missed + 1) / 5, 0.5)]])
    assert len(found) == num_tubes
    if num_tubes == 1:
        np.testing.assert_allclose(found[0]["boxes"][:, 0], 2 * np.arange(6))  # missed frames are interpolated


def test_weak_and_short_tubes_are_left_out():
    assert tubes_of([[(0, 0.009)]] * 20) == []
    assert len(tubes_of([[(0, 0.01)]] * 20)) == 1
    assert tubes_of([[(0, 0.5)]] * 14, min_frames=15) == []
    assert len(tubes_of([[(0, 0.5)]] * 15, min_frames=15)) == 1


def test_nothing_makes_no_tube():
    assert ActTubes(2).tubes() == []
    assert tubes_of([[], []]) == []


def test_wrong_arguments_are_refused():
    for wrong in ({"num_classes": 0}, {"iou_threshold": 0}, {"nms_threshold": 1.5}, {"min_frames": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ActTubes(**({"num_classes": 1} | wrong))
    with pytest.raises(ValueError, match=r"scores \(N, 2\)"):
        ActTubes(2).add(torch.zeros(3, 4), torch.zeros(3, 1))
