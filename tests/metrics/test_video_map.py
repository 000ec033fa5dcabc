"""Video mAP against cases worked out by hand and a slow version of each protocol."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from lightning_modules.metrics import video_ap
from lightning_modules.metrics.video_map import COCO_THRESHOLDS, VideoMeanAveragePrecision

PROTOCOLS = ("act", "multisports")


# ---------------------------------------------------------------------------------------------------------------------
# A slow version: one tube after the other, as the protocols are described.


def slow_box_iou(a, b, extra):
    width = min(a[2], b[2]) - max(a[0], b[0]) + extra
    height = min(a[3], b[3]) - max(a[1], b[1]) + extra
    inner = max(width, 0) * max(height, 0)
    union = (a[2] - a[0] + extra) * (a[3] - a[1] + extra) + (b[2] - b[0] + extra) * (b[3] - b[1] + extra) - inner
    return inner / union if union > 0 else 0.0


def slow_tube_iou(a, b, protocol):
    extra = 1 if protocol == "act" else 0
    boxes_a, boxes_b = (dict(zip(t["frames"].tolist(), t["boxes"].tolist(), strict=True)) for t in (a, b))
    common = sorted(boxes_a.keys() & boxes_b.keys())
    if not common:
        return 0.0
    longest = max(*boxes_a, *boxes_b) - min(*boxes_a, *boxes_b) + extra
    if longest == 0:
        return 0.0
    spatial = sum(slow_box_iou(boxes_a[frame], boxes_b[frame], extra) for frame in common) / len(common)
    return spatial * (common[-1] - common[0] + extra) / longest


def slow_nms(tubes):
    kept = []
    for tube in sorted(tubes, key=lambda tube: -tube["score"]):
        if all(slow_tube_iou(tube, other, "act") <= 0.3 for other in kept):
            kept.append(tube)
    return kept


def slow_ap(preds, targets, label, threshold, protocol):
    """AP of one class in plain Python, None without ground truth."""
    rows, truth = [], []
    for number, (pred, target) in enumerate(zip(preds, targets, strict=True)):
        found = [tube for tube in pred["tubes"] if tube["label"] == label]
        rows += [(tube, number) for tube in (slow_nms(found) if protocol == "act" else found)]
        truth.append([[tube, True] for tube in target["tubes"] if tube["label"] == label])
    total = sum(map(len, truth))
    if not total:
        return None
    area, recall, precision, points, true_positives = 0.0, 0.0, 1.0, [], 0
    for rank, (tube, number) in enumerate(sorted(rows, key=lambda row: -row[0]["score"]), start=1):
        candidates = truth[number]
        if protocol == "act":  # fall back on what is free
            candidates = [entry for entry in candidates if entry[1]]
        best = max(candidates, key=lambda entry: slow_tube_iou(tube, entry[0], protocol), default=None)
        if best is not None and best[1] and slow_tube_iou(tube, best[0], protocol) >= threshold:
            best[1] = False
            true_positives += 1
        points.append((true_positives / total, true_positives / rank))
    for index, (next_recall, next_precision) in enumerate(points):
        height = (precision + next_precision) / 2 if protocol == "act" else max(p for _, p in points[index:])
        area += (next_recall - recall) * height
        recall, precision = next_recall, next_precision
    return area


def random_problem(seed, num_videos=10, num_classes=4):
    """Crowded videos: perturbed ground truth several times over, clutter, some videos and classes empty."""
    rng = np.random.default_rng(seed)
    preds, targets = [], []

    def wander(start, length):
        corner = rng.uniform(0, 60, 2) + rng.normal(0, 1, (length, 2)).cumsum(axis=0)
        return np.arange(start, start + length), np.concatenate([corner, corner + rng.uniform(20, 40, 2)], axis=1)

    for _ in range(num_videos):
        truth, found = [], []
        for _ in range(rng.integers(0, 5)):
            frames, boxes = wander(rng.integers(0, 15), rng.integers(1, 20))
            label = int(rng.integers(0, num_classes - 1))  # the last class has no ground truth
            truth.append({"label": label, "frames": frames, "boxes": boxes})
            for _ in range(3):
                cut = slice(rng.integers(0, max(1, len(frames) // 3)), len(frames) - rng.integers(0, 2))
                cut = cut if len(frames[cut]) else slice(None)
                other = label if rng.random() < 0.8 else int(rng.integers(0, num_classes))
                found.append(tube(other, rng.random(), frames[cut], boxes[cut] + rng.normal(0, 3, 4)))
        for _ in range(rng.integers(0, 3)):
            found.append(tube(int(rng.integers(0, num_classes)), rng.random(), *wander(0, rng.integers(1, 20))))
        preds.append({"tubes": found})
        targets.append({"tubes": truth})
    return preds, targets


def tube(label, score, frames, boxes):
    frames = np.asarray(frames)
    boxes = np.broadcast_to(np.asarray(boxes, np.float64), (len(frames), 4))
    return {"label": label, "score": float(score), "frames": frames, "boxes": boxes}


def measured(preds, targets, num_classes=1, **options):
    metric = VideoMeanAveragePrecision(num_classes, **options)
    metric.update(preds, targets)
    return metric.compute()


def of_one_video(preds, targets, num_classes=1, **options):
    return measured([{"tubes": preds}], [{"tubes": targets}], num_classes, **options)


def value(preds, targets, threshold=0.5, **options):
    return of_one_video(preds, targets, iou_thresholds=(threshold,), **options)[f"map_{100 * threshold:g}"].item()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_the_slow_version(seed, protocol):
    preds, targets = random_problem(seed)
    result = measured(preds, targets, 4, protocol=protocol)
    means = {}
    for threshold in sorted({0.2, *COCO_THRESHOLDS}):
        expected = [slow_ap(preds, targets, label, threshold, protocol) for label in range(4)]
        assert expected[3] is None
        means[threshold] = np.mean(expected[:3])
        if threshold in (0.2, 0.5, 0.75):
            name = f"map_{100 * threshold:g}"
            assert result[f"{name}_per_class"][:3].tolist() == pytest.approx(expected[:3], abs=1e-12)
            assert result[f"{name}_per_class"][3].isnan()
            assert result[name].item() == pytest.approx(means[threshold], abs=1e-12)
    assert 0.1 < means[0.5] < 1  # or the comparison would say little
    average = np.mean([means[threshold] for threshold in COCO_THRESHOLDS])
    assert result["map_50_95"].item() == pytest.approx(average, abs=1e-12)
    assert result["num_tubes"] == sum(len(target["tubes"]) for target in targets)
    assert result["num_pred_tubes"] == sum(len(pred["tubes"]) for pred in preds)
    assert (result["num_videos"], result["num_classes"], result["protocol"]) == (10, 3, protocol)
    assert result["explanation"] == ""


def test_the_protocols_differ():
    preds, targets = random_problem(0)
    assert measured(preds, targets, 4)["map_50"] != measured(preds, targets, 4, protocol="multisports")["map_50"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_order_of_videos_and_tubes_changes_nothing_even_under_ties(protocol):
    preds, targets = random_problem(11)
    for pred in preds:
        for found in pred["tubes"]:
            found["score"] = round(found["score"], 1)
    expected = measured(preds, targets, 4, protocol=protocol)
    rng = np.random.default_rng(0)
    for _ in range(5):
        order = rng.permutation(len(preds)).tolist()
        shuffled = [
            [{"tubes": [side[i]["tubes"][j] for j in rng.permutation(len(side[i]["tubes"]))]} for i in order]
            for side in (preds, targets)
        ]
        again = measured(*shuffled, 4, protocol=protocol)
        assert again["map_50"].item() == expected["map_50"].item()
        assert again["map_50_95"].item() == expected["map_50_95"].item()


def test_small_pieces_of_overlaps_change_nothing(monkeypatch):
    preds, targets = random_problem(2)
    expected = measured(preds, targets, 4)
    monkeypatch.setattr(video_ap, "FRAMES_AT_A_TIME", 7)
    assert measured(preds, targets, 4)["map_50_95"].item() == expected["map_50_95"].item()


# ---------------------------------------------------------------------------------------------------------------------
# Rules, one by one.

SQUARE = [0, 0, 9, 9]  # 10 x 10 pixels in act, 9 x 9 in multisports
FAR = [50, 50, 60, 60]


def test_overlap_is_that_of_frames_times_that_of_boxes():
    truth = [tube(0, 1, range(10), SQUARE)]
    half = [tube(0, 0.9, range(5), SQUARE)]  # 5 of 10 frames: exactly the threshold is a hit
    assert value(half, truth) == 1
    assert value(half, truth, threshold=0.51) == 0
    # 8 of 10 frames, with boxes that cover 5 of 10 rows of pixels: 0.4.
    both = [tube(0, 0.9, range(8), [0, 0, 9, 4])]
    assert value(both, truth, threshold=0.4) == 1
    assert value(both, truth, threshold=0.41) == 0


def test_multisports_counts_neither_frames_nor_pixels():
    truth = [tube(0, 1, range(10), SQUARE)]
    found = [tube(0, 0.9, range(5), SQUARE)]  # frames 0..4 of 0..9: (4 - 0) / (9 - 0)
    assert value(found, truth, threshold=4 / 9, protocol="multisports") == 1
    assert value(found, truth, threshold=0.5, protocol="multisports") == 0
    assert value(found, truth, threshold=0.5, protocol="act") == 1
    flat = [tube(0, 0.9, range(10), [0, 0, 9, 4])]
    assert value(flat, truth, threshold=0.5, protocol="act") == 1
    assert value(flat, truth, threshold=0.5, protocol="multisports") == 0  # 4 of 9


def test_boxes_are_compared_on_common_frames_alone():
    truth = [tube(0, 1, range(10), SQUARE)]
    boxes = np.asarray([SQUARE] * 10 + [FAR] * 2)
    assert value([tube(0, 0.9, range(12), boxes)], truth, threshold=10 / 12) == 1
    assert value([tube(0, 0.9, range(10), [SQUARE] * 5 + [FAR] * 5)], truth) == 1  # mean IoU 1/2
    assert value([tube(0, 0.9, range(10), [SQUARE] * 4 + [FAR] * 6)], truth) == 0


def test_one_common_frame_counts_in_act_alone():
    truth, found = [tube(0, 1, [3], SQUARE)], [tube(0, 0.9, [3], SQUARE)]
    assert value(found, truth) == 1
    assert value(found, truth, protocol="multisports") == 0
    assert value([tube(0, 0.9, [4], SQUARE)], truth, threshold=0.01) == 0


def test_act_suppresses_tubes_that_overlap_by_more_than_three_tenths():
    truth = [tube(0, 1, range(10), SQUARE), tube(0, 1, range(7, 20), SQUARE)]
    apart = [tube(0, 0.9, range(10), SQUARE), tube(0, 0.8, range(7, 20), SQUARE)]  # 3 of 20 frames
    assert value(apart, truth) == 1
    double = [tube(0, 0.9, range(10), SQUARE), tube(0, 0.8, range(10), SQUARE), tube(0, 0.7, range(7, 20), SQUARE)]
    assert value(double, truth) == 1  # without suppression the second would be a false positive
    # Exactly 0.3 stays: 3 of 10 frames.
    truth = [tube(0, 1, range(6), SQUARE), tube(0, 1, range(3, 10), SQUARE)]
    assert value([tube(0, 0.9, range(6), SQUARE), tube(0, 0.8, range(3, 10), SQUARE)], truth) == 1
    other = [tube(0, 0.9, range(5), SQUARE), tube(1, 0.8, range(5), SQUARE)]
    assert of_one_video(other, other, num_classes=2)["map_50"] == 1  # only inside a class


def test_act_falls_back_on_the_next_best_free_tube():
    # The second detection overlaps with the first person by 0.9, who is taken, and with the second by 0.6.
    left, right = [0, 0, 99, 99], [0, 0, 99, 69]
    truth = [tube(0, 1, range(10), left), tube(0, 1, range(10), right)]
    found = [tube(0, 0.9, range(10), left), tube(0, 0.8, range(10), [0, 0, 99, 89])]
    assert video_ap.TUBE_NMS_THRESHOLD < 0.9  # so the suppression has to be out of the way to see it
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_ap, "TUBE_NMS_THRESHOLD", 1.0)
        assert value(found, truth) == 1
    # Best one only: precision 1 at recall 1/2, and the second detection is a false positive.
    assert value(found, truth, protocol="multisports") == 0.5


def test_a_false_positive_above_the_hit():
    truth = [tube(0, 1, range(10), SQUARE)]
    found = [tube(0, 0.9, range(10), FAR), tube(0, 0.8, range(10), SQUARE)]
    # From (recall 0, precision 1) down to (0, 0) at no gain, then up to (1, 1/2): one trapezoid of mean height 1/4.
    assert value(found, truth) == 0.25
    assert value(found, truth, protocol="multisports") == 0.5


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_classes_without_ground_truth_are_left_out_and_without_detection_are_zero(protocol):
    truth = [tube(0, 1, range(10), SQUARE), tube(2, 1, range(10), SQUARE)]
    found = [tube(0, 0.9, range(10), SQUARE), tube(1, 0.8, range(10), SQUARE)]
    result = of_one_video(found, truth, num_classes=3, protocol=protocol)
    per_class = result["map_50_per_class"].tolist()
    assert per_class[0] == 1 and np.isnan(per_class[1]) and per_class[2] == 0
    assert result["map_50"] == 0.5 and result["num_classes"] == 2


def test_tubes_count_in_their_own_video_alone():
    truth = [{"tubes": [tube(0, 1, range(10), SQUARE)]}, {"tubes": []}]
    elsewhere = [{"tubes": []}, {"tubes": [tube(0, 0.9, range(10), SQUARE)]}]
    assert measured(elsewhere, truth)["map_20"] == 0


def test_all_thresholds_come_out():
    truth = [tube(0, 1, range(100), SQUARE)]
    found = [tube(0, 0.9, range(62), SQUARE)]  # a hit at 0.5, 0.55, 0.6 of ten thresholds
    result = of_one_video(found, truth)
    assert [result[name].item() for name in ("map_20", "map_50", "map_75")] == [1, 1, 0]
    assert result["map_50_95"].item() == pytest.approx(0.3)


# ---------------------------------------------------------------------------------------------------------------------
# Words.


def test_a_zero_is_explained():
    truth = [tube(0, 1, range(10), SQUARE)]
    said = [
        of_one_video(found, truth, num_classes=2)["explanation"]
        for found in (
            [],
            [tube(1, 0.9, range(10), SQUARE)],
            [tube(0, 0.9, range(10), FAR), tube(1, 0.9, range(10), SQUARE)],
            [tube(0, 0.9, range(1), SQUARE)],
        )
    ]
    assert said[0].startswith("no tube") and said[1].startswith("class never predicted")
    assert "up to 1.000, with other labels" in said[2]
    assert "largest is 0.100" in said[3]
    nothing = of_one_video([], [])
    assert nothing["explanation"].startswith("no ground truth") and nothing["map_50"].isnan()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"frames": np.array([0, 2])}, "consecutive"),
        ({"frames": np.array([0.0, 1.0])}, "consecutive"),
        ({"frames": np.array([0])}, r"frames \(T,\)"),
        ({"label": 1}, "label 1 but num_classes=1"),
        ({"score": float("nan")}, "NaN"),
        ({"boxes": np.full((2, 4), np.inf)}, "NaN"),
    ],
)
def test_wrong_tubes_are_refused_and_leave_no_trace(wrong, message):
    metric = VideoMeanAveragePrecision(1)
    good = tube(0, 0.5, [0, 1], SQUARE)
    with pytest.raises(ValueError, match=r"preds\[0\]\['tubes'\]\[1\].*" + message):
        metric.update([{"tubes": [good, good | wrong]}], [{"tubes": [good]}])
    with pytest.raises(ValueError, match="no tubes"):
        metric.update([good], [{"tubes": []}])
    with pytest.raises(ValueError, match="1 videos but targets has 2"):
        metric.update([{"tubes": []}], [{"tubes": []}] * 2)
    assert metric.compute()["num_videos"] == 0


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="protocol"):
        VideoMeanAveragePrecision(1, protocol="pascal")
    with pytest.raises(ValueError, match="iou_thresholds"):
        VideoMeanAveragePrecision(1, iou_thresholds=(50,))
    with pytest.raises(ValueError, match="relative"):
        value([], [tube(0, 1, range(3), [0, 0, 1, 1])])


# ---------------------------------------------------------------------------------------------------------------------
# Accumulation, ranks, speed.


def test_many_updates_equal_one_and_reset_forgets():
    preds, targets = random_problem(3)
    metric = VideoMeanAveragePrecision(4)
    for start in range(0, len(preds), 3):
        metric.update(preds[start : start + 3], targets[start : start + 3])
    expected = measured(preds, targets, 4)["map_50"].item()
    assert metric.compute()["map_50"].item() == expected
    metric.reset()
    assert metric.compute()["num_videos"] == 0
    metric(preds, targets)
    assert metric.compute()["map_50"].item() == expected


def test_tensors_and_a_module_in_half_precision_give_the_same():
    truth, found = tube(0, 1, range(10), [0, 0, 2001, 999]), tube(0, 0.9, range(10), [0, 0, 1000, 999])
    tensors = [{k: torch.as_tensor(np.array(v)) for k, v in t.items()} for t in (found, truth)]
    metric = VideoMeanAveragePrecision(1)
    torch.nn.ModuleList([metric]).to(torch.bfloat16)
    metric.update([{"tubes": tensors[:1]}], [{"tubes": tensors[1:]}])
    assert metric.compute()["map_50"] == 1  # 1001 of 2002 columns, which bfloat16 would miss


def one_rank(rank, folder, splits):
    torch.set_num_threads(1)  # the parent's thread pool does not survive the fork
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    preds, targets = random_problem(5)
    for number, (start, stop) in enumerate(splits[rank]):
        metric = VideoMeanAveragePrecision(4)
        if stop > start:
            metric.update(preds[start:stop], targets[start:stop])
        result = metric.compute()
        torch.save((result["map_50"].item(), int(result["num_videos"])), f"{folder}/{rank}.{number}")
    torch.distributed.destroy_process_group()


def test_two_processes_compute_what_one_does(tmp_path):
    # First a split in the middle, then everything on rank 0 while rank 1 has seen no video at all.
    splits = (((0, 4), (0, 10)), ((4, 10), (10, 10)))
    mp.start_processes(one_rank, args=(str(tmp_path), splits), nprocs=2, start_method="fork")
    expected = measured(*random_problem(5), 4)["map_50"].item()
    for rank in range(2):
        for number in range(2):
            assert torch.load(tmp_path / f"{rank}.{number}") == (pytest.approx(expected, abs=1e-12), 10)


def test_a_twentieth_of_ucf101_24_takes_a_second():
    """46 videos of 180 frames, 24 classes, 5 tubes a class and video."""
    rng = np.random.default_rng(0)
    preds, targets = [], []
    for video in range(46):
        truth = tube(video % 24, 1, range(20, 170), np.add(rng.uniform(0, 100, 4), [0, 0, 150, 150]))
        found = [
            tube(label, rng.random(), range(rng.integers(0, 60), 180), truth["boxes"][0] + rng.normal(0, 20, 4))
            for label in range(24)
            for _ in range(5)
        ]
        preds.append({"tubes": found})
        targets.append({"tubes": [truth]})
    metric = VideoMeanAveragePrecision(24)
    begin = time.process_time()
    metric.update(preds, targets)
    assert 0 < metric.compute()["map_20"] < 1
    assert time.process_time() - begin < 3
