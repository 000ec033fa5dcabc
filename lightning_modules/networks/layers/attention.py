"""Self-attention with VideoMAE's parameters, with and without the attention that every token received."""

from __future__ import annotations

from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linear import FEWEST_ROWS, Linear, linear

ROWS_AT_ONCE = 1024
"""Query rows whose attention map is held at a time where it is made in pieces."""
CPU_PIECE, DEVICE_PIECE = 2**21, 2**26
"""Elements of attention maps held at a time: on a CPU what its caches hold, elsewhere what keeps the device busy."""
TRAINED_MAPS = 2**24
"""Elements of attention maps held whole for the backward pass, 32 MiB of bfloat16; beyond it the fused kernel."""


@overload
def attention_and_received(query: Tensor, key: Tensor, value: Tensor, row_weights: Tensor) -> tuple[Tensor, Tensor]: ...


@overload
def attention_and_received(query: Tensor, key: Tensor, value: Tensor, row_weights: None) -> tuple[Tensor, None]: ...


def attention_and_received(
    query: Tensor, key: Tensor, value: Tensor, row_weights: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention and, where asked for, the weighted mean of the attention that every key received.

    The map is made in pieces, some rows of some heads at a time, so memory stays linear in the number of tokens.

    Shapes: query, key, value (B, H, N, D); row_weights (N,), one weight per query, or None where ``received`` is not
    needed. The output is (B, H, N, D). ``received`` is (B, N): the sum over queries of weight x attention, mean over
    heads, divided by N; it carries no gradient.
    """
    batch, heads, rows, _ = query.shape
    rows_at_once = min(rows, ROWS_AT_ONCE)
    piece = CPU_PIECE if query.device.type == "cpu" else DEVICE_PIECE
    maps_at_once = max(1, piece // (rows_at_once * key.shape[2]))
    scaled = (query * query.shape[-1] ** -0.5).flatten(0, 1)
    outputs, received = [], []
    maps = (scaled, key.flatten(0, 1), value.flatten(0, 1))
    # A graph for any batch size cannot depend on how many maps there are.
    is_any_batch = isinstance(batch, torch.SymInt)
    pieces = [maps] if is_any_batch else zip(*(part.split(maps_at_once) for part in maps), strict=True)
    for queries, keys, values in pieces:
        values = values.transpose(-2, -1).contiguous()
        attended, total = [], torch.zeros(keys.shape[:2], device=keys.device)
        for number, some in enumerate(queries.split(ROWS_AT_ONCE, dim=1)):
            attention = _times_transposed(some, keys).softmax(dim=-1)  # (maps, rows, N)
            attended.append(_times_transposed(attention, values.to(attention.dtype)))
            if row_weights is not None:
                weights = row_weights[number * ROWS_AT_ONCE :][: some.shape[1]]
                total += weights @ attention.detach().float()
        outputs.append(torch.cat(attended, dim=1))
        received.append(total)
    output = torch.cat(outputs).view(*query.shape[:3], -1)
    if row_weights is None:
        return output, None
    return output, torch.cat(received).view(batch, heads, -1).sum(1) / (heads * rows)


def _times_transposed(first: Tensor, second: Tensor) -> Tensor:
    """(M, R, I) and (M, O, I) -> (M, R, O); a single matrix goes the way of linear layers."""
    if not torch.compiler.is_compiling() and len(first) == 1:
        return linear(first, second[0])
    return first @ second.transpose(-2, -1)


def _better_in_pieces(query: Tensor) -> bool:
    """Return whether plain products are faster than torch's fused attention: in bfloat16 on a CPU, with many queries.

    There the fused kernel takes as long in bfloat16 as in float32. With 2592 tokens, 12 heads and two cores of an EPYC
    it takes 147 ms, plain products in pieces 64 ms.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.shape[-2] >= FEWEST_ROWS


def _better_plain(query: Tensor, key: Tensor) -> bool:
    """Return whether to train on maps held whole: in bfloat16 on a CPU, where they are small.

    The fused kernel's backward pass is slow there: 72 frames of 64 tokens, 4 heads, one core of an EPYC, forward and
    backward: 65 ms against 15 ms; 36 sequences of 268 tokens: 130 ms against 90 ms.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    is_small = query.shape[:-1].numel() * key.shape[-2] <= TRAINED_MAPS
    return is_small and query.device.type == "cpu" and query.dtype == torch.bfloat16


def _attend_plainly(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1, dtype=query.dtype) @ value


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention, (..., H, N, D), the quickest way there is; mask (B, 1, 1 or N, N) as in ``SelfAttention``."""
    if query.dim() > 4:  # more leading axes than one would send torch's fused attention a slow way round
        folded = (part.flatten(0, -4) for part in (query, key, value))
        return attend(*folded).unflatten(0, query.shape[:-3])
    if _better_plain(query, key):
        return _attend_plainly(query, key, value, mask)
    if mask is None and _better_in_pieces(query):
        return attention_and_received(query, key, value, None)[0]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class SelfAttention(nn.Module):
    """Multi-head self-attention whose parameters are named and shaped as VideoMAE's.

    One bias-free ``qkv`` matrix with separate query and value biases; the key bias is zero, which changes no output of
    the softmax. Shapes: (B, N, C) -> (B, N, C).
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim={dim} does not divide into num_heads={num_heads}")
        self.num_heads = num_heads
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.proj = Linear(dim, dim)

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., N, C) -> query, key and value, each (..., H, N, D)."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = self.qkv.with_bias(tokens, bias)
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2) for part in qkv.chunk(3, dim=-1)
        )
        return query, key, value

    def merge(self, heads: Tensor) -> Tensor:
        """(..., H, N, D) -> (..., N, C), projected."""
        return self.proj(heads.transpose(-3, -2).flatten(-2))

    def forward(self, tokens: Tensor, mask: Tensor | None = None, num_queries: int | None = None) -> Tensor:
        """Attend over all tokens; ``num_queries`` asks for the last so many tokens' outputs only.

        ``mask`` is boolean, broadcastable to (B, 1, queries, N), True where a key may be read.
        """
        if num_queries is None:
            query, key, value = self.project(tokens)
        else:
            query, key, value = self._project_last(tokens, num_queries)
        return self.merge(attend(query, key, value, mask))

    def _project_last(self, tokens: Tensor, num_queries: int) -> tuple[Tensor, Tensor, Tensor]:
        """Project as ``project`` does, with queries for the last ``num_queries`` tokens only."""
        dim = tokens.shape[-1]
        query = linear(tokens[..., -num_queries:, :], self.qkv.weight[:dim], self.q_bias)
        bias = torch.cat([torch.zeros_like(self.v_bias), self.v_bias])
        key, value = linear(tokens, self.qkv.weight[dim:], bias).chunk(2, dim=-1)
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2) for part in (query, key, value))
        return query, key, value

    def with_received(self, tokens: Tensor, row_weights: Tensor) -> tuple[Tensor, Tensor]:
        """Attend, and return the attention each token received under ``row_weights`` (N,): (B, N), no gradient."""
        outputs, received = attention_and_received(*self.project(tokens), row_weights)
        return self.merge(outputs.to(tokens.dtype)), received
