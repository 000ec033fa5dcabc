"""Segment mAP against cases worked out by hand, a slow version of the protocol, and a published fixture."""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from lightning_modules.metrics.segment_map import SegmentMeanAveragePrecision
from lightning_modules.metrics.segment_results import read_results

FIXTURE = Path(os.environ.get("ONLOOKER_DATA", "/work/shared/data")) / "mmaction2_fixtures/eval_localization"
THUMOS = (0.3, 0.4, 0.5, 0.6, 0.7)
ACTIVITYNET = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))


# ---------------------------------------------------------------------------------------------------------------------
# A slow version: one detection after the other, as the protocol is described.


def slow_tiou(a, b):
    inner = max(min(a[1], b[1]) - max(a[0], b[0]), 0)
    union = (a[1] - a[0]) + (b[1] - b[0]) - inner
    return inner / union if union > 0 else 0.0


def slow_truth(target, label):
    """Segments of one video and class without repetitions."""
    kept = []
    for segment, other in zip(target["segments"].tolist(), target["labels"].tolist(), strict=True):
        repeated = any(abs(segment[0] - k[0]) <= 1e-3 and abs(segment[1] - k[1]) <= 1e-3 for k in kept)
        if other == label and segment[1] - segment[0] >= 1e-3 and not repeated:
            kept.append(segment)
    return kept


def slow_ap(preds, targets, label, threshold, ranking=None):
    """AP of one class in plain Python, None without ground truth; ``ranking`` orders rows (score, video, segment)."""
    rows = []
    for video, pred in enumerate(preds):
        for segment, score, other in zip(
            *(pred[key].tolist() for key in ("segments", "scores", "labels")), strict=True
        ):
            if other == label:
                rows.append((score, video, segment))
    truth = [slow_truth(target, label) for target in targets]
    total = sum(map(len, truth))
    if not total:
        return None
    taken = [[False] * len(segments) for segments in truth]
    hits = []
    for _, video, segment in ranking(rows) if ranking else sorted(rows, key=lambda row: -row[0]):
        overlaps = [slow_tiou(segment, other) for other in truth[video]]
        hit = False
        for best in sorted(range(len(overlaps)), key=lambda index: -overlaps[index]):
            if overlaps[best] < threshold:
                break
            if not taken[video][best]:
                taken[video][best] = hit = True
                break
        hits.append(hit)
    area, found = 0.0, 0
    points = []
    for rank, hit in enumerate(hits, start=1):
        found += hit
        points.append((found / total, found / rank))
    recall = 0.0
    for index, (next_recall, _) in enumerate(points):
        area += (next_recall - recall) * max(precision for _, precision in points[index:])
        recall = next_recall
    return area


def random_problem(seed, num_videos=12, num_classes=4):
    """Crowded videos: perturbed ground truth several times over, clutter, some videos and one class empty."""
    generator = np.random.default_rng(seed)
    preds, targets = [], []
    for _ in range(num_videos):
        count = generator.integers(0, 6)
        start = generator.uniform(0, 30, count)
        segments = np.stack([start, start + generator.uniform(2, 12, count)], axis=1)
        labels = generator.integers(0, num_classes - 1, count)  # the last class has no ground truth
        near = np.repeat(segments, 3, axis=0) + generator.normal(0, 1.5, (3 * count, 2))
        clutter = generator.uniform(0, 40, (generator.integers(0, 4), 2))  # half of them end before they start
        found = np.concatenate([near, clutter])
        found_labels = np.concatenate([np.repeat(labels, 3), generator.integers(0, num_classes, len(clutter))])
        swapped = generator.random(len(found)) < 0.2
        found_labels[swapped] = generator.integers(0, num_classes, swapped.sum())
        preds.append(as_pred(found, generator.random(len(found)), found_labels))
        twice = generator.random(count) < 0.2
        targets.append(as_target(np.r_[segments, segments[twice] + 5e-4], np.r_[labels, labels[twice]]))
    return preds, targets


