"""Contract of every segment head: masks, lengths, losses, imitation, decoding; it finds what it has seen."""

import pytest
import torch

from lightning_modules.networks.temporal.heads.anchor_free_head import AnchorFreeHead, AnchorFreeOutput
from lightning_modules.networks.temporal.heads.boundary_matching_head import (
    BoundaryMatchingHead,
    BoundaryMatchingOutput,
    CellMap,
    sampling_kernel,
    valid_cells,
)
from lightning_modules.networks.temporal.heads.segment_pyramid import PyramidSize
from lightning_modules.networks.temporal.suppression import SegmentSuppression


def anchor_free(in_channels=6, num_classes=3, dim=16, pyramid=None, **settings):
    size = PyramidSize(**{"dim": dim, "num_levels": 4, "num_heads": 2, "attention_window": 5} | (pyramid or {}))
    return AnchorFreeHead(in_channels, num_classes, size, **settings)


def boundary_matching(in_channels=6, num_classes=3, dim=16, cells=None, **settings):
    size = CellMap(**{"dim": 16, "max_duration": 20, "num_samples": 4} | (cells or {}))
    return BoundaryMatchingHead(in_channels, num_classes, dim, size, **settings)


HEADS = pytest.mark.parametrize("build", [anchor_free, boundary_matching])


