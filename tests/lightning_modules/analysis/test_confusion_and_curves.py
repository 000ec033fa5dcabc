"""Confusion, curves, calibration and AP by property, worked out by hand and against other implementations."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_modules.analysis.confusion import confusion
from lightning_modules.analysis.curves import calibration, precision_recall, score_histogram
from lightning_modules.analysis.matched import match_boxes, match_segments, match_tubes
from lightning_modules.analysis.properties import (
    PeopleOfFrame,
    binned,
    box_properties,
    by_property,
    largest_overlaps,
    thirds,
)
from lightning_modules.metrics.frame_ap import FrameMapSettings
from lightning_modules.metrics.segment_map import SegmentRows
from lightning_modules.metrics.time_since_start import time_since_start
from lightning_modules.metrics.video_ap import tube_rows
from tests.lightning_modules.analysis.problems import SIT, TALK, WALK, explained, random_rows

PERSON, AWAY, FAR = (0, 0, 10, 10), (50, 50, 60, 60), (80, 0, 90, 10)


def test_confusion_of_people_with_one_action():
    """Two walkers, one said to sit more than to walk; a sitter whom no box overlaps."""
    found = [(0, PERSON, {WALK: 0.9, SIT: 0.2}), (0, AWAY, {WALK: 0.3, SIT: 0.6})]
    matched, _ = explained(found, [(0, PERSON, [WALK]), (0, AWAY, [WALK]), (0, FAR, [SIT])])
    assert confusion(matched).tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_confusion_of_somebody_who_does_two_things():
    """Walks and talks; "walk" and "sit" are said best: the talk was taken for sitting."""
    matched, _ = explained([(0, PERSON, {WALK: 0.9, SIT: 0.8, TALK: 0.1})], [(0, PERSON, [WALK, TALK])])
    assert confusion(matched).tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_of_two_boxes_on_somebody_the_better_scored_says_what_they_do():
    found = [(0, PERSON, {SIT: 0.5}), (0, (0, 1, 10, 11), {WALK: 0.9})]
    matched, _ = explained(found, [(0, PERSON, [WALK])])
    assert confusion(matched)[WALK].tolist() == [1, 0, 0, 0]


def test_of_a_segment_with_two_labels_both_are_found():
    rows = SegmentRows(np.zeros(2, np.int64), np.asarray([WALK, TALK]), np.asarray([[1.0, 2], [1, 2]]), np.ones(2))
    matched = match_segments(rows._replace(scores=np.asarray([0.9, 0.8])), rows, 3, 0.5)
    assert confusion(matched).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("protocol", ["act", "multisports"])
def test_of_a_tube_with_two_labels_both_are_found(protocol):
    boxes = np.tile(np.asarray(PERSON, float), (8, 1))
    rows = tube_rows(
        np.zeros(2, np.int64),
        np.asarray([WALK, TALK]),
        np.asarray([0.9, 0.8]),
        np.zeros(2, np.int64),
        np.full(2, 4),
        boxes,
    )
    matched, _ = match_tubes(rows, rows, 3, 0.5, protocol)
    assert confusion(matched).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("actions", [1, 3])
def test_lines_of_the_confusion_add_up_to_the_true_rows(actions):
    for seed in range(10):
        matched, _ = match_boxes(*random_rows(seed, actions=actions), 12, 4, FrameMapSettings("pascal"))
        result = confusion(matched)
        assert result.sum(axis=1).tolist() == pytest.approx(matched.true_counts.tolist())
        assert (result >= 0).all()


def test_the_curve_goes_through_precision_and_recall():
    """Hit, miss, hit of two."""
    found = [(0, PERSON, {WALK: 0.9}), (0, FAR, {WALK: 0.8}), (0, AWAY, {WALK: 0.7})]
    matched, _ = explained(found, [(0, PERSON, [WALK]), (0, AWAY, [WALK])])
    curve = precision_recall(matched, WALK)
    assert (curve.recall[0], curve.precision[0]) == (0.5, 1)
    assert (curve.recall[-1], curve.precision[-1]) == (1, pytest.approx(2 / 3))


def test_the_area_below_a_long_curve_is_close_to_the_average_precision():
    preds, targets = random_rows(0, num_frames=300)
    matched, _ = match_boxes(preds, targets, 300, 4, FrameMapSettings("act"))
    for index, expected in enumerate(matched.average_precisions()):
        curve = precision_recall(matched, index)
        assert len(curve.recall) <= 200
        area = np.trapezoid(np.r_[1, curve.precision], np.r_[0, curve.recall])
        assert area == pytest.approx(expected, abs=0.01)


def test_histograms_count_every_row():
    matched, _ = match_boxes(*random_rows(1), 12, 4, FrameMapSettings("pascal"))
    edges, hits, misses = score_histogram(matched)
    assert hits.sum() == (matched.taken >= 0).sum() and misses.sum() == (matched.taken < 0).sum()
    assert (edges[0], edges[-1]) == (0, 1)


def test_calibration_worked_out_by_hand():
    """Two rows of 0.8, one a hit: precision 0.5, gap 0.3; one of 0.35, no hit: gap 0.35; one of 0.05, no hit."""
    found = [
        (0, PERSON, {WALK: 0.8}),
        (0, FAR, {WALK: 0.8}),
        (0, FAR, {SIT: 0.35}),
        (0, FAR, {TALK: 0.05}),
    ]
    matched, _ = explained(found, [(0, PERSON, [WALK])])
    result = calibration(matched)
    assert result.counts.tolist() == [1, 0, 0, 1, 0, 0, 0, 0, 2, 0]
    assert result.error == pytest.approx((2 * 0.3 + 0.35 + 0.05) / 4)
    assert result.error_of_likely == pytest.approx((2 * 0.3 + 0.35) / 3)
    assert calibration(matched, WALK).error == pytest.approx(0.3)


def test_scores_that_are_no_probabilities_have_no_calibration():
    matched, _ = explained([(0, PERSON, {WALK: 3.0})], [(0, PERSON, [WALK])])
    assert calibration(matched) is None
    assert score_histogram(matched)[1].sum() == 1


@pytest.mark.parametrize("protocol", ["ava", "act"])
def test_ap_by_the_time_since_the_start_is_that_of_the_metric(protocol):
    settings = FrameMapSettings(protocol)
    for seed in range(5):
        preds, targets = random_rows(seed, actions=2)
        seconds = np.random.default_rng(seed).uniform(0, 2, len(targets.owners))
        expected = time_since_start(preds, targets, seconds, 4, settings)
        matched, _ = match_boxes(preds, targets, 12, 4, settings)
        found = by_property(matched, binned("time", seconds, (0.25, 0.5, 1.0), "s"))
        assert found.mean.tolist() == pytest.approx(expected.mean.tolist(), abs=0, nan_ok=True)
        assert found.counts.tolist() == expected.counts.sum(axis=1).tolist()
        assert found.property.labels == ("below 0.25 s", "0.25 to 0.5 s", "0.5 to 1 s", "1 s or more")


def test_true_rows_of_which_nothing_is_known_are_ignored():
    """The walker of unknown age is hit first, then a miss, then the other: of that bin miss, hit, each once: AP 1/2."""
    found = [(0, PERSON, {WALK: 0.9}), (0, FAR, {WALK: 0.8}), (0, AWAY, {WALK: 0.7})]
    matched, _ = explained(found, [(0, PERSON, [WALK]), (0, AWAY, [WALK])])
    result = by_property(matched, binned("time", np.asarray([np.nan, 0.1]), (0.5,)))
    assert result.counts.tolist() == [1, 0]
    assert result.mean.tolist() == pytest.approx([0.5, np.nan], nan_ok=True)


def test_thirds_of_equal_values_are_one_bin():
    assert thirds("size", np.full(5, 2.0)).labels == ("all",)
    parts = thirds("size", np.arange(9.0))
    assert np.bincount(parts.bins).tolist() == [3, 3, 3]
    assert thirds("size", np.zeros(0)).bins.tolist() == []


def test_properties_of_people_belong_to_their_rows():
    boxes = np.asarray([[0, 0, 50, 50], [25, 0, 75, 50], [90, 90, 100, 100]], float)
    assert largest_overlaps(boxes).tolist() == pytest.approx([1 / 3, 1 / 3, 0])
    one = PeopleOfFrame(boxes[:1], (100, 100), np.zeros(1), np.asarray([[0.1, np.nan]]), np.asarray([[2.0, np.nan]]))
    three = PeopleOfFrame(
        boxes,
        (100, 100),
        np.arange(3.0),
        np.asarray([[np.nan, 0.3], [0.6, np.nan], [np.nan, 3.0]]),
        np.asarray([[np.nan, 0.0], [0.3, np.nan], [np.nan, 0.1]]),
    )
    places = np.asarray([[0, 0, 0], [1, 0, 1], [1, 1, 0], [1, 2, 1]])
    found = {each.name: [each.labels[bin] for bin in each.bins] for each in box_properties([one, three], places)}
    assert found["people in the frame"] == ["1", *["3"] * 3]
    assert found["overlap with others"] == ["below 0.01 IoU", *["0.25 IoU or more"] * 2, "below 0.01 IoU"]
    assert found["time since the action's start"] == ["below 0.25 s", "0.25 to 0.5 s", "0.5 to 1 s", "1 s or more"]
    assert found["time until the action's end"] == ["1 s or more", "below 0.25 s", "0.25 to 0.5 s", "below 0.25 s"]
    assert found["share of the action seen"] == ["below 10 %", "90 % or more", "60 to 70 %", "90 % or more"]
    assert {*found} >= {"size of the person", "speed", "duration of the action"}
    assert "speed" not in {each.name for each in box_properties([one._replace(speeds=None), three], places)}
