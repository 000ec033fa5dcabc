"""Each kind of error by hand, with its cost; kinds never overlap; repairing all gives 100 %."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

from lightning_modules.analysis.costs import after_repair, costliest, kind_costs
from lightning_modules.analysis.kinds import BOX_KINDS, MISSED, Kind, find_errors
from lightning_modules.analysis.matched import match_boxes
from lightning_modules.metrics.frame_ap import FrameMapSettings, average_precisions
from tests.lightning_modules.analysis.problems import SIT, TALK, WALK, counts, explained, random_rows
from tests.lightning_modules.analysis.tidecv_counts import PROBLEMS, RECORD, record

PERSON = (0, 0, 10, 10)
BESIDE = (0, 5, 10, 15)
"""Overlaps PERSON by 1/3."""
AWAY = (50, 50, 60, 60)


def costs(matched, errors) -> dict[str, float]:
    return {found.kind.words: found.cost for found in kind_costs(matched, errors, BOX_KINDS) if found.count}


def test_a_wrong_action_becomes_a_hit_of_what_the_person_does():
    """A person walks, the row says "sit" with 0.9. Walking has no row: AP 0; sitting nobody does, so it is left out.

    Repaired, the row finds the walk: AP 1, so the kind costs 1. The walk is not missed: the repair finds it.
    """
    matched, errors = explained([(0, PERSON, {SIT: 0.9})], [(0, PERSON, [WALK])])
    assert counts(errors) == {"wrong action": 1}
    assert costs(matched, errors) == {"wrong action": pytest.approx(1)}


def test_a_wrong_action_of_somebody_found_goes():
    """Two people walk and sit, in frames 0 and 1. Rows: sit at the walker 0.9, walk there 0.8, sit at the sitter 0.7.

    Walking has AP 1. Sitting has a miss before its hit: AP 1/2. Without the miss it is 1: of two classes that is 1/4.
    """
    found = [(0, PERSON, {SIT: 0.9, WALK: 0.8}), (1, PERSON, {SIT: 0.7})]
    matched, errors = explained(found, [(0, PERSON, [WALK]), (1, PERSON, [SIT])], num_frames=2)
    assert counts(errors) == {"wrong action": 1}
    assert costs(matched, errors) == {"wrong action": pytest.approx(0.25)}


def test_a_misplaced_box_becomes_a_hit():
    """The only row overlaps the walker by 1/3: AP 0, repaired 1."""
    matched, errors = explained([(0, BESIDE, {WALK: 0.9})], [(0, PERSON, [WALK])])
    assert counts(errors) == {"misplaced": 1}
    assert costs(matched, errors) == {"misplaced": pytest.approx(1)}


def test_only_the_best_of_several_misplaced_boxes_becomes_a_hit():
    """Rows 0.9 and 0.8 beside the walker: the first becomes the hit, the second goes: AP from 0 to 1."""
    found = [(0, BESIDE, {WALK: 0.8}), (0, (0, 4, 10, 14), {WALK: 0.9})]
    matched, errors = explained(found, [(0, PERSON, [WALK])])
    assert counts(errors) == {"misplaced": 2}
    assert (errors.repairs >= 0).sum() == 1 and matched.scores[errors.repairs >= 0] == [0.9]
    assert costs(matched, errors) == {"misplaced": pytest.approx(1)}


def test_both_at_once_goes_and_what_it_was_to_find_is_missed():
    """The row says "sit" beside a walker. The walk is missed, a person that no box overlaps enough.

    Walking alone is scored, without a row: AP 0. Without "both" it stays 0. With the missed walk no longer to be found
    nothing is to be found and nothing is said of walking: AP 1.
    """
    matched, errors = explained([(0, BESIDE, {SIT: 0.9})], [(0, PERSON, [WALK])])
    assert counts(errors) == {"both": 1, "missed person": 1}
    assert costs(matched, errors) == {"both": 0, "missed person": pytest.approx(1)}


def test_a_duplicate_goes():
    """Walkers in frames 0 and 1; rows 0.9 and 0.8 at the first, 0.7 at the second: hit, miss, hit: AP (1 + 2/3) / 2.

    Without the duplicate AP is 1: it costs 1/6.
    """
    found = [(0, PERSON, {WALK: 0.9}), (0, PERSON, {WALK: 0.8}), (1, PERSON, {WALK: 0.7})]
    matched, errors = explained(found, [(0, PERSON, [WALK]), (1, PERSON, [WALK])], num_frames=2)
    assert counts(errors) == {"duplicate": 1}
    assert costs(matched, errors) == {"duplicate": pytest.approx(1 / 6)}


def test_a_duplicate_of_somebody_who_does_two_things_is_no_wrong_action():
    """The walker talks too. The second box has rows of both actions: TIDE, which looks at the other row of the same
    person, would call them wrong actions. Behind hits of everything they cost nothing."""
    found = [(0, PERSON, {WALK: 0.9, TALK: 0.9}), (0, PERSON, {WALK: 0.8, TALK: 0.8})]
    matched, errors = explained(found, [(0, PERSON, [WALK, TALK])])
    assert counts(errors) == {"duplicate": 2}
    assert costs(matched, errors) == {"duplicate": 0}


def test_background_goes():
    """A row where nobody is, 0.9, before the walker's, 0.8: AP 1/2, without it 1."""
    matched, errors = explained([(0, AWAY, {WALK: 0.9}), (0, PERSON, {WALK: 0.8})], [(0, PERSON, [WALK])])
    assert counts(errors) == {"background": 1}
    assert costs(matched, errors) == {"background": pytest.approx(0.5)}


