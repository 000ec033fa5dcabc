"""Each kind of error of tubes and of segments by hand, with its cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from lightning_modules.analysis.costs import after_repair, kind_costs
from lightning_modules.analysis.kinds import SEGMENT_KINDS, TUBE_KINDS, Errors, Kind, find_errors
from lightning_modules.analysis.matched import Matched, match_segments, match_tubes
from lightning_modules.analysis.tubes import find_tube_errors
from lightning_modules.metrics.segment_map import SegmentRows
from lightning_modules.metrics.segment_map import average_precisions as segment_precisions
from lightning_modules.metrics.video_ap import average_precisions, tube_rows
from tests.lightning_modules.analysis.problems import counts

WALK, SIT = range(2)
LEFT, RIGHT = (0.0, 0, 9, 9), (100.0, 0, 109, 9)
BESIDE = (0.0, 5, 9, 14)
"""Overlaps LEFT by 1/3, counted in pixels."""


def tubes(rows: Sequence[tuple[int, float, int, Sequence[Sequence[float]]]], videos: Sequence[int] | None = None):
    """Each tube has an action, a score, a first frame and its boxes."""
    return tube_rows(
        np.asarray([0] * len(rows) if videos is None else videos, np.int64),
        np.asarray([row[0] for row in rows], np.int64),
        np.asarray([row[1] for row in rows], np.float64),
        np.asarray([row[2] for row in rows], np.int64),
        np.asarray([len(row[3]) for row in rows], np.int64),
        np.concatenate([np.empty((0, 4)), *(np.asarray(row[3], np.float64) for row in rows)]),
    )


def explained(found, true, threshold=0.5, people=None) -> tuple[Matched, Errors]:
    targets = tubes(true)
    matched, preds = match_tubes(tubes(found), targets, 2, threshold, "act")
    whose = np.arange(len(true)) if people is None else np.asarray(people)
    return matched, find_tube_errors(matched, preds, targets, whose)


def costs(matched, errors, kinds=TUBE_KINDS) -> dict[str, float]:
    return {found.kind.words: found.cost for found in kind_costs(matched, errors, kinds) if found.count}


def test_frames_lost():
    """Ten frames are true, the tube has the first four: overlap 0.4, AP 0; repaired 1."""
    matched, errors = explained([(WALK, 0.9, 0, [LEFT] * 4)], [(WALK, 1, 0, [LEFT] * 10)])
    assert counts(errors) == {"frames lost": 1}
    assert costs(matched, errors) == {"frames lost": pytest.approx(1)}


def test_too_many_frames_are_lost_frames_of_the_other():
    """A tube of ten frames about a true one of four."""
    matched, errors = explained([(WALK, 0.9, 0, [LEFT] * 10)], [(WALK, 1, 0, [LEFT] * 4)])
    assert counts(errors) == {"frames lost": 1}
    assert costs(matched, errors) == {"frames lost": pytest.approx(1)}


def test_broken_into_pieces():
    """Two tubes have four frames each of ten. The better one becomes the hit, the other goes: AP from 0 to 1."""
    found = [(WALK, 0.9, 0, [LEFT] * 4), (WALK, 0.8, 6, [LEFT] * 4)]
    matched, errors = explained(found, [(WALK, 1, 0, [LEFT] * 10)])
    assert counts(errors) == {"broken": 2}
    assert costs(matched, errors) == {"broken": pytest.approx(1)}


def test_switched_to_another_person():
    """The tube follows the left walker for six frames of ten, then the right one: overlap 0.6 of 0.75 asked for.

    Two true tubes, one row. Repaired it is a hit at recall 1/2, and AP rises from 0 to 1/2; the other walker is missed,
    which repaired alone leaves AP 0.
    """
    found = [(WALK, 0.9, 0, [LEFT] * 6 + [RIGHT] * 4)]
    matched, errors = explained(found, [(WALK, 1, 0, [LEFT] * 10), (WALK, 1, 0, [RIGHT] * 10)], threshold=0.75)
    assert counts(errors) == {"switched": 1, "missed person": 1}
    assert costs(matched, errors) == {"switched": pytest.approx(0.5), "missed person": 0}


def test_a_tube_that_outlives_an_action_of_its_person_is_not_switched():
    """One person walks four frames, then sits six; the tube says "walk" for all ten."""
    true = [(WALK, 1, 0, [LEFT] * 4), (SIT, 1, 4, [LEFT] * 6)]
    _, errors = explained([(WALK, 0.9, 0, [LEFT] * 10)], true, people=[7, 7])
    assert counts(errors) == {"frames lost": 1, "missed action": 1}


def test_misplaced_boxes():
    """All ten frames, each overlapping by 1/3."""
    matched, errors = explained([(WALK, 0.9, 0, [BESIDE] * 10)], [(WALK, 1, 0, [LEFT] * 10)])
    assert counts(errors) == {"misplaced": 1}
    assert costs(matched, errors) == {"misplaced": pytest.approx(1)}


def test_the_other_kinds_of_tubes():
    """A walker on the left and one who sits on the right. Rows: the left one sits 0.9 (wrong action), walks in a place
    where nobody is 0.8 (background), sits beside the left one 0.7 (both), walks on the left 0.6 (hit).

    Walking: miss, hit: trapezoid from precision 0 to 1/2 over recall 0 to 1: 1/4; without the background 1. Sitting: no
    hit: 0; with the one on the right no longer to be found and three misses still 0.
    """
    away = (50.0, 50, 59, 59)
    found = [
        (SIT, 0.9, 0, [LEFT] * 10),
        (WALK, 0.8, 0, [away] * 10),
        (SIT, 0.7, 0, [(0.0, 5.5, 9, 14.5)] * 10),  # a bit further than BESIDE, which tube NMS would take out
        (WALK, 0.6, 0, [LEFT] * 10),
    ]
    matched, errors = explained(found, [(WALK, 1, 0, [LEFT] * 10), (SIT, 1, 0, [RIGHT] * 10)])
    assert counts(errors) == {"wrong action": 1, "background": 1, "both": 1, "missed person": 1}
    expected = {"wrong action": 0, "background": 3 / 8, "both": 0, "missed person": 0}
    assert costs(matched, errors) == pytest.approx(expected)


def random_tubes(seed: int):
    random = np.random.default_rng(seed)
    found, true, videos, true_videos = [], [], [], []
    for video in range(6):
        for _ in range(random.integers(0, 4)):
            corner, start, length = random.uniform(0, 100, 2), int(random.integers(0, 10)), int(random.integers(2, 15))
            box = np.concatenate([corner, corner + random.uniform(20, 60, 2)])
            boxes = box + np.arange(length)[:, None] * random.normal(0, 2, 2)[[0, 1, 0, 1]]
            action = int(random.integers(2))
            true.append((action, 1.0, start, boxes))
            true_videos.append(video)
            for _ in range(random.integers(0, 4)):
                first, last = sorted(random.integers(0, length, 2).tolist())
                said = action if random.random() < 0.7 else 1 - action
                shift = random.normal(0, random.choice([1, 8, 30]), 4)
                found.append((said, random.random(), start + first, boxes[first : last + 1] + shift))
                videos.append(video)
    return tubes(found, videos), tubes(true, true_videos)


@pytest.mark.parametrize("protocol", ["act", "multisports"])
def test_repairing_everything_gives_100_percent_for_tubes(protocol):
    for seed in range(12):
        preds, targets = random_tubes(seed)
        matched, kept = match_tubes(preds, targets, 2, 0.5, protocol)
        errors = find_tube_errors(matched, kept, targets, np.arange(len(targets.classes)))
        scored = matched.true_counts > 0
        assert (after_repair(matched, errors, TUBE_KINDS)[scored] == 1).all()
        assert set(np.unique(errors.kinds[matched.taken < 0])) <= set(TUBE_KINDS)
        expected = average_precisions(preds, targets, 2, [0.5], protocol)[0]
        assert matched.average_precisions().tolist() == pytest.approx(expected.tolist(), abs=0, nan_ok=True)


# ---------------------------------------------------------------------------------------------------------------------
# Segments.


def segments(rows: Sequence[tuple[int, int, float, float, float]]) -> SegmentRows:
    """Rows of video, action, start, end, score."""
    columns = np.asarray(rows, np.float64).reshape(-1, 5)
    return SegmentRows(columns[:, 0].astype(int), columns[:, 1].astype(int), columns[:, 2:4], columns[:, 4])


SEGMENT_CASES = {
    "wrong action": ([(0, SIT, 10, 20, 0.9)], [(0, WALK, 10, 20, 1)], {"wrong action": 1.0}),
    # tIoU 4 / 10.
    "misplaced": ([(0, WALK, 10, 14, 0.9)], [(0, WALK, 10, 20, 1)], {"misplaced": 1.0}),
    # Nothing says "walk": only once it need not be found AP is 1.
    "both": ([(0, SIT, 10, 14, 0.9)], [(0, WALK, 10, 20, 1)], {"both": 0.0, "missed segment": 1.0}),
    # Hit, miss, hit: (1 + 2/3) / 2.
    "duplicate": (
        [(0, WALK, 10, 20, 0.9), (0, WALK, 10, 19, 0.8), (1, WALK, 0, 5, 0.7)],
        [(0, WALK, 10, 20, 1), (1, WALK, 0, 5, 1)],
        {"duplicate": 1 / 6},
    ),
    # Miss, hit: 1/2.
    "background": (
        [(0, WALK, 40, 50, 0.9), (0, WALK, 10, 20, 0.8)],
        [(0, WALK, 10, 20, 1)],
        {"background": 0.5},
    ),
    "missed segment": (
        [(0, WALK, 10, 20, 0.9)],
        [(0, WALK, 10, 20, 1), (0, WALK, 30, 40, 1)],
        {"missed segment": 0.5},
    ),
    # Both actions go on from 10 s to 20 s, and only one is said.
    "missed action": ([(0, WALK, 10, 20, 0.9)], [(0, WALK, 10, 20, 1), (0, SIT, 10, 20, 1)], {"missed action": 0.5}),
}


@pytest.mark.parametrize("kind", SEGMENT_CASES)
def test_kinds_of_segments(kind):
    """The mAP that each kind costs: AP is 0, 5/6 or 1/2 as it is and 1 repaired, see the cases."""
    found, true, expected = SEGMENT_CASES[kind]
    matched = match_segments(segments(found), segments(true), 2, 0.5)
    errors = find_errors(matched, missed=Kind.MISSED_SEGMENT)
    assert kind in counts(errors)
    assert costs(matched, errors, SEGMENT_KINDS) == pytest.approx(expected)


def test_repairing_everything_gives_100_percent_for_segments():
    random = np.random.default_rng(0)
    for _ in range(15):
        starts = random.uniform(0, 50, (20, 1))
        true = np.concatenate([starts, starts + random.uniform(1, 12, (20, 1))], axis=1)
        places = random.integers(0, 20, 60)
        found = np.sort(true[places] + random.normal(0, 3, (60, 2)), axis=1)
        videos, classes = random.integers(0, 3, 20), random.integers(0, 4, 20)
        said = np.where(random.random(60) < 0.6, classes[places], random.integers(0, 4, 60))
        preds = SegmentRows(videos[places], said, found, random.random(60).round(1))
        targets = SegmentRows(videos, classes, true, np.ones(20))
        matched = match_segments(preds, targets, 4, 0.5)
        errors = find_errors(matched, missed=Kind.MISSED_SEGMENT)
        scored = matched.true_counts > 0
        assert (after_repair(matched, errors, SEGMENT_KINDS)[scored] == 1).all()
        expected = segment_precisions(preds, targets, 4, [0.5])[0]
        assert matched.average_precisions().tolist() == pytest.approx(expected.tolist(), abs=0, nan_ok=True)