def as_pred(segments, scores, labels):
    return as_target(segments, labels) | {"scores": torch.as_tensor(np.asarray(scores, dtype=np.float64))}


def as_target(segments, labels):
    segments = torch.as_tensor(np.asarray(segments, dtype=np.float64)).reshape(-1, 2)
    return {"segments": segments, "labels": torch.as_tensor(np.asarray(labels, dtype=np.int64))}


def measured(preds, targets, num_classes=1, thresholds=(0.5,)):
    metric = SegmentMeanAveragePrecision(num_classes, thresholds)
    metric.update(preds, targets)
    return metric.compute()


def value(preds, targets, num_classes=1, thresholds=(0.5,)):
    return measured(preds, targets, num_classes, thresholds)["map"].item()


@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_the_slow_version(seed):
    preds, targets = random_problem(seed)
    result = measured(preds, targets, 4, THUMOS)
    expected = np.array([[slow_ap(preds, targets, label, t) for label in range(3)] for t in THUMOS])
    assert 0.05 < expected.mean() < 0.95
    assert slow_ap(preds, targets, 3, 0.5) is None and result["map_per_class"][3].isnan()
    assert result["map_per_threshold"].tolist() == pytest.approx(expected.mean(axis=1), abs=1e-12)
    assert result["map_per_class"][:3].tolist() == pytest.approx(expected.mean(axis=0), abs=1e-12)
    assert result["map"].item() == pytest.approx(expected.mean(), abs=1e-12)
    assert result["num_segments"] == sum(len(slow_truth(target, label)) for target in targets for label in range(3))
    assert result["num_videos"] == len(targets) and result["classes"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("decimals", [6, 1])
def test_order_of_videos_and_rows_does_not_matter_even_where_scores_are_tied(decimals):
    preds, targets = random_problem(11)
    preds = [pred | {"scores": pred["scores"].round(decimals=decimals)} for pred in preds]
    assert (len(torch.cat([pred["scores"] for pred in preds]).unique()) <= 11) == (decimals == 1)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(preds), generator=generator).tolist()

    def shuffled(video, key):
        rows = torch.randperm(len(video["labels"]), generator=generator) if key else slice(None)
        return {name: column[rows] for name, column in video.items()}

    again = [shuffled(preds[i], True) for i in order], [shuffled(targets[i], False) for i in order]
    first, second = (measured(*problem, 4, THUMOS) for problem in ((preds, targets), again))
    torch.testing.assert_close(second["map_per_class"], first["map_per_class"], rtol=0, atol=1e-12, equal_nan=True)


def test_tied_scores_stay_within_what_their_orders_allow():
    rows = [([0, 10], 0), ([0, 6], 0), ([40, 50], 0), ([0, 10], 1), ([20, 30], 1)]
    preds = [
        as_pred(
            [s for s, v in rows if v == video],
            [0.5] * sum(v == video for _, v in rows),
            [0] * sum(v == video for _, v in rows),
        )
        for video in (0, 1)
    ]
    targets = [as_target([[0, 10], [0, 7]], [0, 0]), as_target([[0, 10]], [0])]
    allowed = [
        slow_ap(preds, targets, 0, 0.5, ranking=lambda _, order=order: order)
        for order in itertools.permutations([(0.5, v, s) for s, v in rows])
    ]
    assert min(allowed) <= value(preds, targets) <= max(allowed) and min(allowed) < max(allowed)


