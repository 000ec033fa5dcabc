"""The trunk of streaming networks: the teacher's ViT, one frame at a time, with causal attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..layers.constants import constant
from ..layers.positions import SpaceTimePositions
from ..layers.stem import ConvolutionalStem, embedded, pixel_size
from ..layers.trunk_size import NORM_EPS, TUBELET, TokenLayout, TrunkSize
from ..streaming import StreamingModule

# Configs name attentions by their class alone, which is looked up among what is imported.
from . import decomposed_attention, frame_attention, temporal_shift  # noqa: F401
from .block import StreamingBlock
from .causal_attention import AttentionFactory
from .frame_embedding import EmbeddingState, FramePairEmbedding


class EncodedFrames(NamedTuple):
    """Outputs of the trunk for a chunk: T frames of B streams, N = h w tokens each."""

    tokens: Tensor
    """(B, T, N, C) after the last block, normed."""
    maps: tuple[Tensor, ...]
    """(B, T, C, h, w) after each of ``pyramid_layers``."""
    before_last: Tensor
    """(B, T, N, C): the tokens that enter the last block."""


class TrunkState(NamedTuple):
    """State of a stream."""

    embedding: EmbeddingState
    blocks: tuple[Any, ...]
    """The states of the blocks, first to last."""


class StreamingTrunk(StreamingModule[TrunkState]):
    """Causal tokens of frames, for detection and for temporal networks.

    Each frame makes one slot. It is embedded with the frame before it, like a tubelet of the teacher, and always has
    the position code of the teacher's keyframe slot. Weights of a ``VideoViT`` of the same size fit.

    Shapes: normalised frames (B, T, in_channels, H, W), H and W multiples of the patch size, or a stem's maps of them
    -> ``EncodedFrames``.

    Args:
        size: see ``TrunkSize``.
        attention: makes the attention of a block: ``TemporalShiftAttention``, ``DecomposedAttention``, or
            ``FrameAttention``, which looks at no other frame.
        learned_positions, stem: see ``VideoViT``.
    """

    def __init__(
        self,
        size: TrunkSize,
        attention: AttentionFactory,
        learned_positions: bool = False,
        stem: ConvolutionalStem | None = None,
    ) -> None:
        super().__init__()
        self.size, self.stem = size, stem
        grid = size.grid
        patch_size, channels = embedded(size, stem)
        self.patch_embed = FramePairEmbedding(size.dim, patch_size, (grid, grid), channels)
        self.positions = SpaceTimePositions(size.num_slots, grid, size.dim, learned_positions, size.keyframe)
        blocks = [
            StreamingBlock(size.dim, size.mlp_ratio, attention(size.dim, size.num_heads, grid**2))
            for _ in range(size.depth)
        ]
        self.blocks: Sequence[StreamingBlock[Any]] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.norm = nn.LayerNorm(size.dim, eps=NORM_EPS)
        fields = [block.receptive_field for block in blocks]
        bounded = [field for field in fields if field is not None]
        self.receptive_field = TUBELET + sum(field - 1 for field in bounded) if len(bounded) == len(fields) else None

    @property
    def layout(self) -> TokenLayout:
        """Sizes of the tokens that a detection head depends on."""
        return self.size.layout

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of patches of a frame."""
        size = self.size.patch_size
        if height % size or width % size:
            raise ValueError(f"frames of {height} x {width} do not divide into patches of {size}")
        return height // size, width // size

    def initial_state(
        self,
        batch_size: int,
        frame_size: tuple[int, int] | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> TrunkState:
        """``frame_size`` is the height and width of the frames to come; square at ``pretrain_size`` by default."""
        rows, columns = self.grid_of(*(frame_size or (self.size.pretrain_size,) * 2))
        return TrunkState(
            self.patch_embed.initial_state(batch_size, (rows, columns), device=device, dtype=dtype),
            tuple(block.initial_state(batch_size, rows * columns, device=device, dtype=dtype) for block in self.blocks),
        )

    def forward(self, frames: Tensor, state: TrunkState) -> tuple[EncodedFrames, TrunkState]:
        grid = self.grid_of(*pixel_size(frames, self.stem))
        if self.stem is not None:
            frames = self.stem(frames)
        # Of the shape: `len` would make the number of streams a constant of an exported graph.
        needed = (frames.shape[0], *grid, self.size.dim)
        if tuple(state.embedding.past.shape) != needed:
            raise ValueError(
                f"the state is of {tuple(state.embedding.past.shape)} (streams, rows, columns, channels) but the "
                f"frames need {needed}. When the number of streams or the size of frames changes, start anew with "
                "initial_state(batch_size, frame_size)"
            )
        tokens, embedding = self.patch_embed(frames, state.embedding)  # (B, T, N, C)
        keyframe_slot = constant((self.positions.keyframe_slot,), frames, torch.long)
        tokens = tokens + self.positions.slots(keyframe_slot, *grid).to(tokens.dtype)
        maps: dict[int, Tensor] = {}
        states, before = [], tokens
        for layer, (block, past) in enumerate(zip(self.blocks, state.blocks, strict=True)):
            before = tokens
            tokens, past = block(tokens, past)
            states.append(past)
            if layer in self.size.pyramid_layers:
                maps[layer] = tokens.transpose(2, 3).unflatten(3, grid)  # (B, T, C, h, w)
        in_order = tuple(maps[layer] for layer in self.size.pyramid_layers)
        return EncodedFrames(self.norm(tokens), in_order, before), TrunkState(embedding, tuple(states))

    def received(self, encoded: EncodedFrames) -> Tensor:
        """Return the attention (B, T, N) that each token receives inside its frame in the last block."""
        return self.blocks[-1].attention.received(encoded.before_last)

    def new_parameters(self) -> set[str]:
        """Return the names of parameters that a clip's trunk has no weights for."""
        return {
            f"blocks.{layer}.attention.{name}"
            for layer, block in enumerate(self.blocks)
            for name in block.attention.new_parameters()
        }
