"""Attention inside each frame alone: what a student's attention over time is measured against."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .causal_attention import CausalAttention


class NoState(NamedTuple):
    """State of a stream that remembers nothing."""

    nothing: Tensor
    """(B, 0)."""


class FrameAttention(CausalAttention[NoState]):
    """x + attention(LayerNorm(x)) inside each frame; has the teacher's weights and no other.

    Shapes: B streams, T frames of the chunk, N patches per frame, C channels: (B, T, N, C) -> (B, T, N, C).
    """

    receptive_field = 1

    def initial_state(
        self,
        batch_size: int,
        num_patches: int | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> NoState:
        return NoState(torch.zeros(batch_size, 0, device=device, dtype=dtype))

    def forward(self, tokens: Tensor, state: NoState) -> tuple[Tensor, NoState]:
        return tokens + self.attn(self.norm1(tokens)), NoState(state.nothing.clone())
