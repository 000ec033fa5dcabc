"""Parts of the context decoder by hand; the whole of it is held to the slow model in test_evad.py."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from lightning_modules.networks.detection.context_decoder import ContextDecoder, extend_boxes
from lightning_modules.networks.detection.vit import EncodedClip
from lightning_modules.networks.layers.prepared import prepare_for_inference
from lightning_modules.networks.layers.trunk_size import TokenLayout
from tests.networks.detection import slow_evad
from tests.networks.tiny import randomise

GRID = (2, 2, 3)


def tiny_decoder(**changes) -> ContextDecoder:
    sizes = {"dim": 8, "depth": 3, "num_heads": 2, "hidden_dim": 8, "roi_size": 2}
    tokens = TokenLayout(8, 16, changes.pop("num_slots", 2), 2, "middle", 4)
    return randomise(ContextDecoder(tokens, 3, **(sizes | changes))).double().eval()


def classify(decoder: ContextDecoder, clip: EncodedClip, boxes: Tensor, every_block: bool = False) -> Tensor:
    """Action logits of the clip's actors."""
    return decoder(decoder.clip_context(clip), boxes, SIZES, every_block)


def context_of(reads_context: bool) -> str:
    return "refined" if reads_context else "none"


def some_clip(kept=((4, 0, 2), (1, 5, 3))) -> EncodedClip:
    """Two clips of 2 slots x 2 x 3 tokens, the keyframe's six and three others."""
    tokens = torch.randn(2, 6 + len(kept[0]), 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return EncodedClip(tokens, torch.tensor(kept), (), (), GRID)


LONG_GRID = (4, 2, 3)
SWITCHES = [*product((True, False), repeat=2)]
"""Of the context and of the temporal RoI."""


def long_decoder(reads_context: bool, temporal_roi: bool, **changes) -> ContextDecoder:
    """For clips of four slots, the same weights whatever the switches say."""
    return tiny_decoder(num_slots=4, context=context_of(reads_context), temporal_roi=temporal_roi, **changes)


def long_clip() -> EncodedClip:
    """Two clips of 4 slots x 2 x 3 tokens, four of the eighteen outside the keyframe kept."""
    kept = torch.tensor([[0, 7, 8, 17], [3, 5, 12, 14]])
    tokens = torch.randn(2, 6 + 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return EncodedClip(tokens, kept, (), (), LONG_GRID)


BOXES = torch.tensor([[[2.0, 3, 30, 25], [-9, 5, 60, 20]], [[0, 0, 48, 32], [5, 5, 6, 6]]])
SIZES = torch.tensor([[32, 48], [30, 40]])


@pytest.mark.parametrize(
    ("box", "extension", "expected"),
    [
        ([10, 20, 29, 59], (0.4, 0.2), [6, 16, 33, 63]),  # 20 x 40 pixels: 4 on each side in x and in y
        ([10, 20, 29, 59], (0.0, 0.0), [10, 20, 29, 59]),
        ([-5, -7, 300, 300], (0.0, 0.0), [0, 0, 99, 79]),  # kept inside 80 x 100 pixels
        ([200, 200, 300, 300], (0.4, 0.2), [99, 79, 99, 79]),
    ],
)
def test_boxes_grow_by_fractions_and_stay_inside_the_frame(box, extension, expected):
    boxes = torch.tensor([[box]], dtype=torch.float32)
    extended = extend_boxes(boxes, extension, torch.tensor([[80, 100]]))
    torch.testing.assert_close(extended, torch.tensor([[expected]], dtype=torch.float32))
    slow = slow_evad.extend_box(boxes[0, 0].double().numpy(), extension, (80, 100))
    torch.testing.assert_close(extended[0, 0].double(), torch.from_numpy(slow), rtol=1e-6, atol=1e-5)


def test_the_last_block_on_actors_alone_equals_computing_everything():
    decoder = tiny_decoder()
    sequence = torch.randn(2, 11, 8, dtype=torch.float64)
    mask = torch.rand(2, 1, 1, 11) > 0.3
    mask[..., -4:] = True
    for used in (None, mask):
        everything, logits = sequence, []
        for block in decoder.blocks:
            everything = block(everything, used)
            logits.append(block.classify(everything[:, -4:]))
        torch.testing.assert_close(decoder.refine(sequence, 4, used, every_block=True), torch.stack(logits))
        torch.testing.assert_close(decoder.refine(sequence, 4, used), logits[-1][None])


def test_the_order_in_which_kept_tokens_are_handed_over_does_not_matter():
    decoder, clip = tiny_decoder(), some_clip()
    order = torch.tensor([2, 0, 1])
    shuffled = clip._replace(
        tokens=torch.cat([clip.tokens[:, :6], clip.tokens[:, 6:][:, order]], dim=1), kept=clip.kept[:, order]
    )
    torch.testing.assert_close(classify(decoder, shuffled, BOXES), classify(decoder, clip, BOXES), rtol=1e-6, atol=1e-6)


def test_a_token_matters_where_it_stands():
    decoder, clip = tiny_decoder(), some_clip()
    moved = clip._replace(kept=(clip.kept + 1) % 6)
    assert (classify(decoder, moved, BOXES) - classify(decoder, clip, BOXES)).abs().max() > 1e-3


def test_actors_are_pooled_by_maximum_over_bins_and_weighted_mean_over_slots():
    decoder = tiny_decoder(roi_extension=(0.0, 0.0))
    canvas = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    weights = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]])
    ours = decoder.pool_actors(canvas, BOXES, SIZES, GRID[1:], weights)
    for item in range(2):
        for actor in range(2):
            box = slow_evad.extend_box(BOXES[item, actor].double().numpy(), (0.0, 0.0), SIZES[item].tolist())
            slots = [
                torch.from_numpy(slow_evad.roi_align(slot.T.reshape(8, 2, 3).numpy(), box, 2, 1 / 16)).amax((1, 2))
                for slot in canvas[item]
            ]
            expected = sum(weight * slot for weight, slot in zip(weights[item].tolist(), slots, strict=True))
            torch.testing.assert_close(ours[item, actor], expected, rtol=1e-4, atol=1e-5)
    equal = torch.full((2, 3), 1 / 3)
    torch.testing.assert_close(
        decoder.pool_actors(canvas, BOXES, SIZES, GRID[1:]),
        decoder.pool_actors(canvas, BOXES, SIZES, GRID[1:], equal),
        rtol=1e-5,
        atol=1e-6,
    )