def test_rows_of_a_frame_without_people_are_background():
    """A frame with the walker found, one with nobody and a row of 0.95: AP 1/2."""
    found = [(0, PERSON, {WALK: 0.9}), (1, PERSON, {WALK: 0.95})]
    matched, errors = explained(found, [(0, PERSON, [WALK])], num_frames=2)
    assert counts(errors) == {"background": 1}
    assert costs(matched, errors) == {"background": pytest.approx(0.5)}


def test_a_missed_person_has_no_box():
    """One of two walkers is found: AP 1/2; were the other not to be found, 1."""
    matched, errors = explained([(0, PERSON, {WALK: 0.9})], [(0, PERSON, [WALK]), (0, AWAY, [WALK])])
    assert counts(errors) == {"missed person": 1}
    assert costs(matched, errors) == {"missed person": pytest.approx(0.5)}


def test_a_missed_action_is_of_somebody_who_has_a_box():
    """The person walks and talks, the box only says that he walks. Talking has AP 0: of two classes that is 1/2."""
    matched, errors = explained([(0, PERSON, {WALK: 0.9})], [(0, PERSON, [WALK, TALK])])
    assert counts(errors) == {"missed action": 1}
    assert costs(matched, errors) == {"missed action": pytest.approx(0.5)}


def test_several_wrong_actions_find_several_things_that_a_person_does():
    """Who walks and talks is said to sit (0.9) and, by another box, to stand (0.8): the better row is about walking,
    the first of the two, the other about talking. Repaired, both classes go from 0 to 1."""
    found = [(0, PERSON, {SIT: 0.9}), (0, PERSON, {3: 0.8})]
    matched, errors = explained(found, [(0, PERSON, [WALK, TALK])], num_classes=4)
    assert counts(errors) == {"wrong action": 2}
    assert dict(zip(matched.classes.tolist(), matched.true_classes[errors.repairs].tolist(), strict=True)) == {
        2: 0,
        3: 1,
    }
    assert costs(matched, errors) == {"wrong action": pytest.approx(1)}


PROTOCOLS = [
    FrameMapSettings("ava"),
    FrameMapSettings("pascal", 0.6),
    FrameMapSettings("act"),
    FrameMapSettings("ava", unlabelled_frames="ignore", max_rows_per_frame=3),
]