@pytest.mark.skipif(not FIXTURE.is_dir(), reason=f"{FIXTURE} is not here")
def test_mmaction2_fixture_is_reproduced():
    truth = json.loads((FIXTURE / "gt.json").read_text())
    names = sorted({row["label"] for video in truth.values() for row in video["annotations"]})
    found = read_results(FIXTURE / "result.json", names)
    assert {f"v_{name}" for name in found} == truth.keys()
    targets = [
        as_target(
            [row["segment"] for row in truth[f"v_{name}"]["annotations"]],
            [names.index(row["label"]) for row in truth[f"v_{name}"]["annotations"]],
        )
        for name in found
    ]
    result = measured(list(found.values()), targets, len(names), ACTIVITYNET)
    assert result["map"].item() == pytest.approx(0.6177579365, abs=5e-11)
    assert result["map_per_threshold"][[0, -1]].tolist() == pytest.approx([0.71428571, 0.5], abs=5e-9)


# ---------------------------------------------------------------------------------------------------------------------
# Rules, one by one.

JUMP = [10, 20]
FAR = [50, 60]


def test_a_false_positive_above_the_hit_halves_the_precision():
    assert value([as_pred([FAR, JUMP], [0.9, 0.8], [0, 0])], [as_target([JUMP], [0])]) == 0.5


def test_the_envelope_lifts_precision_from_the_right():
    preds = [as_pred([JUMP, FAR, [21, 30], [31, 40]], [0.9, 0.8, 0.7, 0.6], [0] * 4)]
    targets = [as_target([JUMP, [21, 30], [31, 40]], [0] * 3)]
    # Precisions 1, 1/2, 2/3, 3/4; the second hit counts with the 3/4 that recall can still be bought at.
    assert value(preds, targets) == pytest.approx((1 + 3 / 4 + 3 / 4) / 3)


def test_overlap_is_of_continuous_time_and_exactly_the_threshold_is_a_hit():
    half = [as_pred([[10, 15]], [1.0], [0])]  # 5 s of 10 s; with one frame more it would be over
    assert value(half, [as_target([JUMP], [0])], thresholds=(0.5,)) == 1
    assert value(half, [as_target([JUMP], [0])], thresholds=(0.501,)) == 0
    # 7 s of 10 s, which float32 puts below 0.7.
    assert value([as_pred([[10, 17]], [1.0], [0])], [as_target([JUMP], [0])], thresholds=(0.7,)) == 1


def test_a_second_detection_falls_back_to_the_next_best_segment():
    # Both overlap most with the first segment; the second also has 8 s of 12 s in common with the other.
    targets = [as_target([[10, 20], [12, 22]], [0, 0])]
    preds = [as_pred([[10, 20], [10.5, 20.5]], [0.9, 0.8], [0, 0])]
    assert value(preds, targets) == 1
    assert value(preds, targets, thresholds=(0.8,)) == 0.5  # there the other is out of reach


def test_detections_of_all_videos_are_ranked_together():
    preds = [as_pred([FAR], [0.9], [0]), as_pred([JUMP], [0.8], [0])]
    targets = [as_target([JUMP], [0]), as_target([JUMP], [0])]
    assert value(preds, targets) == 0.25  # precision 1/2 at recall 1/2


def test_a_detection_in_a_video_without_ground_truth_is_a_false_positive():
    preds = [as_pred([JUMP], [0.9], [0]), as_pred([JUMP], [0.8], [0])]
    result = measured(preds, [as_target([], []), as_target([JUMP], [0])])
    assert result["map"] == 0.5 and result["num_videos"] == 2


@pytest.mark.parametrize(("apart", "counted"), [(0.0, 1), (0.9e-3, 1), (1.2e-3, 2)])
def test_repeated_ground_truth_counts_once(apart, counted):
    targets = [as_target([JUMP, [10 + apart, 20 - apart]], [0, 0])]
    result = measured([as_pred([JUMP], [0.9], [0])], targets)
    assert result["num_segments"] == counted and result["map"] == 1 / counted


def test_repetitions_are_of_one_video_and_one_class():
    targets = [as_target([JUMP, JUMP], [0, 1]), as_target([JUMP], [0])]
    assert measured([as_pred([], [], [])] * 2, targets, 2)["num_segments"] == 3