def example(length=30, in_channels=6, counts=(2, 1), seed=0):
    """Features, a mask that ends early in the second window, segments and labels."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(counts), in_channels, length, generator=generator)
    mask = torch.ones(len(counts), length, dtype=torch.bool)
    mask[-1, -(length // 3) :] = length < 3
    start = torch.rand(len(counts), 2, generator=generator) * length / 3
    segments = [
        torch.stack([some, some + length / 3], dim=1)[:count] for some, count in zip(start, counts, strict=True)
    ]
    return features, mask, segments, [torch.arange(count) for count in counts]


def made(build, *arguments, **settings):
    torch.manual_seed(0)
    return build(*arguments, **settings).eval()


@HEADS
def test_what_lies_under_the_mask_changes_nothing_where_it_is_true(build):
    head = made(build)
    features, mask, segments, labels = example()
    garbage = features.clone()
    garbage[-1, :, -10:] = torch.tensor([1e30, torch.nan]).repeat(5)
    first, second = head(features, mask), head(garbage, mask)
    for own, other in zip(first, second, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0)
    assert head.loss(first, segments, labels)["total"] == head.loss(second, segments, labels)["total"]


@HEADS
def test_a_padded_window_gives_what_the_window_alone_gives(build):
    head = made(build).double()
    features, mask, segments, labels = example(length=20)
    features, mask = features[:1].double(), mask[:1]
    padded = torch.nn.functional.pad(features, (0, 13), value=7.0), torch.nn.functional.pad(mask, (0, 13))
    outputs, wide = head(features, mask), head(*padded)
    for own, other in zip(head.decode(outputs, 1e-4, 50), head.decode(wide, 1e-4, 50), strict=True):
        for part, whole in zip(own, other, strict=True):
            torch.testing.assert_close(part, whole)
    losses, wide_losses = head.loss(outputs, segments[:1], labels[:1]), head.loss(wide, segments[:1], labels[:1])
    for name, value in losses.items():
        torch.testing.assert_close(value, wide_losses[name])


@HEADS
@pytest.mark.parametrize("length", [1, 7, 64, 100])
def test_any_length_trains_and_decodes(build, length):
    head = made(build)
    features, mask, segments, labels = example(length)
    outputs = head(features, mask)
    losses = head.loss(outputs, segments, labels)
    losses["total"].backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())
    detected = head.decode(outputs, 0.0, 30)
    assert [len(part) for part in detected[0]] == [min(30, len(detected[0].scores))] * 3
    assert all((window.scores.diff() <= 0).all() and len(window.scores) > 0 for window in detected)


@HEADS
@pytest.mark.parametrize("num_classes", [1, 200])
def test_any_number_of_classes_and_twice_the_channels(build, num_classes):
    head = made(build, 12, num_classes)
    features, mask, segments, labels = example(in_channels=12, counts=(1, 1))
    outputs = head(features, mask)
    last = [ids + num_classes - 1 for ids in labels]
    losses = head.loss(outputs, segments, last) | {
        f"imitation/{name}": value for name, value in head.imitation(outputs, outputs).items()
    }
    assert all(value.isfinite() for value in losses.values())
    assert (head.in_channels, head.num_classes) == (12, num_classes)
    assert max(window.labels.max() for window in head.decode(outputs, 0.0, 10**6)) == num_classes - 1


@HEADS
@pytest.mark.parametrize("all_masked", [False, True])
def test_windows_without_segments_still_carry_gradient(build, all_masked):
    head = made(build)
    features, mask, _, _ = example()
    losses = head.loss(
        head(features, mask & (not all_masked)), [torch.zeros(0, 2)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2
    )
    for name, value in losses.items():
        assert value.requires_grad and value.isfinite(), name
    losses["total"].backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in head.parameters())


@HEADS
def test_bfloat16_autocast_gives_float32_outputs_near_the_same(build):
    head = made(build)
    features, mask, segments, labels = example()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = head(features, mask)
        losses = head.loss(outputs, segments, labels)
        head.imitation(outputs, outputs)
        head.decode(outputs, 0.0, 5)
    losses["total"].backward()
    expected = head.loss(head(features, mask), segments, labels)["total"]
    assert all(part.dtype in (torch.float32, torch.bool) for part in outputs)
    torch.testing.assert_close(losses["total"], expected, rtol=0.02, atol=0)


@HEADS
def test_imitation_of_oneself_is_zero_without_gradient_and_of_another_is_not(build):
    head, other = made(build), build().eval()
    for some in (head, other):  # a trained teacher has found something
        tower = some.class_tower.out if isinstance(some, AnchorFreeHead) else some.classes
        torch.nn.init.normal_(tower.weight, std=0.3)
        torch.nn.init.zeros_(tower.bias)
    features, mask, _, _ = example()
    outputs, teacher = head(features, mask), other(features, mask)
    same = head.imitation(outputs, outputs)
    assert set(same) == {"classes", "segments"}
    for value in same.values():
        torch.testing.assert_close(value, torch.zeros(()), rtol=0, atol=1e-5)
    sum(same.values()).backward()
    assert all(p.grad is None or p.grad.abs().max() < 1e-5 for p in head.parameters())
    different = head.imitation(head(features, mask), teacher)
    assert all(value > 0.01 for value in different.values())
    sum(different.values()).backward()
    assert all(parameter.grad is None for parameter in other.parameters())
    assert sum(p.grad.abs().sum() > 0 for p in head.parameters()) > 10


@HEADS
def test_imitation_reads_nothing_under_the_mask(build):
    head, other = made(build), build().eval()
    features, mask, _, _ = example()
    outputs, teacher = head(features, mask), other(features, mask)
    expected = head.imitation(outputs, teacher)
    places = outputs.mask if isinstance(head, AnchorFreeHead) else outputs.cells
    broken = torch.where(places[..., None], teacher.class_logits, 50.0)
    for name, value in head.imitation(outputs, teacher._replace(class_logits=broken)).items():
        torch.testing.assert_close(value, expected[name])


@HEADS
def test_a_batch_is_its_windows(build):
    head = made(build).double()
    features, mask, _, _ = example()
    together = head.decode(head(features.double(), mask), 1e-4, 20)
    for window in range(2):
        (alone,) = head.decode(head(features[window : window + 1].double(), mask[window : window + 1]), 1e-4, 20)
        for part, whole in zip(alone, together[window], strict=True):
            torch.testing.assert_close(part, whole)


@pytest.mark.slow
@HEADS
def test_segments_it_has_seen_are_found(build):
    torch.manual_seed(0)
    head = build(8, 3, dim=32)
    features, mask = torch.randn(1, 8, 40), torch.ones(1, 40, dtype=torch.bool)
    segments, labels = torch.tensor([[4.0, 10.0], [16.0, 33.0]]), torch.tensor([2, 0])
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        head.loss(head(features, mask), [segments], [labels])["total"].backward()
        optimizer.step()
    (found,) = head.eval().decode(head(features, mask), 0.01, 200)
    found = SegmentSuppression()(found)
    assert set(found.labels[:2].tolist()) == {0, 2}
    for segment, label in zip(segments, labels, strict=True):
        best = found.segments[(found.labels == label).nonzero()[0, 0]]
        both = torch.minimum(best[1], segment[1]) - torch.maximum(best[0], segment[0])
        assert both / (best.diff() + segment.diff() - both) > 0.7
    assert found.scores[1] > 2 * found.scores[2:].max()


def test_a_point_sees_as_far_back_as_ahead():
    head = made(anchor_free, pyramid={"attention_window": 3}, tower_depth=1)
    features = torch.randn(1, 6, 256, requires_grad=True)
    outputs = head(features, torch.ones(1, 256, dtype=torch.bool))
    assert outputs.strides[0].tolist() == [1] * 256 + [2] * 128 + [4] * 64 + [8] * 32
    for stride in (1, 2, 4, 8):
        point = ((outputs.strides[0] == stride) & (outputs.times[0] == 128.5)).nonzero().item()
        (gradient,) = torch.autograd.grad(outputs.class_logits[0, point].sum(), features, retain_graph=True)
        seen = gradient[0].abs().sum(0).nonzero().flatten() + 0.5
        assert 128.5 - seen[0] == seen[-1] - 128.5 > 4 * stride
    assert (outputs.segments[..., 0] < outputs.times).all() and (outputs.segments[..., 1] > outputs.times).all()


def test_anchor_free_loss_of_hand_made_outputs():
    head = anchor_free(num_classes=2, pyramid={"num_levels": 1}, segment_weight=2.0)
    times = torch.arange(4).float()[None] + 0.5
    segments = torch.tensor([[[0.0, 1.0], [0.0, 4.0], [1.0, 3.0], [3.0, 4.0]]])
    logits = torch.zeros(1, 4, 2)
    mask = torch.tensor([[True, True, True, False]])
    outputs = AnchorFreeOutput(logits, segments, times, torch.ones(1, 4), mask)
    losses = head.loss(outputs, [torch.tensor([[1.0, 3.0]])], [torch.tensor([1])])
    # Points 1 and 2 lie inside; four wrong and two right scores of one half.
    nothing = 0.25 * torch.log(torch.tensor(2.0))
    torch.testing.assert_close(losses["classes"], (4 * 0.75 + 2 * 0.25) * nothing / 2)
    torch.testing.assert_close(losses["segments"], torch.tensor((1 - 2 / 4) / 2))
    torch.testing.assert_close(losses["total"], losses["classes"] + 2 * losses["segments"])


def test_anchor_free_decoding_of_hand_made_outputs():
    head = anchor_free(num_classes=2)
    logits = torch.tensor([[0.9, 0.2], [0.4, 0.6], [0.99, 0.99]]).logit()[None]
    segments = torch.tensor([[[-1.0, 2.0], [1.0, 3.0], [5.0, 6.0]]])
    outputs = AnchorFreeOutput(logits, segments, None, None, torch.tensor([[True, True, False]]))
    (found,) = head.decode(outputs, 0.3, 10)
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.6, 0.4]))
    assert found.labels.tolist() == [0, 1, 0]
    assert found.segments.tolist() == [[-1, 2], [1, 3], [1, 3]]


def test_boundary_matching_decoding_of_hand_made_outputs():
    head = boundary_matching(num_classes=2, cells={"max_duration": 3})
    mask = torch.tensor([[True, True, True, False]])
    cells = valid_cells(mask, 3)
    classes, completeness, boundaries = torch.full((1, 3, 4, 2), 0.01), torch.full((1, 3, 4), 0.5), torch.ones(1, 4, 2)
    classes[0, 1, 1, 1] = 0.8  # from 1 to 3
    completeness[0, 1, 1] = 0.9
    boundaries[0, 1, 0], boundaries[0, 2, 1] = 0.7, 0.6
    classes[0, 2, 1, 0] = 1.0  # from 1 to 4, which is not all valid
    outputs = BoundaryMatchingOutput(boundaries.logit(), classes.logit(), completeness.logit(), mask, cells)
    (found,) = head.decode(outputs, 0.1, 10)
    assert found.segments.tolist() == [[1, 3]] and found.labels.tolist() == [1]
    torch.testing.assert_close(found.scores, torch.tensor([0.8 * (0.9 * 0.7 * 0.6) ** 0.5]))


def test_valid_cells_hold_only_valid_features():
    mask = torch.tensor([[True, True, False, True, True]])
    expected = [[[bool(mask[0, i : i + d + 1].all()) and i + d < 5 for i in range(5)] for d in range(7)]]
    assert valid_cells(mask, 7).tolist() == expected


def test_boundary_matching_samples_the_mean_over_each_bin():
    """On a ramp, interpolation is exact: a sample is the time in the middle of its bin."""
    length, durations, num_samples, context = 40, 8, 4, 0.25
    kernel, first = sampling_kernel(durations, num_samples, context)
    ramp = torch.arange(length) + 0.5
    for duration in range(1, durations + 1):
        span = duration * (1 + 2 * context)
        for start in (10, 17):
            read = ramp[start - first : start - first + kernel.shape[-1]]
            middles = start - context * duration + span * (torch.arange(num_samples) + 0.5) / num_samples
            torch.testing.assert_close(kernel[duration - 1] @ read, middles)


def test_sampling_after_weighing_is_weighing_of_samples():
    """The layer against BMN's order: an (N, D, T, C) tensor of samples, then one matrix over samples and channels."""
    head = made(boundary_matching).double()
    layer, tokens = head.matching, torch.randn(2, 15, 16, dtype=torch.float64)
    kernel = layer.kernel
    padded = torch.nn.functional.pad(tokens, (0, 0, layer.start, kernel.shape[-1] - 1 - layer.start))
    windows = padded.unfold(1, kernel.shape[-1], 1)  # (B, T, C, W)
    samples = torch.einsum("btcw,dnw->bdtnc", windows, kernel)
    weight = layer.weigh.weight.unflatten(0, (layer.dim, layer.num_samples))  # (C', N, C)
    torch.testing.assert_close(layer(tokens), torch.einsum("bdtnc,onc->bdto", samples, weight) + layer.bias)


@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (anchor_free, {"pyramid": {"attention_window": 4}}),
        (anchor_free, {"pyramid": {"num_heads": 3}}),
        (anchor_free, {"pyramid": {"num_levels": 0}}),
        (boundary_matching, {"cells": {"max_duration": 0}}),
        (boundary_matching, {"embedding_depth": 0}),
    ],
)
def test_impossible_settings_are_refused(build, settings):
    with pytest.raises(ValueError, match=r"got|divide"):
        build(**settings)
