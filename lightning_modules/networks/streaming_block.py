"""A block of the streaming trunk: an encoder block of the teacher with causal attention in place of full attention."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from .decomposed_attention import DecomposedAttention
from .linear import Mlp
from .streaming import StreamingModule
from .temporal_shift import ShiftMode, TemporalShiftAttention
from .vit import NORM_EPS


class StreamingBlock(StreamingModule):
    """A causal attention with its residual, then the MLP: (B, T, N, C) -> (B, T, N, C)."""

    def __init__(self, dim: int, mlp_ratio: float, temporal: TemporalShiftAttention | DecomposedAttention) -> None:
        super().__init__()
        self.temporal = temporal
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, round(dim * mlp_ratio))
        self.receptive_field = temporal.receptive_field

    def initial_state(self, batch_size: int, num_patches: int | None = None, *, device=None, dtype=None):
        return self.temporal.initial_state(batch_size, num_patches, device=device, dtype=dtype)

    def forward(self, tokens: Tensor, state):
        tokens, state = self.temporal(tokens, state)
        return tokens + self.mlp(self.norm2(tokens)), state


def causal_attention(
    temporal: Literal["tsa", "dsta"],
    dim: int,
    num_heads: int,
    num_patches: int,
    shift_mode: ShiftMode = "concat_kv",
    shift_rate: float = 0.25,
    lstm_dim: int | None = None,
) -> TemporalShiftAttention | DecomposedAttention:
    """``tsa``, Temporal Shift Attention, or ``dsta``, Decomposed Spatial-Temporal Attention."""
    if temporal == "tsa":
        return TemporalShiftAttention(dim, num_heads, num_patches, shift_mode, shift_rate)
    return DecomposedAttention(dim, num_heads, num_patches, lstm_dim)
