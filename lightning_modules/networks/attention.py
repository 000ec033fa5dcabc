"""Self-attention with VideoMAE's parameters, with and without the attention that every token received."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS_AT_ONCE = 256
"""Query rows whose attention map is held at a time where its column means are wanted."""


def attention_and_received(query: Tensor, key: Tensor, value: Tensor, row_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax attention and the weighted mean of the attention that every key received.

    The map is made for ``ROWS_AT_ONCE`` queries at a time, so memory stays linear in the number of tokens.

    Shapes: query, key, value (B, H, N, D); row_weights (N,), one weight a query; returns the output (B, H, N, D) and
    received (B, N): the sum over queries of weight x attention, mean over heads, divided by N. ``received`` carries no
    gradient.
    """
    scaled = query * query.shape[-1] ** -0.5
    keys = key.transpose(-2, -1)
    outputs, received = [], torch.zeros(key.shape[0], key.shape[2], device=key.device, dtype=torch.float32)
    for rows, weights in zip(scaled.split(ROWS_AT_ONCE, dim=2), row_weights.split(ROWS_AT_ONCE), strict=True):
        attention = (rows @ keys).softmax(dim=-1)  # (B, H, rows, N)
        outputs.append(attention @ value.to(attention.dtype))
        with torch.no_grad():
            received += torch.einsum("bhqk,q->bk", attention.detach().float(), weights)
    return torch.cat(outputs, dim=2), received / (key.shape[1] * query.shape[2])


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
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def project(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., N, C) -> query, key and value, each (..., H, N, D)."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(tokens, self.qkv.weight, bias)
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
        return self.merge(F.scaled_dot_product_attention(query, key, value, attn_mask=mask))

    def _project_last(self, tokens: Tensor, num_queries: int) -> tuple[Tensor, Tensor, Tensor]:
        """As ``project``, with queries for the last ``num_queries`` tokens only."""
        dim = tokens.shape[-1]
        query = F.linear(tokens[..., -num_queries:, :], self.qkv.weight[:dim], self.q_bias)
        bias = torch.cat([torch.zeros_like(self.v_bias), self.v_bias])
        key, value = F.linear(tokens, self.qkv.weight[dim:], bias).chunk(2, dim=-1)
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2) for part in (query, key, value))
        return query, key, value

    def with_received(self, tokens: Tensor, row_weights: Tensor) -> tuple[Tensor, Tensor]:
        """As ``forward``, and the attention every token received under ``row_weights`` (N,): (B, N), no gradient."""
        outputs, received = attention_and_received(*self.project(tokens), row_weights)
        return self.merge(outputs.to(tokens.dtype)), received