@pytest.mark.parametrize("nothing", [[10, 10], [10, 10.0005], [20, 10]])
def test_ground_truth_without_length_is_left_out(nothing):
    result = measured([as_pred([JUMP], [0.9], [0])], [as_target([nothing, JUMP], [0, 0])])
    assert result["num_segments"] == 1 and result["map"] == 1


def test_class_without_ground_truth_is_left_out_and_class_without_detection_is_zero():
    preds = [as_pred([JUMP, FAR], [0.9, 0.9], [0, 2])]
    result = measured(preds, [as_target([JUMP, JUMP], [0, 1])], 3)
    assert result["map"] == 0.5
    assert result["map_per_class"][:2].tolist() == [1, 0] and result["map_per_class"][2].isnan()
    assert result["explanation"] == ""


def test_the_mean_is_over_classes_and_thresholds():
    preds = [as_pred([[10, 16], JUMP], [0.9, 0.8], [0, 1])]  # tIoU 0.6 and 1
    result = measured(preds, [as_target([JUMP, JUMP], [0, 1])], 2, (0.5, 0.6, 0.7))
    assert result["map_per_threshold"].tolist() == [1, 1, 0.5]
    assert result["map_per_class"].tolist() == pytest.approx([2 / 3, 1])
    assert result["map"].item() == pytest.approx(5 / 6)


def test_empty_sides_on_every_level():
    nothing = as_pred([], [], [])
    assert value([nothing], [as_target([JUMP], [0])]) == 0
    assert np.isnan(value([as_pred([JUMP], [0.5], [0])], [as_target([], [])]))
    assert np.isnan(value([nothing], [as_target([], [])]))
    assert np.isnan(value([], []))
    flat = {"segments": torch.zeros(0), "scores": torch.zeros(0), "labels": torch.zeros(0)}  # as torch.tensor([])
    assert value([flat, as_pred([JUMP], [0.5], [0])], [as_target([], []), as_target([JUMP], [0])]) == 1


@pytest.mark.parametrize(
    ("pred", "words"),
    [
        (as_pred([], [], []), "no detection"),
        (as_pred([JUMP], [0.9], [1]), "class never predicted"),
        (as_pred([[300, 600]], [0.9], [0]), "the largest is 0.000; detections end by 600 s, ground truth by 20 s"),
        (as_pred([JUMP, FAR], [0.9, 0.9], [1, 0]), "overlap by up to 1.000, with other labels"),
    ],
)
def test_a_zero_is_explained(pred, words):
    result = measured([pred], [as_target([JUMP], [0])], 2)
    assert result["map"] == 0 and words in result["explanation"]


def test_no_ground_truth_is_explained():
    assert "no ground truth" in measured([as_pred([JUMP], [1], [0])], [as_target([], [])])["explanation"]


def test_a_number_is_called_by_its_protocol():
    assert SegmentMeanAveragePrecision(3).protocol == "segment mAP@tIoU 0.3, 0.4, 0.5, 0.6, 0.7 (ActionFormer/OpenTAD)"


# ---------------------------------------------------------------------------------------------------------------------
# Errors.


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="num_classes"):
        SegmentMeanAveragePrecision(0)
    for thresholds in ((), (0.0,), (0.5, 1.5)):
        with pytest.raises(ValueError, match="tiou_thresholds"):
            SegmentMeanAveragePrecision(2, thresholds)


def test_wrong_updates_are_refused_and_leave_no_trace():
    metric = SegmentMeanAveragePrecision(2)
    good = as_target([JUMP], [0])
    with pytest.raises(ValueError, match="2 to 2 but num_classes=2"):
        metric.update([as_pred([JUMP], [0.5], [2])], [good])
    with pytest.raises(ValueError, match="infinite scores"):
        metric.update([as_pred([JUMP], [float("nan")], [0])], [good])
    with pytest.raises(ValueError, match="1 videos but targets has 2"):
        metric.update([as_pred([JUMP], [0.5], [0])], [good, good])
    with pytest.raises(ValueError, match="different lengths"):
        metric.update([as_pred([JUMP], [0.5, 0.4], [0])], [good])
    with pytest.raises(ValueError, match="must be \\(N, 2\\)"):
        metric.update([as_pred([JUMP], [0.5], [0]) | {"segments": torch.ones(1, 4)}], [good])
    with pytest.raises(TypeError, match="must be integers"):
        metric.update([as_pred([JUMP], [0.5], [0]) | {"labels": torch.ones(1)}], [good])
    with pytest.raises(ValueError, match="no \\['scores'\\]"):
        metric.update([good], [good])
    assert metric.compute()["num_videos"] == 0