@torch.no_grad()
def test_prepared_for_inference_it_pools_the_same_of_several_scenes():
    decoder = tiny_decoder().float()
    canvas, weights = torch.randn(2, 3, 6, 8), torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]])
    plain = decoder.pool_actors(canvas, BOXES, SIZES, GRID[1:], weights)
    prepare_for_inference(decoder)
    prepared = decoder.pool_actors(canvas, BOXES, SIZES, GRID[1:], weights)
    assert not torch.equal(prepared, plain)  # another way round, to rounding
    torch.testing.assert_close(prepared, plain, rtol=1e-5, atol=1e-5)


def test_no_gradient_reaches_the_boxes():
    boxes = BOXES.clone().requires_grad_(True)
    classify(tiny_decoder(), some_clip(), boxes).sum().backward()
    assert boxes.grad is None


def test_matrices_start_xavier_uniform_with_the_mask_token_and_biases_at_zero():
    decoder = ContextDecoder(TokenLayout(32, 16, 8, 14, "middle", 4), 3, dim=64, depth=1, num_heads=2, hidden_dim=16)
    bound = math.sqrt(6 / (2 * 64))
    assert 0.8 * bound < decoder.mask_token.abs().max() <= bound
    for name, parameter in decoder.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name


def test_a_decoder_that_does_not_refine_its_context_reads_the_same_tokens_in_every_block():
    decoder = tiny_decoder(context="read").float()
    context, actors = torch.randn(2, 5, 8), torch.randn(2, 4, 8)
    logits = decoder.refine(torch.cat([context, actors], dim=1), 4, every_block=True)
    for block, block_logits in zip(decoder.blocks, logits, strict=True):
        actors = block(torch.cat([context, actors], dim=1), None)[:, -4:]
        torch.testing.assert_close(block_logits, block.classify(actors))


