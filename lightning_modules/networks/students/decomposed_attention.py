"""Decomposed Spatial-Temporal Attention: attention inside the frame, an LSTM over time.

This is a re-implementation from the abstract of "Distilling Offline Action Detection Models into Real-Time Streaming
Models" (Patel et al., WACV 2026). The abstract names the two parts; their order, width and gate are our choices.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..layers.linear import Linear
from ..layers.lstm import LSTM
from ..layers.trunk_size import NORM_EPS
from .causal_attention import CausalAttention


class RecurrentState(NamedTuple):
    """The LSTM's hidden and cell values of every patch, (B, N, R) each."""

    hidden: Tensor
    cell: Tensor


class DecomposedAttention(CausalAttention[RecurrentState]):
    """s = x + attention(LayerNorm(x)) inside the frame, then s + gate * LSTM(LayerNorm(s)) over time.

    The LSTM's weights are shared by all patches, each of which has its own state. What leads out of it starts at zero,
    so an untrained block is a block of the frame-wise ViT whose weights it took.

    Shapes: B streams, T frames of the chunk, N patches per frame, C channels, R = lstm_dim: (B, T, N, C) -> (B, T, N,
        C).
    """

    receptive_field = None

    def __init__(self, dim: int, num_heads: int, num_patches: int, lstm_dim: int | None = None) -> None:
        super().__init__(dim, num_heads, num_patches)
        self.lstm_dim = dim // 4 if lstm_dim is None else lstm_dim
        self.temporal_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.into_lstm = Linear(dim, self.lstm_dim) if self.lstm_dim != dim else nn.Identity()
        self.lstm = LSTM(self.lstm_dim)
        self.out_of_lstm = Linear(self.lstm_dim, dim)
        # Zero is the output projection, not the gate: behind a random map its gradient is noise and it never opened.
        nn.init.zeros_(self.out_of_lstm.weight)
        nn.init.zeros_(self.out_of_lstm.bias)
        # As small as it is, out_of_lstm may learn ten times as fast as the weights of the teacher and move as they do.
        self.gate = nn.Parameter(torch.full((dim,), 0.1))

    def initial_state(
        self,
        batch_size: int,
        num_patches: int | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> RecurrentState:
        shape = (batch_size, num_patches or self.num_patches, self.lstm_dim)
        return RecurrentState(
            torch.zeros(shape, device=device, dtype=dtype), torch.zeros(shape, device=device, dtype=dtype)
        )

    def forward(self, tokens: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        tokens = tokens + self.attn(self.norm1(tokens))
        remembered, new_state = self._remember(self.into_lstm(self.temporal_norm(tokens)), state)
        return tokens + self.gate * self.out_of_lstm(remembered.to(tokens.dtype)), new_state

    def _remember(self, inputs: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        """(B, T, N, R) through the LSTM, every patch a sequence of its own."""
        batch, frames, patches, _ = inputs.shape
        sequences = inputs.transpose(1, 2).flatten(0, 1)  # (B N, T, R)
        # In the state's precision: under autocast a cell that adds up over thousands of frames would round away.
        with torch.autocast(inputs.device.type, enabled=False):
            past = (part.flatten(0, 1) for part in state)
            outputs, hidden, cell = self.lstm(sequences.to(state.hidden.dtype), *past)
        outputs = outputs.view(batch, patches, frames, -1).transpose(1, 2)
        return outputs, RecurrentState(hidden.view_as(state.hidden), cell.view_as(state.cell))
