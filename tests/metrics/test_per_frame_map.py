"""Per-frame mAP against cases worked out by hand, a slow version, and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torchmetrics.functional.classification import binary_average_precision

from lightning_modules.metrics.per_frame_map import PerFrameMeanAveragePrecision, average_precision, frame_targets


def slow_ap(scores, positives, calibrated=False):
    """One threshold after the other, each counted from scratch."""
    total, area, recall = sum(positives), 0.0, 0.0
    weight = (len(positives) - total) / total if calibrated else 1.0
    for threshold in sorted(set(scores), reverse=True):
        true = sum(p for s, p in zip(scores, positives, strict=True) if s >= threshold)
        false = sum(not p for s, p in zip(scores, positives, strict=True) if s >= threshold)
        precision = true / (true + (false / weight if false else 0.0))
        area += (true / total - recall) * precision
        recall = true / total
    return area


def random_problem(seed, num_frames=300, num_classes=5, decimals=2):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.rand(num_frames, num_classes, generator=generator) < torch.tensor([0.5, 0.1, 0.02, 0.3, 0.0])
    scores = torch.rand(num_frames, num_classes, dtype=torch.float64, generator=generator) + 0.4 * targets
    ignore = torch.rand(num_frames, generator=generator) < 0.1
    return (scores / 2).round(decimals=decimals), targets, ignore


def measured(scores, targets, ignore=None, **options):
    metric = PerFrameMeanAveragePrecision(scores.shape[1], **options)
    metric.update(scores, targets, ignore)
    return metric.compute()


@pytest.mark.parametrize("decimals", [1, 2, 9])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_slow_version_and_with_torchmetrics(seed, decimals):
    scores, targets, ignore = random_problem(seed, decimals=decimals)
    result = measured(scores, targets, ignore)
    kept, true = scores[~ignore], targets[~ignore]
    assert true[:, 2].any() and not true[:, 4].any()
    for name, calibrated in (("map", False), ("calibrated_map", True)):
        expected = [slow_ap(kept[:, c].tolist(), true[:, c].tolist(), calibrated) for c in range(4)]
        assert result[f"{name}_per_class"][:4].tolist() == pytest.approx(expected, abs=1e-12)
        assert result[f"{name}_per_class"][4].isnan()
        assert result[name].item() == pytest.approx(np.mean(expected), abs=1e-12)
    others = [binary_average_precision(kept[:, c], true[:, c].long()).item() for c in range(4)]
    assert result["map_per_class"][:4].tolist() == pytest.approx(others, abs=1e-6)
    assert result["num_frames"] == len(kept) and result["num_ignored"] == ignore.sum()
    assert result["num_positives"] == true.sum()


def test_precision_is_not_interpolated():
    # Precision is 1/2, then 2/3; an envelope would lift the first to 2/3.
    ap, calibrated = average_precision(np.array([0.9, 0.8, 0.7]), np.array([False, True, True]))
    assert ap == pytest.approx((1 / 2 + 2 / 3) / 2)
    # Half a negative for each positive, so a false positive weighs two: 1 / (1 + 2), 2 / (2 + 2).
    assert calibrated == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_tied_scores_share_one_threshold():
    ap, calibrated = average_precision(np.array([0.9, 0.8, 0.8, 0.1]), np.array([False, True, False, True]))
    assert ap == calibrated == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_without_a_negative_everything_is_right():
    assert average_precision(np.array([0.3, 0.2]), np.array([True, True])) == (1, 1)


def test_without_a_positive_there_is_no_ap():
    assert np.isnan(average_precision(np.array([0.3]), np.array([False]))).all()
    result = measured(torch.rand(3, 2), torch.zeros(3, 2))
    assert result["map"].isnan() and "none of 3 frames" in result["explanation"]


def test_calibration_makes_rare_classes_comparable():
    scores, positives = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])
    rare = np.repeat(scores, [1, 10, 1, 10]), np.repeat(positives, [1, 10, 1, 10])
    plain, balanced = average_precision(scores, positives)
    rare_plain, rare_balanced = average_precision(*rare)
    assert rare_plain < plain and rare_balanced == pytest.approx(balanced)


def test_ambiguous_frames_are_left_out_even_with_broken_scores():
    scores = torch.tensor([[0.9], [0.8], [float("nan")]])
    result = measured(scores, torch.tensor([[0], [1], [1]]), torch.tensor([False, False, True]))
    assert result["map"] == 0.5 and result["num_frames"] == 2 and result["num_ignored"] == 1
    nothing = measured(scores, torch.ones(3, 1), torch.ones(3, dtype=torch.bool))
    assert "all 3 are ambiguous" in nothing["explanation"]


def test_background_is_not_scored():
    scores, targets, _ = random_problem(1)
    result = measured(scores, targets, background=0)
    assert result["classes"].tolist() == [1, 2, 3, 4]
    torch.testing.assert_close(result["map_per_class"], measured(scores, targets)["map_per_class"][1:], equal_nan=True)
    assert result["num_positives"] == targets[:, 1:].sum()


def test_a_frame_shows_what_goes_on_in_its_middle():
    times = torch.arange(6, dtype=torch.float64)
    segments = torch.tensor([[1.0, 3.0], [2.0, 2.5], [4.5, 4.9], [2.0, 5.0]], dtype=torch.float64)
    targets, ignore = frame_targets(times, segments, torch.tensor([0, 1, 1, 0]), torch.tensor([[4.0, 9.0]]), 3)
    assert targets[:, 0].tolist() == [False, True, True, True, True, False]
    assert targets[:, 1].tolist() == [False, False, True, False, False, False]
    assert not targets[:, 2].any()
    assert ignore.tolist() == [False] * 4 + [True] * 2
    empty = torch.zeros(0, 2, dtype=torch.float64)
    targets, ignore = frame_targets(times, empty, torch.zeros(0, dtype=torch.int64), empty, 3)
    assert targets.shape == (6, 3) and not targets.any() and not ignore.any()


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="background"):
        PerFrameMeanAveragePrecision(3, background=3)
    metric = PerFrameMeanAveragePrecision(3)
    with pytest.raises(ValueError, match=r"scores must be \(N, 3\)"):
        metric.update(torch.rand(4, 2), torch.ones(4, 3))
    with pytest.raises(ValueError, match="4 frames have scores, 5 targets"):
        metric.update(torch.rand(4, 3), torch.ones(5, 3))
    with pytest.raises(ValueError, match="NaN or infinite"):
        metric.update(torch.full((4, 3), float("inf")), torch.ones(4, 3))


def test_many_updates_equal_one_in_any_order_and_reset_forgets():
    scores, targets, ignore = random_problem(4)
    metric = PerFrameMeanAveragePrecision(5)
    for start in reversed(range(0, 300, 64)):
        rows = slice(start, start + 64)
        metric.update(scores[rows], targets[rows], ignore[rows])
    expected = measured(scores, targets, ignore)
    result = metric.compute()
    for name in ("map", "calibrated_map", "num_frames", "num_ignored"):
        assert result[name].item() == pytest.approx(expected[name].item(), abs=1e-12)
    metric.reset()
    metric.update(scores[:7], targets[:7])
    assert metric.compute()["num_frames"] == 7 and metric.compute()["num_ignored"] == 0


def one_rank(rank, folder, splits):
    torch.set_num_threads(1)  # the parent's thread pool does not survive the fork
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    scores, targets, ignore = random_problem(5)
    for number, (start, stop) in enumerate(splits[rank]):
        metric = PerFrameMeanAveragePrecision(5)
        if stop > start:
            metric.update(scores[start:stop], targets[start:stop], ignore[start:stop])
        result = metric.compute()
        names = ("map", "calibrated_map", "num_frames", "num_ignored")
        torch.save([result[name].item() for name in names], f"{folder}/{rank}.{number}")
    torch.distributed.destroy_process_group()


def test_two_processes_compute_what_one_does(tmp_path):
    splits = (((0, 90), (0, 300)), ((90, 300), (300, 300)))
    mp.start_processes(one_rank, args=(str(tmp_path), splits), nprocs=2, start_method="fork")
    expected = measured(*random_problem(5))
    for rank in range(2):
        for number in range(2):
            found = torch.load(tmp_path / f"{rank}.{number}")
            names = ("map", "calibrated_map", "num_frames", "num_ignored")
            assert found == pytest.approx([expected[name].item() for name in names], abs=1e-12)
