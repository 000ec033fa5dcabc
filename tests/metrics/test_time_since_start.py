"""Frame AP by time since the action's start: worked examples, the frame AP it must agree with, and a slow version."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_modules.metrics.frame_ap import FrameMapSettings, FrameRows, average_precisions
from lightning_modules.metrics.time_since_start import time_since_start

AVA = FrameMapSettings()


def rows(entries) -> FrameRows:
    """Of (frame, box, class, score), a box each."""
    frames, boxes, classes, scores = zip(*entries, strict=True) if entries else ((), np.empty((0, 4)), (), ())
    return FrameRows(
        np.asarray(frames, np.int64),
        np.asarray(boxes, np.float64),
        np.arange(len(frames)),
        np.asarray(classes, np.int64),
        np.asarray(scores, np.float64),
    )


def box(place: int) -> tuple[float, ...]:
    """A box that overlaps with no other place's."""
    return (20.0 * place, 0.0, 20.0 * place + 10, 10.0)


def test_each_bin_has_the_precision_that_all_rows_would_have_if_they_were_found_like_its_own():
    targets = rows([(0, box(0), 0, 1.0), (0, box(1), 0, 1.0)])
    preds = rows([(0, box(0), 0, 0.9), (0, box(5), 0, 0.8), (0, box(1), 0, 0.7)])
    result = time_since_start(preds, targets, np.asarray([0.0, 3.0]), 1, AVA, edges=(1.0,))
    assert result.per_class[:, 0].tolist() == pytest.approx([1.0, 2 / 3])
    assert result.counts.tolist() == [[1], [1]]
    # Together: hits at ranks 1 and 3, precisions 1 and 2 / 3.
    assert average_precisions(preds, targets, 1, 0.5, "ava").tolist() == pytest.approx([(1 + 2 / 3) / 2])


def test_a_detection_of_another_bins_row_counts_neither_for_nor_against():
    targets = rows([(0, box(0), 0, 1.0), (0, box(1), 0, 1.0)])
    found_both = rows([(0, box(1), 0, 0.9), (0, box(0), 0, 0.5)])
    found_one = rows([(0, box(0), 0, 0.5)])
    seconds = np.asarray([0.1, 3.0])
    for preds in (found_both, found_one):
        assert time_since_start(preds, targets, seconds, 1, AVA).per_class[0, 0] == 1.0
    assert time_since_start(found_one, targets, seconds, 1, AVA).per_class[3, 0] == 0.0


