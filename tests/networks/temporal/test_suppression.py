"""Suppression against a slow version of its rules."""

from math import exp

import pytest
import torch

from lightning_modules.networks.temporal.heads.segment_head import ScoredSegments
from lightning_modules.networks.temporal.suppression import SegmentSuppression, top_segments


def tiou(first, second):
    both = max(0.0, min(first[1], second[1]) - max(first[0], second[0]))
    return both / (first[1] - first[0] + second[1] - second[0] - both)


def plainly_suppressed(candidates, method, sigma=0.5, iou_threshold=0.5, voting=0.7, score_threshold=0.001, most=2000):
    """(score, start, end, label) by descending score, one segment after the other."""
    rows = list(zip(*(part.tolist() for part in candidates), strict=True))
    rows = [row for row in rows if row[1] > score_threshold]
    result = []
    for label in {row[2] for row in rows}:
        mine = [row[:2] for row in rows if row[2] == label]
        left = list(mine)
        while left:
            best, score = max(left, key=lambda row: row[1])
            left.remove((best, score))
            others = [(other, tiou(best, other), value) for other, value in left]
            if method == "soft":
                left = [(other, value * exp(-(overlap**2) / sigma)) for other, overlap, value in others]
                left = [row for row in left if row[1] > score_threshold]
            else:
                left = [(other, value) for other, overlap, value in others if overlap <= iou_threshold]
            if voting is not None:
                votes = [(other, value * tiou(best, other)) for other, value in mine if tiou(best, other) >= voting]
                total = sum(weight for _, weight in votes)
                best = [sum(weight * other[side] for other, weight in votes) / total for side in (0, 1)]
            result.append((score, *best, label))
    return sorted(result, reverse=True)[:most]


def random_candidates(number=120, num_classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    middle = 10 * torch.randint(4, (number,), generator=generator) + torch.randn(number, generator=generator)
    half = 2 + torch.rand(number, generator=generator) * 3
    segments = torch.stack([middle - half, middle + half], dim=1).double()
    scores = torch.rand(number, generator=generator).double() ** 3
    return ScoredSegments(segments, scores, torch.randint(num_classes, (number,), generator=generator) * 2)


def rows_of(result):
    return torch.cat([result.scores[:, None], result.segments, result.labels[:, None]], dim=1)


@pytest.mark.parametrize("voting", [None, 0.7])
@pytest.mark.parametrize("method", ["soft", "hard"])
@pytest.mark.parametrize("most", [2000, 17])
@pytest.mark.parametrize("seed", range(3))
def test_suppression_is_the_plain_one(method, voting, most, seed):
    candidates = random_candidates(seed=seed)
    result = SegmentSuppression(method, voting=voting, max_segments=most)(candidates)
    expected = torch.tensor(plainly_suppressed(candidates, method, voting=voting, most=most), dtype=torch.float64)
    torch.testing.assert_close(rows_of(result), expected)


def test_none_keeps_the_best_as_they_are():
    candidates = random_candidates(40)
    result = SegmentSuppression("none", score_threshold=0.01, max_segments=10)(candidates)
    order = candidates.scores.argsort(descending=True)[:10]
    torch.testing.assert_close(rows_of(result), rows_of(ScoredSegments(*(part[order] for part in candidates))))


def test_types_are_kept_and_nothing_is_kept_of_nothing():
    empty = ScoredSegments(torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    low = ScoredSegments(torch.tensor([[0.0, 1.0]]), torch.tensor([0.0005]), torch.tensor([3]))
    for method in ("soft", "hard", "none"):
        for candidates in (empty, low):
            result = SegmentSuppression(method)(candidates)
            assert [part.shape for part in result] == [(0, 2), (0,), (0,)]
            assert [part.dtype for part in result] == [torch.float32, torch.float32, torch.int64]


def test_top_segments_are_the_best_above_the_threshold():
    scores = torch.tensor([[[0.1, 0.9], [0.5, 0.3]], [[0.1, 0.2], [0.0, 0.05]]])
    segments = torch.tensor([[[0.0, 1.0], [2.0, 3.0]], [[4.0, 5.0], [6.0, 7.0]]])
    first, second = top_segments(scores, segments, threshold=0.1, max_segments=2)
    assert first.segments.tolist() == [[0, 1], [2, 3]] and first.labels.tolist() == [1, 0]
    torch.testing.assert_close(first.scores, torch.tensor([0.9, 0.5]))
    assert second.segments.tolist() == [[4, 5]] and second.labels.tolist() == [1]


@pytest.mark.parametrize("settings", [{"method": "linear"}, {"sigma": 0}, {"max_segments": 0}, {"voting": 0.0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=r"must be|voting is"):
        SegmentSuppression(**settings)
