"""Self-attention and the attention received, against whole maps."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_modules.networks.layers import attention as module
from lightning_modules.networks.layers.attention import (
    FEWEST_ROWS,
    ROWS_AT_ONCE,
    SelfAttention,
    attend,
    attention_and_received,
)
from tests.networks.detection import slow_evad
from tests.networks.tiny import randomise


@pytest.mark.parametrize("num_tokens", [5, ROWS_AT_ONCE, 2 * ROWS_AT_ONCE + 7])
def test_attention_in_pieces_of_rows_equals_the_whole_map(num_tokens):
    query, key, value = torch.randn(3, 2, 3, num_tokens, 4, dtype=torch.float64).unbind()
    weights = torch.rand(num_tokens) + 0.5
    outputs, received = attention_and_received(query, key, value, weights)
    maps = (query @ key.transpose(-2, -1) / 2).softmax(-1)
    torch.testing.assert_close(outputs, maps @ value, rtol=0, atol=1e-12)
    expected = torch.zeros(2, num_tokens, dtype=torch.float64)
    for head in range(3):
        for row in range(num_tokens):
            expected += weights[row] * maps[:, head, row]
    torch.testing.assert_close(received.double(), expected / (3 * num_tokens), rtol=1e-4, atol=1e-7)


def test_equal_weights_give_every_query_one_share_to_hand_out():
    query, key, value = torch.randn(3, 2, 3, 300, 4).unbind()
    _, received = attention_and_received(query, key, value, torch.ones(300))
    torch.testing.assert_close(received.sum(1), torch.ones(2))


def test_scores_carry_no_gradient_and_outputs_do():
    attention = randomise(SelfAttention(12, 3))
    tokens = torch.randn(2, 7, 12, requires_grad=True)
    outputs, received = attention.with_received(tokens, torch.ones(7))
    assert not received.requires_grad
    plain = attention(tokens)
    torch.testing.assert_close(outputs, plain, rtol=1e-5, atol=1e-5)
    ours, theirs = (torch.autograd.grad(out.square().sum(), tokens)[0] for out in (outputs, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_attention_equals_one_head_at_a_time_and_torch_with_a_zero_key_bias():
    attention = randomise(SelfAttention(12, 3)).double()
    tokens = torch.randn(1, 9, 12, dtype=torch.float64)
    weights = {f"a.{key}": value.numpy() for key, value in attention.state_dict().items()}
    slow, _ = slow_evad.video_attention(tokens[0].numpy(), weights, "a", 3)
    reference = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        reference.in_proj_weight.copy_(attention.qkv.weight)
        reference.in_proj_bias.copy_(torch.cat([attention.q_bias, torch.zeros(12), attention.v_bias]))
        reference.out_proj.load_state_dict(attention.proj.state_dict())
        ours = attention(tokens)
        torch.testing.assert_close(ours, reference(tokens, tokens, tokens)[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(ours[0], torch.from_numpy(slow), rtol=0, atol=1e-10)


def test_asking_for_the_last_queries_gives_the_tail_of_all():
    attention, tokens = randomise(SelfAttention(12, 3)).double(), torch.randn(2, 9, 12, dtype=torch.float64)
    mask = torch.rand(2, 1, 1, 9) > 0.3
    torch.testing.assert_close(attention(tokens, mask, 4), attention(tokens, mask)[:, -4:], rtol=0, atol=1e-12)


def test_what_may_not_be_read_does_not_matter():
    attention, tokens = randomise(SelfAttention(12, 3)), torch.randn(1, 6, 12)
    mask = torch.tensor([True, True, False, True, False, True])[None, None, None]
    alone = attention(tokens[:, mask.flatten()])
    torch.testing.assert_close(attention(tokens, mask)[:, mask.flatten()], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_tokens", [FEWEST_ROWS - 1, FEWEST_ROWS, ROWS_AT_ONCE + 5])
def test_attention_in_bfloat16_is_as_exact_in_pieces_as_fused(num_tokens, monkeypatch):
    attention, tokens = randomise(SelfAttention(12, 3)), torch.randn(2, num_tokens, 12)
    pieces = []
    monkeypatch.setattr(
        module,
        "attention_and_received",
        lambda *arguments: pieces.append(arguments) or attention_and_received(*arguments),
    )
    with torch.no_grad():
        exact = attention(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            found = attention(tokens)
    assert bool(pieces) == (num_tokens >= FEWEST_ROWS)
    torch.testing.assert_close(found.float(), exact, rtol=0.03, atol=0.03)
    with torch.autocast("cpu", torch.bfloat16):
        attention(tokens)  # gradients are wanted: whole maps or fused
    assert len(pieces) <= 1


@pytest.mark.parametrize("num_keys", [9, 20])
def test_training_in_bfloat16_on_whole_maps_has_the_gradients_of_the_fused_kernel(num_keys, monkeypatch):
    query, key, value = (torch.randn(2, 3, count, 8, requires_grad=True) for count in (9, num_keys, num_keys))
    mask = torch.rand(2, 1, 1, num_keys) > 0.3
    mask[..., 0] = True
    exact = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    upstream = torch.randn_like(exact)
    wanted = torch.autograd.grad(exact, (query, key, value), upstream)
    monkeypatch.setattr(module.F, "scaled_dot_product_attention", None)
    halves = [part.bfloat16() for part in (query, key, value)]
    found = attend(*halves, mask)
    gradients = torch.autograd.grad(found, (query, key, value), upstream.bfloat16())
    torch.testing.assert_close(found.float(), exact, rtol=0.03, atol=0.03)
    for own, reference in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(own, reference, rtol=0.05, atol=0.05)


def test_pieces_of_one_map_and_of_many_give_the_same(monkeypatch):
    query, key, value = torch.randn(3, 2, 3, 40, 4, dtype=torch.float64).unbind()
    many = attention_and_received(query, key, value, torch.ones(40))
    monkeypatch.setattr(module, "CPU_PIECE", 1)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 7)
    torch.testing.assert_close(attention_and_received(query, key, value, torch.ones(40)), many)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_frames_of_several_streams_attend_each_by_itself(dtype):
    """(B, T, H, N, D), with enough queries to be cut into pieces in bfloat16."""
    query, key, value = (torch.randn(2, 3, 2, FEWEST_ROWS, 8, dtype=dtype) for _ in range(3))
    together = attend(query, key, value)
    assert together.shape == query.shape
    for stream in range(2):
        alone = F.scaled_dot_product_attention(query[stream], key[stream], value[stream])
        torch.testing.assert_close(together[stream], alone, rtol=0.02, atol=0.02)
