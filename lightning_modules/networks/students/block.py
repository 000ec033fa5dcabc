"""A block of the streaming trunk: an encoder block of the teacher with causal attention in place of full attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers.linear import Mlp
from ..layers.trunk_size import NORM_EPS
from ..streaming import State, StreamingModule
from .causal_attention import CausalAttention


class StreamingBlock(StreamingModule[State]):
    """A causal attention with its residual, then the MLP: (B, T, N, C) -> (B, T, N, C)."""

    def __init__(self, dim: int, mlp_ratio: float, attention: CausalAttention[State]) -> None:
        super().__init__()
        self.attention = attention
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, round(dim * mlp_ratio))
        self.receptive_field = attention.receptive_field

    def initial_state(
        self,
        batch_size: int,
        num_patches: int | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        return self.attention.initial_state(batch_size, num_patches, device=device, dtype=dtype)

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        tokens, state = self.attention(tokens, state)
        return tokens + self.mlp(self.norm2(tokens)), state
