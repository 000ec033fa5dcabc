"""Targets of points, cells and boundaries, against plain loops written from the rules."""

import pytest
import torch

from lightning_modules.networks.temporal.heads.segment_targets import (
    as_truth,
    boundary_targets,
    cell_targets,
    point_targets,
)


def random_truth(counts, num_classes, length, seed):
    generator = torch.Generator().manual_seed(seed)
    segments, labels = [], []
    for count in counts:
        start = torch.rand(count, generator=generator) * length * 0.8
        span = 0.4 + torch.rand(count, generator=generator) ** 2 * length * 0.6
        segments.append(torch.stack([start, start + span], dim=1).double())
        labels.append(torch.randint(num_classes, (count,), generator=generator))
    return segments, labels


def tiou(first, second):
    both = max(0.0, min(first[1], second[1]) - max(first[0], second[0]))
    return both / (first[1] - first[0] + second[1] - second[0] - both)


@pytest.mark.parametrize("seed", range(5))
def test_points_answer_for_the_shortest_segment_allowed(seed):
    counts, num_classes, levels, radius = (3, 0, 7), 4, 4, 1.5
    segments, labels = random_truth(counts, num_classes, 64, seed)
    segments[2][1], labels[2][1] = segments[2][0], (labels[2][0] + 1) % num_classes  # two classes at the same time
    points = [(j * 2**level + 0.5, 2**level, level) for level in range(levels) for j in range(64 // 2**level)]
    times, strides, level = (torch.tensor(part).float().expand(3, -1) for part in zip(*points, strict=True))
    nearest = torch.where(level > 0, 2 * strides, 0.0)
    farthest = torch.where(level < levels - 1, 4 * strides, torch.inf)
    result = point_targets(as_truth(segments, labels, num_classes), times, strides, nearest, farthest, radius)

    num_positive = 0
    for window, (some, ids) in enumerate(zip(segments, labels, strict=True)):
        for number, (time, stride, scale) in enumerate(points):
            allowed = []
            for (start, end), label in zip(some.float().tolist(), ids.tolist(), strict=True):
                distance = max(time - start, end - time)
                low, high = (0 if scale == 0 else 2 * stride), (4 * stride if scale < levels - 1 else float("inf"))
                is_close = abs(time - (start + end) / 2) < radius * stride
                if start < time < end and is_close and low <= distance <= high:
                    allowed.append((end - start, start, end, label))
            assert bool(result.is_positive[window, number]) == bool(allowed)
            expected = torch.zeros(num_classes)
            if allowed:
                num_positive += 1
                shortest = min(allowed)
                expected[[entry[3] for entry in allowed if entry[0] <= shortest[0] + 1e-3]] = 1
                torch.testing.assert_close(result.segments[window, number], torch.tensor(shortest[1:3]))
            torch.testing.assert_close(result.classes[window, number], expected)
    assert num_positive > 10


@pytest.mark.parametrize("seed", range(3))
def test_cells_have_the_classes_they_overlap(seed):
    counts, num_classes, length, durations = (2, 0, 4), 3, 12, 9
    segments, labels = random_truth(counts, num_classes, length, seed)
    cells = (torch.arange(length) + torch.arange(1, durations + 1)[:, None] <= length).expand(3, -1, -1)
    result = cell_targets(as_truth(segments, labels, num_classes), cells, 0.75)
    for window, (some, ids) in enumerate(zip(segments, labels, strict=True)):
        overlaps = [
            {
                (d, i): tiou((i, i + d + 1), segment)
                for d in range(durations)
                for i in range(length)
                if i + d + 1 <= length
            }
            for segment in some.tolist()
        ]
        for d in range(durations):
            for i in range(length):
                mine = [overlap.get((d, i), 0.0) for overlap in overlaps]
                expected = torch.zeros(num_classes)
                for value, overlap, label in zip(mine, overlaps, ids.tolist(), strict=True):
                    if value >= 0.75 or (value > 0 and value >= max(overlap.values()) - 1e-6):
                        expected[label] = 1
                torch.testing.assert_close(result.classes[window, d, i], expected)
                torch.testing.assert_close(result.overlap[window, d, i], torch.tensor(max(mine, default=0.0)))


def test_a_segment_shorter_than_a_feature_has_a_cell():
    truth = as_truth([torch.tensor([[3.2, 3.5]])], [torch.tensor([1])], 2)
    classes = cell_targets(truth, torch.ones(1, 4, 8, dtype=torch.bool), 0.75).classes
    assert classes.nonzero().tolist() == [[0, 0, 3, 1]]


def test_boundaries_within_the_radius_are_positive():
    truth = as_truth([torch.tensor([[2.0, 5.4]]), torch.zeros(0, 2)], [torch.tensor([0]), torch.zeros(0)], 1)
    starts, ends = boundary_targets(truth, 8, radius=1.0)
    assert starts[0].nonzero().flatten().tolist() == [1, 2, 3]
    assert (ends[0].nonzero().flatten() + 1).tolist() == [5, 6]  # entry i is time i + 1
    assert not starts[1].any() and not ends[1].any()


def test_numbers_of_segments_and_labels_must_agree():
    with pytest.raises(ValueError, match="window 1 has 2 segments but 1 labels"):
        as_truth([torch.zeros(0, 2), torch.zeros(2, 2)], [torch.zeros(0), torch.zeros(1)], 3)