def test_a_bin_holds_its_lower_edge_and_a_class_without_rows_in_it_is_left_out_of_its_mean():
    targets = rows([(0, box(0), 0, 1.0), (0, box(1), 1, 1.0), (0, box(2), 1, 1.0)])
    preds = rows([(0, box(0), 0, 0.9), (0, box(2), 1, 0.9)])
    result = time_since_start(preds, targets, np.asarray([0.25, 0.25, 0.2499]), 3, AVA)
    assert result.counts.tolist() == [[0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert result.mean.tolist() == pytest.approx([1.0, 0.5, np.nan, np.nan], nan_ok=True)
    assert np.isnan(result.per_class[:, 2]).all()
    assert result.text().splitlines()[1].split() == ["100.00", "1", "1", "0", "to", "0.25"]
    assert result.text().splitlines()[4].split() == ["-", "0", "0", "1", "on"]


def some_rows(seed: int, ties: bool) -> tuple[FrameRows, FrameRows, np.ndarray]:
    """Detections of 30 frames that hit, miss, and are doubled, of three classes."""
    rng = np.random.default_rng(seed)
    targets = [
        (int(f), box(int(p)), int(c), 1.0) for f in range(30) for p in range(3) for c in range(3) if rng.random() < 0.4
    ]
    preds = []
    for frame in range(30):
        for place in range(4):
            for _ in range(int(rng.integers(0, 3))):
                moved = np.asarray(box(place)) + rng.uniform(-3, 3, 4)
                preds += [(frame, moved, c, round(rng.random(), 1 if ties else 9)) for c in range(3)]
    return rows(preds), rows(targets), rng.uniform(0, 2, len(targets))


@pytest.mark.parametrize("protocol", ["ava", "pascal", "act"])
@pytest.mark.parametrize("ties", [False, True])
def test_with_one_bin_it_is_the_frame_ap(protocol, ties):
    preds, targets, seconds = some_rows(0, ties)
    expected = average_precisions(preds, targets, 3, 0.5, protocol)
    found = time_since_start(preds, targets, seconds, 3, FrameMapSettings(protocol=protocol), edges=())
    assert 0.05 < expected.min() < expected.max() < 0.9
    np.testing.assert_array_equal(found.per_class, expected[None])
    assert found.counts.sum() == len(seconds)


def slow(preds: FrameRows, targets: FrameRows, seconds: np.ndarray, label: int, low: float, high: float) -> float:
    """One detection after the other, under the ``pascal`` protocol, in plain Python."""

    def iou(a, b) -> float:
        width, height = (max(0.0, min(a[2 + i], b[2 + i]) - max(a[i], b[i])) for i in (0, 1))
        areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
        return width * height / (sum(areas) - width * height)

    truth = [i for i in range(len(targets.owners)) if targets.classes[i] == label]
    in_bin = [i for i in truth if low <= seconds[i] < high]
    taken, hits, misses, points = set(), 0, 0, []
    for rank in np.argsort(-preds.scores, kind="stable").tolist():
        if preds.classes[rank] != label:
            continue
        there = [i for i in truth if targets.frames[i] == preds.frames[rank]]
        best = max(there, key=lambda i: iou(preds.boxes[rank], targets.boxes[i]), default=None)
        hit = best is not None and best not in taken and iou(preds.boxes[rank], targets.boxes[best]) >= 0.5
        if hit:
            taken.add(best)
            if best not in in_bin:
                continue
        hits, misses = hits + hit, misses + (not hit)
        weighted = hits / len(in_bin) * len(truth)
        points.append((hit, weighted / (weighted + misses)))
    return sum(max(p for _, p in points[i:]) for i, (hit, _) in enumerate(points) if hit) / len(in_bin)


@pytest.mark.parametrize("seed", [1, 2])
def test_bins_equal_the_slow_version(seed):
    preds, targets, seconds = some_rows(seed, ties=False)
    found = time_since_start(preds, targets, seconds, 3, FrameMapSettings(protocol="pascal"))
    edges = [0, 0.25, 0.5, 1.0, np.inf]
    for number in range(4):
        for label in range(3):
            expected = slow(preds, targets, seconds, label, edges[number], edges[number + 1])
            assert found.per_class[number, label] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("seconds", "edges", "told"),
    [
        ([0.0], (1.0,), "2 true rows but 1 times"),
        ([0.0, np.nan], (1.0,), "at least 0"),
        ([0.0, -1.0], (1.0,), "at least 0"),
        ([0.0, 0.0], (1.0, 0.5), "ascending"),
        ([0.0, 0.0], (0.0, 0.5), "positive"),
    ],
)
def test_what_cannot_be_meant_is_refused(seconds, edges, told):
    targets = rows([(0, box(0), 0, 1.0), (0, box(1), 0, 1.0)])
    with pytest.raises(ValueError, match=told):
        time_since_start(rows([]), targets, np.asarray(seconds), 1, AVA, edges)


def test_without_detections_every_bin_with_rows_is_zero():
    targets = rows([(0, box(0), 0, 1.0), (0, box(1), 0, 1.0)])
    result = time_since_start(rows([]), targets, np.asarray([0.0, 0.3]), 1, AVA)
    assert result.mean.tolist() == pytest.approx([0.0, 0.0, np.nan, np.nan], nan_ok=True)