def logits_by_hand(decoder: ContextDecoder, clip: EncodedClip, reads_context: bool, temporal_roi: bool) -> Tensor:
    """(D, B, P, classes) of ``long_clip``, token by token; the keyframe is the third of the four slots."""
    tokens, codes, logits = decoder.encoder_to_decoder(clip.tokens), decoder.positions(*clip.grid), []
    for item in range(2):
        slots = [[decoder.mask_token[0, 0] + code for code in codes[slot]] for slot in range(4)]
        slots[2] = [*(tokens[item, :6] + codes[2])]
        others = []
        for token, place in zip(tokens[item, 6:], clip.kept[item].tolist(), strict=True):
            slot, patch = (0, 1, 3)[place // 6], place % 6
            slots[slot][patch] = token + codes[slot, patch]
            others.append(slots[slot][patch])
        actors = []
        for box in BOXES[item]:
            box = slow_evad.extend_box(box.double().numpy(), decoder.roi_extension, SIZES[item].tolist())
            pooled = [
                torch.from_numpy(slow_evad.roi_align(torch.stack(slot).T.reshape(8, 2, 3).numpy(), box, 2, 1 / 16))
                for slot in (slots if temporal_roi else slots[2:3])
            ]
            actors.append(torch.stack([crop.amax(dim=(1, 2)) for crop in pooled]).mean(dim=0))
        sequence = torch.stack([*slots[2], *others, *actors] if reads_context else actors)[None]
        for block in decoder.blocks:
            sequence = block(sequence, None)
            logits.append(block.classify(sequence[:, -2:]))
    return torch.cat(logits).unflatten(0, (2, -1)).transpose(0, 1)


@pytest.mark.parametrize(("reads_context", "temporal_roi"), SWITCHES)
def test_with_and_without_context_and_temporal_roi_it_equals_the_decoder_by_hand(reads_context, temporal_roi):
    decoder, clip = long_decoder(reads_context, temporal_roi), long_clip()
    with torch.no_grad():
        expected = logits_by_hand(decoder, clip, reads_context, temporal_roi)
        # Sampling matrices of boxes are in float32.
        torch.testing.assert_close(classify(decoder, clip, BOXES, every_block=True), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(classify(decoder, clip, BOXES), expected[-1:], rtol=1e-4, atol=1e-5)


def change_of_actions(decoder: ContextDecoder, clip: EncodedClip, tokens: slice) -> float:
    """By how much the actions of two actors in the first cell change when the named tokens do."""
    boxes = torch.tensor([[[0.0, 0, 6, 6], [1, 1, 7, 5]]] * 2)
    changed = clip.tokens.clone()
    changed[:, tokens] += 1 + changed[:, tokens].abs()
    with torch.no_grad():
        before, after = (classify(decoder, version, boxes) for version in (clip, clip._replace(tokens=changed)))
    return float((after - before).abs().max())


KEYFRAME_UNDER_THE_BOXES, KEYFRAME_OUTSIDE, OTHER_SLOTS = slice(0, 1), slice(1, 6), slice(6, None)


def test_without_context_actions_do_not_depend_on_tokens_outside_the_boxes():
    decoder, clip = long_decoder(False, True, roi_extension=(0.0, 0.0)), long_clip()
    outside = clip._replace(kept=torch.tensor([[1, 7, 8, 17], [3, 5, 13, 14]]))  # none in the first cell of its slot
    assert change_of_actions(decoder, outside, KEYFRAME_OUTSIDE) == 0
    assert change_of_actions(decoder, outside, OTHER_SLOTS) == 0
    assert change_of_actions(decoder, outside, KEYFRAME_UNDER_THE_BOXES) > 1e-3
    reading = long_decoder(True, True, roi_extension=(0.0, 0.0))
    assert change_of_actions(reading, outside, KEYFRAME_OUTSIDE) > 1e-3
    assert change_of_actions(reading, outside, OTHER_SLOTS) > 1e-3


def test_without_temporal_roi_other_slots_reach_the_actors_through_the_context_alone():
    clip = long_clip()
    under = clip._replace(kept=torch.tensor([[0, 6, 8, 12], [0, 5, 6, 14]]))  # some in the first cell of their slot
    assert change_of_actions(long_decoder(False, False), under, OTHER_SLOTS) == 0
    assert change_of_actions(long_decoder(True, False), under, OTHER_SLOTS) > 1e-3
    assert change_of_actions(long_decoder(False, True), under, OTHER_SLOTS) > 1e-3


def test_without_context_a_longer_sequence_and_its_mask_are_cut_to_the_actors():
    decoder, sequence = tiny_decoder(context="none"), torch.randn(2, 11, 8, dtype=torch.float64)
    mask = torch.ones(2, 1, 1, 11, dtype=torch.bool)
    mask[0, ..., -1] = False
    expected = decoder.refine(sequence[:, -4:], 4, mask[..., -4:], every_block=True)
    torch.testing.assert_close(decoder.refine(sequence, 4, mask, every_block=True), expected, rtol=0, atol=0)
    assert not torch.allclose(decoder.refine(sequence, 4, every_block=True), expected)


@pytest.mark.parametrize(("reads_context", "temporal_roi"), SWITCHES)
def test_the_switches_change_no_weight_and_what_is_trained_receives_a_gradient(reads_context, temporal_roi):
    torch.manual_seed(0)
    plain = tiny_decoder()
    torch.manual_seed(0)
    decoder = tiny_decoder(context=context_of(reads_context), temporal_roi=temporal_roi).train()
    torch.testing.assert_close(decoder.state_dict(), plain.state_dict(), rtol=0, atol=0)
    classify(decoder, some_clip(), BOXES, every_block=True).square().sum().backward()
    trained = {name for name, parameter in decoder.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in decoder.named_parameters() if parameter.grad is not None}
    untrained = plain.state_dict().keys() - trained
    assert untrained == (set() if temporal_roi else {"mask_token"})
