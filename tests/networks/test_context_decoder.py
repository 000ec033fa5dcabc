"""Parts of the context decoder by hand; the whole of it is held to the slow model in test_evad.py."""

import math

import pytest
import torch

from lightning_modules.networks.context_decoder import ContextDecoder, extend_boxes
from lightning_modules.networks.vit import EncodedClip
from tests.networks import slow_evad
from tests.networks.tiny import randomise

GRID = (2, 2, 3)


def tiny_decoder(**changes) -> ContextDecoder:
    sizes = {"encoder_dim": 8, "num_classes": 3, "dim": 8, "depth": 3, "num_heads": 2, "hidden_dim": 8, "roi_size": 2}
    return randomise(ContextDecoder(**(sizes | {"num_slots": 2, "pretrain_grid": 2} | changes))).double().eval()


def some_clip(kept=((4, 0, 2), (1, 5, 3))) -> EncodedClip:
    """Two clips of 2 slots x 2 x 3 tokens, the keyframe's six and three others."""
    tokens = torch.randn(2, 6 + len(kept[0]), 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return EncodedClip(tokens, torch.tensor(kept), (), (), GRID)


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
    torch.testing.assert_close(decoder(shuffled, BOXES, SIZES), decoder(clip, BOXES, SIZES), rtol=1e-6, atol=1e-6)


def test_a_token_matters_where_it_stands():
    decoder, clip = tiny_decoder(), some_clip()
    moved = clip._replace(kept=(clip.kept + 1) % 6)
    assert (decoder(moved, BOXES, SIZES) - decoder(clip, BOXES, SIZES)).abs().max() > 1e-3


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


def test_no_gradient_reaches_the_boxes():
    boxes = BOXES.clone().requires_grad_(True)
    tiny_decoder()(some_clip(), boxes, SIZES).sum().backward()
    assert boxes.grad is None


def test_matrices_start_xavier_uniform_with_the_mask_token_and_biases_at_zero():
    decoder = ContextDecoder(encoder_dim=32, num_classes=3, dim=64, depth=1, num_heads=2, hidden_dim=16)
    bound = math.sqrt(6 / (2 * 64))
    assert 0.8 * bound < decoder.mask_token.abs().max() <= bound
    for name, parameter in decoder.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name


def test_a_decoder_that_does_not_refine_its_context_reads_the_same_tokens_in_every_block():
    decoder = randomise(ContextDecoder(8, 3, dim=8, depth=3, num_heads=2, hidden_dim=8, refines_context=False)).eval()
    context, actors = torch.randn(2, 5, 8), torch.randn(2, 4, 8)
    logits = decoder.refine(torch.cat([context, actors], dim=1), 4, every_block=True)
    for block, block_logits in zip(decoder.blocks, logits, strict=True):
        actors = block(torch.cat([context, actors], dim=1), None)[:, -4:]
        torch.testing.assert_close(block_logits, block.classify(actors))
