"""Temporal Shift Attention: frame-wise attention in which a part of what is read comes from the previous frame.

A re-implementation from the abstract of "Distilling Offline Action Detection Models into Real-Time Streaming Models"
(Patel et al., WACV 2026). The abstract names the attention and says that it is causal, light and cached. How it shifts
is inferred from temporal shift modules (Lin et al., 2019, https://arxiv.org/abs/1811.08383), TokenShift and MSCA-KV.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..layers.attention import attend
from ..streaming import compact_copy
from .causal_attention import CausalAttention

ShiftMode = Literal["channel", "concat_kv"]


class ShiftState(NamedTuple):
    """State of the shift: features that the newest frame leaves to the next one."""

    past: Tensor
    """``channel``: its first channels (B, N, F). ``concat_kv``: its keys and values (B, 2, H, N, D)."""
    filled: Tensor
    """(B,) bool: whether there is a previous frame."""


class TemporalShiftAttention(CausalAttention[ShiftState]):
    """Attention inside each frame that also reads the previous frame: x + attention(LayerNorm(x)).

    The teacher's weights fit.

    mode:
        ``channel``: the first ``shift_rate`` of the channels that enter attention are the previous frame's
            (zeros in a stream's first frame).
        ``concat_kv``: every head reads both frames' keys and values. Those of the previous frame are marked by a
            learned code that starts at zero. A stream's first frame reads its own twice, as if the scene were still.

    Shapes: B streams, T frames of the chunk, N patches per frame, C channels: (B, T, N, C) -> (B, T, N, C).
    """

    receptive_field = 2

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_patches: int,
        mode: ShiftMode = "concat_kv",
        shift_rate: float = 0.25,
    ) -> None:
        super().__init__(dim, num_heads, num_patches)
        if not 0 < shift_rate <= 1:
            raise ValueError(f"shift_rate must be above 0 and at most 1, got {shift_rate}")
        self.mode = mode
        if mode == "concat_kv":
            self.past_code = nn.Parameter(torch.zeros(2, num_heads, 1, dim // num_heads))
        self.shifted = max(1, round(shift_rate * dim))

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that do not decay although they are matrices."""
        return {"past_code"} if self.mode == "concat_kv" else set()

    def initial_state(
        self,
        batch_size: int,
        num_patches: int | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> ShiftState:
        head_dim = self.attn.qkv.in_features // self.attn.num_heads
        patches = num_patches or self.num_patches
        shape = (patches, self.shifted) if self.mode == "channel" else (2, self.attn.num_heads, patches, head_dim)
        past = torch.zeros(batch_size, *shape, device=device, dtype=dtype)
        return ShiftState(past, torch.zeros(batch_size, dtype=torch.bool, device=device))

    def forward(self, tokens: Tensor, state: ShiftState) -> tuple[Tensor, ShiftState]:
        normed = self.norm1(tokens)
        if self.mode == "channel":
            moving, staying = normed.tensor_split([self.shifted], dim=-1)
            earlier = self._delay(moving, state.past)
            heads = attend(*self.attn.project(torch.cat([earlier, staying], dim=-1)))
            newest = moving[:, -1]
        else:
            heads, newest = self._attend_back(normed, state)
        new_state = ShiftState(compact_copy(newest, state.past), torch.ones_like(state.filled))
        return tokens + self.attn.merge(heads), new_state

    def _attend_back(self, normed: Tensor, state: ShiftState) -> tuple[Tensor, Tensor]:
        query, key, value = self.attn.project(normed)  # (B, T, H, N, D)
        moving = torch.stack([key, value], dim=2)  # (B, T, 2, H, N, D)
        earlier = self._delay(moving, state.past)
        has_past = torch.ones(moving.shape[:2], dtype=torch.bool, device=moving.device)  # (B, T)
        has_past = torch.cat([state.filled[:, None], has_past[:, 1:]], dim=1)
        # In a stream's first frame the frame itself takes its place, so that it behaves as a frame-wise ViT.
        earlier = torch.where(has_past[:, :, None, None, None, None], earlier, moving)
        past_key, past_value = earlier.unbind(2)
        key_code, value_code = self.past_code.to(key.dtype)
        key, value = torch.cat([past_key + key_code, key], 3), torch.cat([past_value + value_code, value], 3)
        return attend(query, key, value), moving[:, -1]

    @staticmethod
    def _delay(chunk: Tensor, past: Tensor) -> Tensor:
        """Replace each frame's entry by that of the frame before; the first comes from the state."""
        return torch.cat([past[:, None].to(chunk.dtype), chunk[:, :-1]], dim=1)
