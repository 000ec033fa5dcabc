"""A block of the streaming trunk: an encoder block of the teacher with causal attention in place of full attention."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from .decomposed_attention import DecomposedAttention
from .linear import Mlp
from .pending_frame import PendingFrame, no_frame, with_pending
from .streaming import StreamingModule
from .temporal_shift import ShiftMode, TemporalShiftAttention
from .vit import NORM_EPS


class AheadState(NamedTuple):
    """The state of a block that looks ahead."""

    temporal: Any
    """Its attention's, before the frame that waits."""
    pending: PendingFrame


class StreamingBlock(StreamingModule):
    """A causal attention with its residual, then the MLP: (B, T, N, C) -> (B, T, N, C).

    One whose attention looks ahead gives the frames that came one earlier than those it gets.
    """

    def __init__(self, dim: int, mlp_ratio: float, temporal: TemporalShiftAttention | DecomposedAttention) -> None:
        super().__init__()
        self.temporal = temporal
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, round(dim * mlp_ratio))
        looks_back = temporal.receptive_field
        self.receptive_field = looks_back and looks_back + temporal.looks_ahead

    def initial_state(self, batch_size: int, num_patches: int | None = None, *, device=None, dtype=None):
        temporal = self.temporal.initial_state(batch_size, num_patches, device=device, dtype=dtype)
        if not self.temporal.looks_ahead:
            return temporal
        patches, dim = num_patches or self.temporal.num_patches, self.norm2.normalized_shape[0]
        return AheadState(temporal, no_frame(batch_size, patches, dim, device, dtype))

    def forward(self, tokens: Tensor, state):
        if self.temporal.looks_ahead:
            tokens, pending = with_pending(tokens, state.pending)
            tokens, temporal = self.temporal(tokens, state.temporal)
            state = AheadState(temporal, pending)
        else:
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
    looks_ahead: bool = False,
) -> TemporalShiftAttention | DecomposedAttention:
    """``tsa``, Temporal Shift Attention, or ``dsta``, Decomposed Spatial-Temporal Attention."""
    if temporal == "tsa":
        return TemporalShiftAttention(dim, num_heads, num_patches, shift_mode, shift_rate, looks_ahead)
    return DecomposedAttention(dim, num_heads, num_patches, lstm_dim, looks_ahead)
