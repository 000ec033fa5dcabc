"""The teacher's tubelet embedding as a stream: each frame is embedded together with the one before it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.trunk_size import TUBELET
from ..streaming import StreamingModule, compact_copy


class EmbeddingState(NamedTuple):
    """State of the embedding: the newest frame's part of the next one's tokens."""

    past: Tensor
    """(B, h, w, C): the newest frame under the kernel's first time step."""
    filled: Tensor
    """(B,) bool: whether there is a previous frame."""


class FramePairEmbedding(StreamingModule[EmbeddingState]):
    """Tokens of the tubelet that ends with each frame, with the kernel of the teacher's ``TubeletEmbedding``.

    The kernel's first time step reads the previous frame, its second the frame itself. So motion between the two is in
    the tokens from the start, as in the teacher's. A stream's first frame is its own predecessor: a still scene gives
    every frame the tokens that the teacher's slot of that scene has.

    Shapes: frames (B, T, in_channels, H, W) -> tokens (B, T, N, C), N = h w patches of ``patch_size`` pixels.
    """

    receptive_field = TUBELET

    def __init__(self, dim: int, patch_size: int, grid: tuple[int, int], in_channels: int = 3) -> None:
        super().__init__()
        kernel = (TUBELET, patch_size, patch_size)
        self.proj = nn.Conv3d(in_channels, dim, kernel_size=kernel, stride=kernel)
        self.grid = grid

    def initial_state(
        self,
        batch_size: int,
        grid: tuple[int, int] | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> EmbeddingState:
        height, width = grid or self.grid
        past = torch.zeros(batch_size, height, width, self.proj.out_channels, device=device, dtype=dtype)
        return EmbeddingState(past, torch.zeros(batch_size, dtype=torch.bool, device=device))

    def forward(self, frames: Tensor, state: EmbeddingState) -> tuple[Tensor, EmbeddingState]:
        # Both time steps of the kernel in one convolution; each frame is read once.
        kernels = torch.cat(self.proj.weight.unbind(2))  # (2 C, in_channels, p, p), the first time step first
        both = F.conv2d(frames.flatten(0, 1), kernels, stride=self.proj.stride[1:])
        grid = both.shape[-2:]
        both = both.flatten(2).transpose(1, 2).unflatten(0, frames.shape[:2])  # (B, T, N, 2 C)
        as_past, as_newest = both.chunk(2, dim=-1)
        earlier = torch.cat([state.past.flatten(1, 2)[:, None].to(both.dtype), as_past[:, :-1]], dim=1)
        later = state.filled.new_ones(frames.shape[0], frames.shape[1] - 1)
        has_past = torch.cat([state.filled[:, None], later], dim=1)  # (B, T)
        earlier = torch.where(has_past[..., None, None], earlier, as_past)
        newest = as_past[:, -1].unflatten(1, grid)
        new_state = EmbeddingState(compact_copy(newest, state.past), torch.ones_like(state.filled))
        bias: Any = self.proj.bias  # a convolution may have none; this one does
        return earlier + as_newest + bias.to(both.dtype), new_state