@pytest.mark.parametrize("settings", PROTOCOLS, ids=str)
@pytest.mark.parametrize("actions", [1, 3])
def test_repairing_everything_gives_100_percent_and_nothing_is_left_over(settings, actions):
    for seed in range(15):
        preds, targets = random_rows(seed, actions=actions)
        matched, _ = match_boxes(preds, targets, 12, 4, settings)
        errors = find_errors(matched)
        hits = matched.taken >= 0
        assert ((errors.kinds == Kind.HIT) == hits).all()
        assert np.isin(errors.kinds[~hits], BOX_KINDS[:5]).all()
        assert set(np.unique(errors.missed)) <= {0, *MISSED}
        # What is found, what a repair finds and what is missed are all true rows, each once.
        reached = np.concatenate(
            [matched.taken[hits], errors.repairs[errors.repairs >= 0], np.flatnonzero(errors.missed)]
        )
        assert sorted(reached.tolist()) == list(range(len(targets.owners)))
        scored = matched.true_counts > 0
        assert (after_repair(matched, errors, BOX_KINDS)[scored] == 1).all()
        assert np.isnan(after_repair(matched, errors, BOX_KINDS)[~scored]).all()


@pytest.mark.parametrize("settings", PROTOCOLS[:3], ids=str)
def test_the_ap_of_what_is_explained_is_that_of_the_metric(settings):
    for seed in range(5):
        preds, targets = random_rows(seed, actions=2)
        preds.scores[:] = np.round(preds.scores, 1)  # many ties
        matched, _ = match_boxes(preds, targets, 12, 4, settings)
        expected = average_precisions(preds, targets, 4, settings.iou_threshold, settings.protocol)
        assert matched.average_precisions().tolist() == pytest.approx(expected.tolist(), abs=0, nan_ok=True)


def test_the_costliest_errors_are_those_that_gain_most_alone():
    """Each error of a small problem is repaired by the repair of its kind, while all others pass as another kind."""
    preds, targets = random_rows(3, num_frames=8, actions=2)
    matched, _ = match_boxes(preds, targets, 8, 4, FrameMapSettings("pascal"))
    errors = find_errors(matched)
    before = matched.average_precisions()
    gains = []
    for row in np.flatnonzero(errors.kinds):
        kind = Kind(int(errors.kinds[row]))
        others = Kind.DUPLICATE if kind == Kind.BACKGROUND else Kind.BACKGROUND
        kinds = np.where(errors.kinds == Kind.HIT, Kind.HIT, others).astype(np.int8)
        kinds[row] = kind
        gains.append(np.nanmean(after_repair(matched, errors._replace(kinds=kinds), [kind]) - before))
    for row in np.flatnonzero(errors.missed):
        missed = np.zeros(len(errors.missed), np.int8)
        missed[row] = errors.missed[row]
        alone = after_repair(matched, errors._replace(missed=missed), [Kind(int(missed[row]))])
        gains.append(np.nanmean(alone - before))
    found = [error.cost for error in costliest(matched, errors, 20)]
    assert len(found) == 20 and found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(max(gains), abs=1e-12) and found[0] > 0
    assert all(min(abs(gain - cost) for gain in gains) < 1e-12 for cost in found)


# ---------------------------------------------------------------------------------------------------------------------
# TIDE itself: what it said of 50 problems lies beside this file, so that they are compared where it is not installed.

OURS = {
    "Cls": [Kind.WRONG_ACTION],
    "Loc": [Kind.MISPLACED],
    "Both": [Kind.BOTH],
    "Dupe": [Kind.DUPLICATE],
    "Bkg": [Kind.BACKGROUND],
    "Miss": list(MISSED),
}


@pytest.mark.parametrize("seed", range(PROBLEMS))
def test_counts_are_those_of_tide_on_boxes_with_one_action(seed):
    preds, targets = random_rows(seed)
    matched, _ = match_boxes(preds, targets, 12, 4, FrameMapSettings("act"))
    errors = find_errors(matched)
    ours = {name: sum(errors.count(kind) for kind in kinds) for name, kinds in OURS.items()}
    assert ours == json.loads(RECORD.read_text())[seed]
    assert sum(ours.values())


@pytest.mark.skipif(importlib.util.find_spec("tidecv") is None, reason="tidecv is not installed")
def test_the_record_is_what_tide_says_to_the_letter():
    assert RECORD.read_text() == record()
