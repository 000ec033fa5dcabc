"""Blocks that look one frame ahead, against attention written out frame by frame."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.networks.decomposed_attention import DecomposedAttention
from lightning_modules.networks.streaming_block import StreamingBlock
from lightning_modules.networks.temporal_shift import TemporalShiftAttention

DIM, HEADS, PATCHES = 8, 2, 5


@pytest.fixture(params=["tsa", "dsta"])
def block(request):
    torch.manual_seed(0)
    attention = (
        TemporalShiftAttention(DIM, HEADS, PATCHES, looks_ahead=True)
        if request.param == "tsa"
        else DecomposedAttention(DIM, HEADS, PATCHES, lstm_dim=0, looks_ahead=True)
    )
    torch.nn.init.normal_(attention.next_code)
    if request.param == "tsa":
        torch.nn.init.normal_(attention.past_code)
    return StreamingBlock(DIM, 2.0, attention).eval()


def frame_by_frame(block, frames, reads_previous):
    """What the block makes of all frames (T, N, C) but the last, each from the frames around it."""
    attention, outputs = block.temporal, []
    for at in range(len(frames) - 1):
        query, key, value = attention.attn.project(attention.norm1(frames[at]))
        _, next_key, next_value = attention.attn.project(attention.norm1(frames[at + 1]))
        keys = [key, next_key + attention.next_code[0]]
        values = [value, next_value + attention.next_code[1]]
        if reads_previous and at > 0:
            _, past_key, past_value = attention.attn.project(attention.norm1(frames[at - 1]))
            keys = [past_key + attention.past_code[0], *keys]
            values = [past_value + attention.past_code[1], *values]
        heads = F.scaled_dot_product_attention(query, torch.cat(keys, dim=1), torch.cat(values, dim=1))
        tokens = frames[at] + attention.attn.merge(heads)
        outputs.append(tokens + block.mlp(block.norm2(tokens)))
    return torch.stack(outputs)


@torch.no_grad()
def test_each_frame_comes_one_late_and_has_read_the_next(block):
    reads_previous = isinstance(block.temporal, TemporalShiftAttention)
    frames = torch.randn(1, 6, PATCHES, DIM)
    late, _ = block(frames, block.initial_state(1))
    expected = frame_by_frame(block, frames[0], reads_previous)
    # In the first two outputs of a stream its first frame stands in for the one before.
    torch.testing.assert_close(late[0, 2:], expected[1:])
    if not reads_previous:
        torch.testing.assert_close(late[0, 1:], expected)


@torch.no_grad()
def test_a_streams_first_frame_stands_in_for_the_one_that_is_not_there(block):
    still = torch.randn(1, 1, PATCHES, DIM)
    first, _ = block(still, block.initial_state(1))
    in_a_still_scene, _ = block(still.expand(1, 4, -1, -1), block.initial_state(1))
    torch.testing.assert_close(in_a_still_scene, first.expand(1, 4, -1, -1))
