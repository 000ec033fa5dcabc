"""Frame mAP against cases worked out by hand, a slow version of each protocol, and a published fixture."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from datamodules.sampling.samplers import STAND_IN, EveryOnce
from lightning_modules.metrics.frame_map import FrameMeanAveragePrecision

ROOT = Path(__file__).resolve().parents[2]
FIXTURE = Path(os.environ.get("ONLOOKER_DATA", "/work/shared/data")) / "mmaction2_fixtures/eval_detection"
PROTOCOLS = ("ava", "pascal", "act")


# ---------------------------------------------------------------------------------------------------------------------
# A slow version: one detection after the other, as the protocols are described.


def slow_iou(a, b, extra):
    width = min(a[2], b[2]) - max(a[0], b[0]) + extra
    height = min(a[3], b[3]) - max(a[1], b[1]) + extra
    inner = max(width, 0) * max(height, 0)
    union = (a[2] - a[0] + extra) * (a[3] - a[1] + extra) + (b[2] - b[0] + extra) * (b[3] - b[1] + extra) - inner
    return inner / union if union > 0 else 0.0


def slow_best(pred, cap):
    rows = zip(*(pred[key].tolist() for key in ("boxes", "scores", "labels")), strict=True)
    rows = sorted(rows, key=lambda row: (-row[1], row[2], row[0]))[:cap]
    return as_pred(*zip(*rows, strict=True)) if rows else as_pred([], [], [])


def slow_ap(preds, targets, label, threshold, protocol, ignore_unlabelled=False, cap=None):
    """AP of one class in plain Python, None without ground truth."""
    if cap is not None:
        preds = [slow_best(pred, cap) for pred in preds]
    rows, free, whole = [], {}, {}
    for frame, (pred, target) in enumerate(zip(preds, targets, strict=True)):
        truth = [
            box
            for box, other in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True)
            if other == label
        ]
        free[frame], whole[frame] = [True] * len(truth), truth
        if ignore_unlabelled and not len(target["labels"]):
            continue
        for box, score, other in zip(*(pred[key].tolist() for key in ("boxes", "scores", "labels")), strict=True):
            if other == label and not (protocol == "ava" and (box[0] >= box[2] or box[1] >= box[3])):
                rows.append((score, frame, box))
    total = sum(len(truth) for truth in whole.values())
    if not total:
        return None
    hits, turns = [], Counter()
    for score, frame, box in sorted(rows, key=lambda row: (-row[0], row[2])):
        overlaps = [slow_iou(box, truth, 1 if protocol == "act" else 0) for truth in whole[frame]]
        if protocol == "act":
            overlaps = [o if is_free else -1 for o, is_free in zip(overlaps, free[frame], strict=True)]
        best = max(range(len(overlaps)), key=overlaps.__getitem__, default=None)
        hit = best is not None and overlaps[best] >= threshold and free[frame][best]
        if hit:
            free[frame][best] = False
        # Frames of equal scores take turns, misses before hits.
        hits.append((-score, turns[score, frame], hit))
        turns[score, frame] += 1
    return slow_area([hit for *_, hit in sorted(hits)], total, protocol)


def slow_area(hits, total, protocol):
    points, true_positives = [], 0
    for rank, hit in enumerate(hits, start=1):
        true_positives += hit
        points.append((true_positives / total, true_positives / rank))
    area, recall, precision = 0.0, 0.0, 1.0
    for index, (next_recall, next_precision) in enumerate(points):
        height = (precision + next_precision) / 2 if protocol == "act" else max(p for _, p in points[index:])
        area += (next_recall - recall) * height
        recall, precision = next_recall, next_precision
    return area


def random_problem(seed, num_frames=25, num_classes=4, different_scores=None):
    """Crowded frames: perturbed ground truth several times over, clutter, some frames and classes empty.

    No two scores of a frame are alike unless there are only so many ``different_scores``.
    """
    generator = np.random.default_rng(seed)
    preds, targets = [], []
    for _ in range(num_frames):
        num_boxes = generator.integers(0, 5)
        corner = generator.uniform(0, 60, (num_boxes, 2))
        boxes = np.concatenate([corner, corner + generator.uniform(8, 40, (num_boxes, 2))], axis=1)
        labels = generator.integers(0, num_classes - 1, num_boxes)  # the last class has no ground truth
        near = np.repeat(boxes, 3, axis=0) + generator.normal(0, 4, (3 * num_boxes, 4))
        clutter = generator.uniform(0, 80, (generator.integers(0, 4), 4))  # half of them without positive area
        found = np.concatenate([near, clutter])
        found_labels = np.concatenate([np.repeat(labels, 3), generator.integers(0, num_classes, len(clutter))])
        swapped = generator.random(len(found)) < 0.2
        found_labels[swapped] = generator.integers(0, num_classes, swapped.sum())
        scores = generator.permutation(len(found)) / 97 + generator.random(len(found)) * 1e-3
        if different_scores is not None:
            scores = generator.integers(0, different_scores, len(found)) / different_scores
        preds.append(as_pred(found, scores, found_labels))
        targets.append(as_target(boxes, labels))
    return preds, targets


def as_pred(boxes, scores, labels):
    boxes = torch.as_tensor(np.asarray(boxes, dtype=np.float64)).reshape(-1, 4)
    return {
        "boxes": boxes,
        "scores": torch.as_tensor(np.asarray(scores, dtype=np.float64)),
        "labels": as_labels(labels),
    }


def as_target(boxes, labels):
    return {"boxes": torch.as_tensor(np.asarray(boxes, dtype=np.float64)).reshape(-1, 4), "labels": as_labels(labels)}


def as_labels(labels):
    return torch.as_tensor(np.asarray(labels, dtype=np.int64))


def measured(preds, targets, num_classes=1, **options):
    metric = FrameMeanAveragePrecision(num_classes, **options)
    metric.update(preds, targets)
    return metric.compute()


def value(preds, targets, num_classes=1, **options):
    return measured(preds, targets, num_classes, **options)["map"].item()


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.75])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_the_slow_version(seed, protocol, threshold):
    preds, targets = random_problem(seed)
    result = measured(preds, targets, 4, protocol=protocol, iou_threshold=threshold)
    expected = [slow_ap(preds, targets, label, threshold, protocol) for label in range(4)]
    assert expected[3] is None and result["map_per_class"][3].isnan()
    assert result["map_per_class"][:3].tolist() == pytest.approx(expected[:3], abs=1e-12)
    assert result["map"].item() == pytest.approx(np.mean(expected[:3]), abs=1e-12)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ignoring_unlabelled_frames_agrees_with_the_slow_version(protocol):
    preds, targets = random_problem(7)
    result = measured(preds, targets, 4, protocol=protocol, unlabelled_frames="ignore")
    expected = [slow_ap(preds, targets, label, 0.5, protocol, ignore_unlabelled=True) for label in range(3)]
    assert result["map_per_class"][:3].tolist() == pytest.approx(expected, abs=1e-12)
    assert result["num_frames"] == sum(len(target["labels"]) > 0 for target in targets) < len(targets)


def value_of_the_challenge_script(true_rows, found_rows, scored, cap=50):
    """The steps of the ActivityNet script, on rows (frame, box, class) and (frame, box, class, score).

    Frames count by any row of the ground truth. Then rows of classes that are not scored go, on both sides, and all
    but the best 50 detections of a frame.
    """
    annotated = {frame for frame, *_ in true_rows}
    truth = [row for row in true_rows if row[2] in scored]
    found = [row for row in found_rows if row[2] in scored and row[0] in annotated]
    best = [row for f in annotated for row in sorted((r for r in found if r[0] == f), key=lambda r: -r[3])[:cap]]
    values = []
    for action in {row[2] for row in truth}:
        boxes = [(frame, box) for frame, box, label in truth if label == action]
        free, hits = set(range(len(boxes))), []
        for frame, box, *_ in sorted((row for row in best if row[2] == action), key=lambda row: -row[3]):
            overlaps = {i: slow_iou(box, b, 0) for i, (f, b) in enumerate(boxes) if f == frame}
            place = max(overlaps, key=overlaps.get, default=None)
            hits.append(place in free and overlaps[place] >= 0.5)
            free -= {place} if hits[-1] else set()
        values.append(slow_area(hits, len(boxes), "ava"))
    return np.mean(values)


@pytest.mark.parametrize("class_ids", [(0, 1), (1, 2), (2,), (0, 1, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_ignoring_unlabelled_frames_gives_the_value_of_the_challenge_script(seed, class_ids):
    preds, targets = random_problem(seed)
    preds = [  # without what the script drops before it counts rows
        {name: column[(pred["boxes"][:, 2:] > pred["boxes"][:, :2]).all(1)] for name, column in pred.items()}
        for pred in preds
    ]
    true_rows = [
        (frame, *row)
        for frame, target in enumerate(targets)
        for row in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True)
    ]
    found_rows = [
        (frame, *row)
        for frame, pred in enumerate(preds)
        for row in zip(*(pred[name].tolist() for name in ("boxes", "labels", "scores")), strict=True)
    ]
    expected = value_of_the_challenge_script(true_rows, found_rows, set(class_ids))
    options = {"class_ids": class_ids, "unlabelled_frames": "ignore", "max_rows_per_frame": 50}
    result = measured(preds, targets, 4, **options)
    assert float(result["map"]) == pytest.approx(expected, abs=1e-12)
    assert result["num_frames"] == len({frame for frame, *_ in true_rows})
    if class_ids == (2,):  # here the frames of other classes make a difference, so the test can tell
        only_scored = [row for row in true_rows if row[2] in class_ids]
        assert value_of_the_challenge_script(only_scored, found_rows, set(class_ids)) > expected


def test_a_frame_that_shows_only_classes_that_are_not_scored_counts_as_annotated():
    preds = [as_pred([SQUARE], [0.5], [0]), as_pred([SQUARE], [0.9], [0]), as_pred([SQUARE], [0.8], [0])]
    targets = [as_target([SQUARE], [0]), as_target([SQUARE], [1]), as_target([], [])]
    options = {"class_ids": [0], "unlabelled_frames": "ignore"}
    assert value(preds, targets, 2, **options) == 0.5  # a miss at 0.9 before the hit at 0.5
    assert measured(preds, targets, 2, **options)["num_frames"] == 2
    in_parts = FrameMeanAveragePrecision(2, **options)
    for pred, target in zip(preds, targets, strict=True):
        in_parts.update([pred], [target])
    assert in_parts.compute()["map"] == 0.5


@pytest.mark.parametrize("cap", [None, 3, 7])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("different_scores", [1, 3, 20])
def test_tied_scores_agree_with_the_slow_version(different_scores, protocol, cap):
    preds, targets = random_problem(different_scores, different_scores=different_scores)
    result = measured(preds, targets, 4, protocol=protocol, max_rows_per_frame=cap)
    expected = [slow_ap(preds, targets, label, 0.5, protocol, cap=cap) for label in range(3)]
    assert result["map_per_class"][:3].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("unlabelled_frames", ["false_positives", "ignore"])
@pytest.mark.parametrize("cap", [None, 5])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("different_scores", [None, 3])
def test_the_order_of_frames_and_rows_changes_nothing(different_scores, protocol, cap, unlabelled_frames):
    preds, targets = random_problem(11, different_scores=different_scores)
    generator = torch.Generator().manual_seed(0)
    options = {"protocol": protocol, "max_rows_per_frame": cap, "unlabelled_frames": unlabelled_frames}
    expected = value(preds, targets, 4, **options)
    for _ in range(3):
        shuffled = []
        for frame in (*preds, *targets):
            order = torch.randperm(len(frame["labels"]), generator=generator)
            shuffled.append({key: column[order] for key, column in frame.items()})
        order = torch.randperm(len(preds), generator=generator).tolist()
        again = value([shuffled[i] for i in order], [shuffled[len(preds) + i] for i in order], 4, **options)
        assert again == expected


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("seed", range(6))
def test_tied_scores_stay_within_what_the_orders_of_the_references_give(seed, protocol):
    """Six detections of two frames, all scored alike, matched in each of the 720 orders."""
    generator = np.random.default_rng(seed)
    preds, targets = [], []
    for _ in range(2):
        boxes = np.array([[0, 0, 20, 20], [0, 6, 20, 26]]) + generator.integers(-2, 3, (2, 4))
        near = boxes[[0, 0, 1]] + generator.integers(-3, 4, (3, 4))
        preds.append(as_pred(near, [0.5] * 3, [0] * 3))
        targets.append(as_target(boxes, [0, 0]))
    rows = [(frame, box) for frame, pred in enumerate(preds) for box in pred["boxes"].tolist()]
    areas = set()
    for order in permutations(rows):
        # Scores that fall make the order plain.
        frames = [[] for _ in preds]
        for place, (frame, box) in enumerate(order):
            frames[frame].append((box, 1 - place / 10))
        ordered = [as_pred(*zip(*found, strict=True), [0] * 3) for found in frames]
        areas.add(slow_ap(ordered, targets, 0, 0.5, protocol))
    assert min(areas) - 1e-12 <= value(preds, targets, protocol=protocol) <= max(areas) + 1e-12


@pytest.mark.parametrize("class_ids", [None, (2, 0)])
@pytest.mark.parametrize("cap", [None, 4])
def test_scores_of_all_classes_are_the_same_as_a_row_for_each(class_ids, cap):
    generator = torch.Generator().manual_seed(0)
    _, targets = random_problem(4)
    whole, rows = [], []
    for target in targets:
        boxes = target["boxes"].repeat(2, 1)
        boxes = boxes + 3 * torch.randn(len(boxes), 4, generator=generator).double()
        scores = torch.rand(len(boxes), 4, generator=generator)
        whole.append({"boxes": boxes, "scores": scores})
        rows.append(
            {
                "boxes": boxes.repeat_interleave(4, dim=0),
                "scores": scores.flatten(),
                "labels": torch.arange(4).repeat(len(boxes)),
            }
        )
    options = {"class_ids": class_ids, "max_rows_per_frame": cap}
    first, second = (measured(preds, targets, 4, **options) for preds in (whole, rows))
    assert first["map"] == second["map"] > 0
    torch.testing.assert_close(first["map_per_class"], second["map_per_class"], rtol=0, atol=0, equal_nan=True)
    # Some frames one way, some the other.
    mixed = [pair[index % 2] for index, pair in enumerate(zip(whole, rows, strict=True))]
    assert measured(mixed, targets, 4, **options)["map"] == first["map"]


def test_mmaction2_fixture_is_reproduced():
    if not FIXTURE.is_dir():
        pytest.skip(f"{FIXTURE} is not here")
    frames: dict[str, tuple[list, list]] = defaultdict(lambda: ([], []))
    for side, name in enumerate(("pred.csv", "gt.csv")):
        with open(FIXTURE / name, newline="") as lines:
            for row in csv.reader(lines):
                frames[f"{row[0]},{row[1]}"][side].append([float(cell) for cell in row[2:]])
    preds = [as_pred(rows[:, :4], rows[:, 5], rows[:, 4]) for rows in (np.array(pred) for pred, _ in frames.values())]
    targets = [as_target(rows[:, :4], rows[:, 4]) for rows in (np.array(target) for _, target in frames.values())]
    result = measured(preds, targets, 3, class_ids=(1, 2, 3))
    assert result["map"].item() == pytest.approx(0.09385522, abs=5e-9)
    assert result["num_boxes"] == 12 and result["num_frames"] == 3


# ---------------------------------------------------------------------------------------------------------------------
# Rules, one by one.

SQUARE = [0, 0, 10, 10]
FAR = [50, 50, 60, 60]


def test_a_false_positive_above_the_hit_halves_the_precision():
    preds = [as_pred([FAR, SQUARE], [0.9, 0.8], [0, 0])]
    targets = [as_target([SQUARE], [0])]
    assert value(preds, targets) == 0.5
    # From (recall 0, precision 1) down to (0, 0) at no gain, then up to (1, 1/2): one trapezoid of mean height 1/4.
    assert value(preds, targets, protocol="act") == 0.25


def test_the_envelope_lifts_precision_from_the_right():
    preds = [as_pred([SQUARE, FAR, [20, 0, 30, 10], [0, 20, 10, 30]], [0.9, 0.8, 0.7, 0.6], [0] * 4)]
    targets = [as_target([SQUARE, [20, 0, 30, 10], [0, 20, 10, 30]], [0] * 3)]
    # Precisions 1, 1/2, 2/3, 3/4; the second hit counts with the 3/4 that recall can still be bought at.
    assert value(preds, targets) == pytest.approx((1 + 3 / 4 + 3 / 4) / 3)
    trapezoids = ((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2 + (2 / 3 + 3 / 4) / 2) / 3
    assert value(preds, targets, protocol="act") == pytest.approx(trapezoids)


@pytest.mark.parametrize("protocol", ["ava", "pascal"])
def test_overlap_of_exactly_the_threshold_is_a_hit(protocol):
    half = [0, 0, 10, 5]
    assert value([as_pred([half], [1.0], [0])], [as_target([SQUARE], [0])], protocol=protocol) == 1
    assert value([as_pred([half], [1.0], [0])], [as_target([SQUARE], [0])], protocol=protocol, iou_threshold=0.51) == 0


def test_act_counts_one_more_pixel():
    target = [as_target([[0, 0, 9, 9]], [0])]  # ten pixels, of which the detection covers five rows
    assert value([as_pred([[0, 0, 9, 4]], [1.0], [0])], target, protocol="act") == 1
    assert value([as_pred([[0, 0, 9, 4]], [1.0], [0])], target, protocol="pascal") == 0


def test_a_second_detection_falls_back_only_under_act():
    # Both look at the first box best; the second overlaps the other, free one by 88/112 as well.
    targets = [as_target([[0, 0, 100, 100], [0, 20, 100, 120]], [0, 0])]
    preds = [as_pred([[0, 0, 100, 100], [0, 8, 100, 108]], [0.9, 0.8], [0, 0])]
    for protocol in ("ava", "pascal"):
        assert value(preds, targets, protocol=protocol) == 0.5
    assert value(preds, targets, protocol="act") == 1


def test_detections_without_area_are_dropped_under_ava_alone():
    preds = [as_pred([[5, 5, 5, 9], [9, 9, 3, 3], SQUARE], [0.9, 0.8, 0.7], [0] * 3)]
    targets = [as_target([SQUARE], [0])]
    assert value(preds, targets, protocol="ava") == 1
    assert value(preds, targets, protocol="pascal") == pytest.approx(1 / 3)


def test_class_without_ground_truth_is_left_out_and_class_without_detection_is_zero():
    preds = [as_pred([SQUARE, FAR], [0.9, 0.9], [0, 2])]
    targets = [as_target([SQUARE, SQUARE], [0, 1])]
    result = measured(preds, targets, 3)
    assert result["map"] == 0.5
    assert result["map_per_class"][:2].tolist() == [1, 0] and result["map_per_class"][2].isnan()
    assert result["explanation"] == ""


def test_detections_on_unlabelled_frames_count_or_not_as_asked():
    preds = [as_pred([SQUARE], [0.9], [0]), as_pred([SQUARE], [0.8], [0])]
    targets = [as_target([], []), as_target([SQUARE], [0])]
    assert value(preds, targets) == 0.5
    assert value(preds, targets, unlabelled_frames="ignore") == 1


def test_cap_keeps_the_best_rows_of_a_frame_over_all_classes():
    preds = [as_pred([SQUARE, FAR, SQUARE], [0.3, 0.9, 0.6], [0, 1, 1]), as_pred([SQUARE], [0.1], [0])]
    targets = [as_target([SQUARE, SQUARE], [0, 1]), as_target([SQUARE], [0])]
    result = measured(preds, targets, 2, max_rows_per_frame=2)
    assert result["map_per_class"].tolist() == [0.5, 0.5]  # class 0 lost its row of the first frame


def test_rows_of_unlisted_ids_are_dropped_on_both_sides_and_before_the_cap():
    preds = [as_pred([FAR, SQUARE], [0.9, 0.5], [13, 80])]
    targets = [as_target([SQUARE, SQUARE], [80, 13])]
    result = measured(preds, targets, 80, class_ids=(80, 1), max_rows_per_frame=1)
    assert dict(zip(result["classes"].tolist(), result["map_per_class"].tolist(), strict=True))[80] == 1
    assert result["map"] == 1 and result["num_boxes"] == 1


def test_tied_detections_of_a_frame_come_in_the_order_of_their_corners():
    for square, expected in ((SQUARE, 1), ([60, 0, 70, 10], 0.5)):  # left of FAR, right of it
        for boxes in ([square, FAR], [FAR, square]):
            assert value([as_pred(boxes, [0.5, 0.5], [0, 0])], [as_target([square], [0])]) == expected


def test_frames_of_tied_detections_take_turns_and_misses_come_first():
    targets = [as_target([SQUARE], [0]), as_target([FAR], [0])]
    preds = [as_pred([SQUARE, FAR], [0.5, 0.5], [0, 0])] * 2
    # First turn: the second frame misses, the first hits (1/2). Second turn: the first misses, the second hits (2/4).
    assert value(preds, targets) == 0.5
    trapezoids = ((0 + 1 / 2) / 2 + (1 / 3 + 2 / 4) / 2) / 2
    assert value(preds, targets, protocol="act") == pytest.approx(trapezoids)


def test_a_detector_that_always_says_the_same_is_not_credited_with_luck():
    preds = [as_pred([SQUARE], [0.5], [0])] * 10
    targets = [as_target([SQUARE if frame < 2 else FAR], [0]) for frame in range(10)]
    assert value(preds, targets) == pytest.approx(2 / 10 * 2 / 10)


def test_identical_detections_of_a_frame_are_a_hit_and_a_false_positive_behind_it():
    assert value([as_pred([SQUARE, SQUARE], [0.5, 0.5], [0, 0])], [as_target([SQUARE], [0])]) == 1


def test_a_box_annotated_twice_needs_two_detections_under_act_and_cannot_have_them_otherwise():
    preds, targets = [as_pred([SQUARE, SQUARE], [0.9, 0.8], [0, 0])], [as_target([SQUARE, SQUARE], [0, 0])]
    assert [value(preds, targets, protocol=protocol) for protocol in PROTOCOLS] == [0.5, 0.5, 1]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_empty_sides_on_every_level(protocol):
    nothing = as_pred([], [], [])
    assert value([nothing], [as_target([SQUARE], [0])], protocol=protocol) == 0
    assert np.isnan(value([as_pred([SQUARE], [0.5], [0])], [as_target([], [])], protocol=protocol))
    assert np.isnan(value([nothing], [as_target([], [])], protocol=protocol))
    assert np.isnan(value([], [], protocol=protocol))
    flat = {"boxes": torch.zeros(0), "scores": torch.zeros(0), "labels": torch.zeros(0)}  # what torch.tensor([]) gives
    assert value([flat, as_pred([SQUARE], [0.5], [0])], [as_target([], []), as_target([SQUARE], [0])]) == 1


@pytest.mark.parametrize(
    ("pred", "words"),
    [
        (as_pred([], [], []), "no detection"),
        (as_pred([SQUARE], [0.9], [1]), "class never predicted"),
        (as_pred([[0, 0, 0.1, 0.1]], [0.9], [0]), "the largest is 0.000; detections reach up to 0.1"),
        (as_pred([SQUARE, FAR], [0.9, 0.9], [1, 0]), "within a class"),
    ],
)
def test_a_zero_is_explained(pred, words):
    result = measured([pred], [as_target([SQUARE], [0])], 2)
    assert result["map"] == 0 and words in result["explanation"]


def test_no_ground_truth_is_explained():
    assert "no ground truth" in measured([as_pred([SQUARE], [1], [0])], [as_target([], [])])["explanation"]


# ---------------------------------------------------------------------------------------------------------------------
# Errors.


def test_wrong_arguments_are_refused():
    for options in ({"protocol": "coco"}, {"iou_threshold": 0}, {"max_rows_per_frame": 0}, {"class_ids": (1, 1)}):
        with pytest.raises(ValueError, match=next(iter(options))):
            FrameMeanAveragePrecision(2, **options)
    with pytest.raises(ValueError, match="unlabelled_frames"):
        FrameMeanAveragePrecision(2, unlabelled_frames="drop")


def test_wrong_updates_are_refused_and_leave_no_trace():
    metric = FrameMeanAveragePrecision(2)
    good = as_target([SQUARE], [0])
    with pytest.raises(ValueError, match="2 to 2 but num_classes=2"):
        metric.update([as_pred([SQUARE], [0.5], [2])], [good])
    with pytest.raises(ValueError, match="infinite scores"):
        metric.update([as_pred([SQUARE], [float("nan")], [0])], [good])
    with pytest.raises(ValueError, match="1 frames but targets has 2"):
        metric.update([as_pred([SQUARE], [0.5], [0])], [good, good])
    with pytest.raises(ValueError, match="different lengths"):
        metric.update([as_pred([SQUARE], [0.5, 0.4], [0])], [good])
    with pytest.raises(TypeError, match="must be integers"):
        metric.update([{**as_pred([SQUARE], [0.5], [0]), "labels": torch.ones(1)}], [good])
    with pytest.raises(ValueError, match="no \\['scores'\\]"):
        metric.update([good], [good])
    whole = {"boxes": torch.zeros(1, 4), "scores": torch.zeros(1, 3)}
    with pytest.raises(ValueError, match="3 columns but num_classes=2"):
        metric.update([whole], [good])
    with pytest.raises(ValueError, match="different lengths"):
        metric.update([{**whole, "boxes": torch.zeros(2, 4)}], [good])
    with pytest.raises(ValueError, match="class_ids run from 1 to 3; pass labels"):
        FrameMeanAveragePrecision(3, class_ids=(1, 2, 3)).update([whole], [good])
    assert metric.compute()["num_frames"] == 0


def test_act_refuses_relative_boxes():
    with pytest.raises(ValueError, match="relative"):
        value([as_pred([[0, 0, 1, 1]], [0.5], [0])], [as_target([[0, 0, 1, 1]], [0])], protocol="act")


# ---------------------------------------------------------------------------------------------------------------------
# Accumulation, ranks, speed.


def test_many_updates_equal_one_and_reset_forgets():
    preds, targets = random_problem(3)
    metric = FrameMeanAveragePrecision(4)
    for start in range(0, len(preds), 4):
        metric.update(preds[start : start + 4], targets[start : start + 4])
    expected = value(preds, targets, 4)
    assert metric.compute()["map"].item() == expected
    metric.reset()
    assert metric.compute()["num_frames"] == 0
    metric(preds, targets)
    assert metric.compute()["map"].item() == expected


def test_a_module_cast_to_half_precision_keeps_boxes_exact():
    metric = FrameMeanAveragePrecision(1)
    torch.nn.ModuleList([metric]).to(torch.bfloat16)
    assert metric.compute()["num_frames"] == 0
    metric.update([as_pred([[0, 0, 1001, 1000]], [0.9], [0])], [as_target([[0, 0, 2002, 1000]], [0])])
    assert metric.compute()["map"] == 1  # an IoU of exactly 0.5, which bfloat16 would miss


def test_merged_ranks_keep_their_frames_apart():
    preds, targets = random_problem(5)
    first, second = FrameMeanAveragePrecision(4), FrameMeanAveragePrecision(4)
    first.update(preds[:9], targets[:9])
    second.update(preds[9:], targets[9:])
    first.merge_state(second)
    result = first.compute()
    assert result["num_frames"] == len(preds)
    assert result["map"].item() == pytest.approx(value(preds, targets, 4), abs=1e-12)


def one_rank(rank, folder, shares):
    torch.set_num_threads(1)  # the parent's thread pool does not survive the fork
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    preds, targets = random_problem(5, different_scores=5)
    for number, batches in enumerate(shares[rank]):
        metric = FrameMeanAveragePrecision(4)
        for batch in batches:
            metric.update([preds[frame] for frame in batch], [targets[frame] for frame in batch])
        result = metric.compute()
        torch.save((result["map"].item(), int(result["num_frames"])), f"{folder}/{rank}.{number}")
    torch.distributed.destroy_process_group()


def test_two_processes_compute_what_one_does(tmp_path):
    # In two pieces; everything on rank 0 while rank 1 has seen no frame at all; as the sampler of clips shares out an
    # odd number of them.
    shares = [[[range(9)], [range(25)]], [[range(9, 25)], []]]
    for rank in range(2):
        batches = EveryOnce(np.zeros(25, np.int64), 4, rank, 2).batches
        shares[rank].append([batch for batch in batches if batch != [STAND_IN]])
    mp.start_processes(one_rank, args=(str(tmp_path), shares), nprocs=2, start_method="fork")
    expected = value(*random_problem(5, different_scores=5), 4)
    for rank in range(2):
        for number in range(3):
            result, num_frames = torch.load(tmp_path / f"{rank}.{number}")
            assert num_frames == 25 and result == expected  # although most scores are tied


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["ava", "act"])
def test_a_million_rows_take_seconds(protocol):
    generator = np.random.default_rng(0)
    num_frames, per_frame = 10_000, 100
    corner = generator.uniform(0, 100, (num_frames * 5, 2))
    truth = np.concatenate([corner, corner + 50], axis=1)
    found = np.repeat(truth, 20, axis=0) + generator.normal(0, 8, (num_frames * per_frame, 4))
    labels = np.repeat(generator.integers(0, 60, num_frames * 5), 20)
    pred, target = as_pred(found, generator.random(len(found)), labels), as_target(truth, labels[::20])
    preds = [
        dict(zip(pred, rows, strict=True)) for rows in zip(*(c.split(per_frame) for c in pred.values()), strict=True)
    ]
    targets = [
        dict(zip(target, rows, strict=True)) for rows in zip(*(c.split(5) for c in target.values()), strict=True)
    ]
    metric = FrameMeanAveragePrecision(60, protocol=protocol)
    metric.update(preds, targets)
    begin = time.process_time()
    assert 0 < metric.compute()["map"] < 1
    assert time.process_time() - begin < 10


@pytest.mark.slow
def test_rows_of_ava_size_stay_small_in_memory():
    """A twentieth of AVA's validation set; at 17 million rows these bytes a row are 4 GiB less the libraries' own."""
    command = [sys.executable, "-m", "results.benchmarks.frame_map", "--keyframes", "2850"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["rows"] == 2850 * 5 * 60 and 0 < found["map"] < 1
    assert 17.1e6 * found["bytes_a_row"] < 3 * 2**30
    assert 20 * found["cpu_seconds"] < 120


def test_what_a_number_is_called_names_all_that_is_not_default():
    assert FrameMeanAveragePrecision(80).description == "ava frame mAP@0.5"
    options = {"protocol": "act", "iou_threshold": 0.75, "unlabelled_frames": "ignore", "max_rows_per_frame": 50}
    named = FrameMeanAveragePrecision(80, class_ids=range(1, 61), **options).description
    assert named == "act frame mAP@0.75, labelled frames only, best 50 rows a frame, 60 of 80 classes"
