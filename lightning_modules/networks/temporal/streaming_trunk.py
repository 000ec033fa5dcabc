"""The streaming student's trunk by itself: causal features of frames without its detector."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..frame_embedding import EmbeddingState, FramePairEmbedding
from ..positions import SpaceTimePositions
from ..streaming_block import StreamingBlock, causal_attention
from ..temporal_shift import ShiftMode
from ..vit import NORM_EPS, TUBELET
from .streaming_backbone import StreamingFeatures


class TrunkState(NamedTuple):
    """What a stream remembers."""

    embedding: EmbeddingState
    blocks: tuple
    """The states of the blocks, first to last."""


class StreamingTrunk(StreamingFeatures[TrunkState]):
    """Embedding and blocks of ``StreamingDetector``, whose names its parameters have; the mean over a frame's tokens.

    Shapes: (B, T, in_channels, H, W) -> (B, T, dim), H and W multiples of ``patch_size``.

    Args:
        temporal: ``tsa``, Temporal Shift Attention, or ``dsta``, Decomposed Spatial-Temporal Attention.
        in_channels: 3 for RGB or its temporal gradient, 2 for optical flow.
        frame_size: side in pixels of the frames that the position codes are made for; others resize the codes.
        dim, depth, num_heads, patch_size, mlp_ratio, shift_mode, shift_rate, lstm_dim: see ``StreamingDetector``.
    """

    def __init__(
        self,
        temporal: Literal["tsa", "dsta"],
        in_channels: int = 3,
        frame_size: int = 224,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        patch_size: int = 16,
        mlp_ratio: float = 4.0,
        shift_mode: ShiftMode = "concat_kv",
        shift_rate: float = 0.25,
        lstm_dim: int | None = None,
    ) -> None:
        super().__init__()
        if frame_size % patch_size:
            raise ValueError(f"frame_size={frame_size} does not divide into patches of {patch_size}")
        self.in_channels, self.out_channels = in_channels, dim
        self.step_shape = (in_channels, frame_size, frame_size)
        self.frame_size, self.patch_size = frame_size, patch_size
        grid = frame_size // patch_size
        self.patch_embed = FramePairEmbedding(dim, patch_size, (grid, grid), in_channels)
        self.positions = SpaceTimePositions(1, grid, dim)
        self.blocks = nn.ModuleList(
            StreamingBlock(
                dim,
                mlp_ratio,
                causal_attention(temporal, dim, num_heads, grid**2, shift_mode, shift_rate, lstm_dim),
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        # The embedding and every block look back one frame.
        self.receptive_field = None if temporal == "dsta" else depth + TUBELET

    def initial_state(
        self,
        batch_size: int,
        frame_size: tuple[int, int] | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> TrunkState:
        height, width = frame_size or (self.frame_size, self.frame_size)
        grid = (height // self.patch_size, width // self.patch_size)
        return TrunkState(
            self.patch_embed.initial_state(batch_size, grid, device=device, dtype=dtype),
            tuple(
                block.initial_state(batch_size, grid[0] * grid[1], device=device, dtype=dtype) for block in self.blocks
            ),
        )

    def forward(self, frames: Tensor, state: TrunkState) -> tuple[Tensor, TrunkState]:
        height, width = frames.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"frames of {height} x {width} do not divide into patches of {self.patch_size}")
        grid = (height // self.patch_size, width // self.patch_size)
        if tuple(state.embedding.past.shape[:3]) != (len(frames), *grid):
            raise ValueError(
                f"the state is one of {tuple(state.embedding.past.shape[:3])} (streams, rows, columns) but the frames "
                f"need {(len(frames), *grid)}; start anew with initial_state(batch_size, frame_size)"
            )
        tokens, embedding = self.patch_embed(frames, state.embedding)  # (B, T, N, C)
        tokens = tokens + self.positions(1, *grid).to(tokens.dtype)
        states = []
        for block, past in zip(self.blocks, state.blocks, strict=True):
            tokens, past = block(tokens, past)
            states.append(past)
        return self.norm(tokens).mean(2), TrunkState(embedding, tuple(states))