# ---------------------------------------------------------------------------------------------------------------------
# Accumulation, ranks, speed.


def test_many_updates_equal_one_and_reset_forgets():
    preds, targets = random_problem(3)
    metric = SegmentMeanAveragePrecision(4, THUMOS)
    for start in range(0, len(preds), 5):
        metric.update(preds[start : start + 5], targets[start : start + 5])
    expected = value(preds, targets, 4, THUMOS)
    assert metric.compute()["map"].item() == expected
    metric.reset()
    assert metric.compute()["num_videos"] == 0


def test_a_module_cast_to_half_precision_keeps_times_exact():
    metric = SegmentMeanAveragePrecision(1, (0.5,))
    torch.nn.ModuleList([metric]).to(torch.bfloat16)
    assert metric.compute()["num_videos"] == 0
    metric.update([as_pred([[0, 1001]], [0.9], [0])], [as_target([[0, 2002]], [0])])
    assert metric.compute()["map"] == 1  # a tIoU of exactly 0.5, which bfloat16 would miss


def one_rank(rank, folder, splits):
    torch.set_num_threads(1)  # the parent's thread pool does not survive the fork
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    preds, targets = random_problem(5)
    preds = [pred | {"scores": pred["scores"].round(decimals=1)} for pred in preds]
    for number, (start, stop) in enumerate(splits[rank]):
        metric = SegmentMeanAveragePrecision(4, THUMOS)
        if stop > start:
            metric.update(preds[start:stop], targets[start:stop])
        result = metric.compute()
        torch.save((result["map"].item(), int(result["num_videos"])), f"{folder}/{rank}.{number}")
    torch.distributed.destroy_process_group()


def test_two_processes_compute_what_one_does(tmp_path):
    # First an even split, then everything on rank 0 while rank 1 has seen no video at all, then in another order.
    splits = (((0, 6), (0, 12), (6, 12)), ((6, 12), (12, 12), (0, 6)))
    mp.start_processes(one_rank, args=(str(tmp_path), splits), nprocs=2, start_method="fork")
    preds, targets = random_problem(5)
    expected = value([pred | {"scores": pred["scores"].round(decimals=1)} for pred in preds], targets, 4, THUMOS)
    for rank in range(2):
        for number in range(3):
            result, num_videos = torch.load(tmp_path / f"{rank}.{number}")
            assert num_videos == 12 and result == pytest.approx(expected, abs=1e-12)


def test_two_hundred_videos_of_two_thousand_segments_take_seconds():
    generator = np.random.default_rng(0)
    preds, targets = [], []
    for _ in range(200):
        start = generator.uniform(0, 200, 16)
        segments = np.stack([start, start + generator.uniform(1, 10, 16)], axis=1)
        labels = generator.integers(0, 20, 2)[generator.integers(0, 2, 16)]
        source = generator.integers(0, 16, 2000)
        found = np.sort(segments[source] + generator.normal(0, 1.5, (2000, 2)), axis=1)
        preds.append(as_pred(found, generator.random(2000), labels[source]))
        targets.append(as_target(segments, labels))
    metric = SegmentMeanAveragePrecision(20)
    metric.update(preds, targets)
    begin = time.process_time()  # of this process: other work on the machine does not count
    assert 0 < metric.compute()["map"] < 1
    assert time.process_time() - begin < 10
