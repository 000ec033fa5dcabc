"""The plain video ViT of VideoMAE and EVAD, with token dropout and the keyframe's maps on the way."""

from __future__ import annotations

from itertools import accumulate
from operator import mul
from typing import NamedTuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..layers.attention import SelfAttention
from ..layers.linear import Mlp
from ..layers.positions import SpaceTimePositions, keyframe_slot
from ..layers.stem import ConvolutionalStem, embedded
from ..layers.trunk_size import NORM_EPS, TUBELET, TokenLayout, TrunkSize
from .token_dropout import KeyframeTokenDropout, KeyOrder


class EncodedClip(NamedTuple):
    """Outputs of the encoder for B clips of T' slots on an h x w grid (S = h w tokens per slot)."""

    tokens: Tensor
    """(B, S + M, C), normed: the keyframe slot's tokens, then the M others that were kept."""
    kept: Tensor
    """(B, M) int64: places of the others, counted over the slots in order of time without the keyframe slot."""
    maps: tuple[Tensor, ...]
    """The keyframe's (B, C, h, w) after each of ``pyramid_layers``."""
    kept_by_layer: tuple[Tensor, ...]
    """``kept`` after each dropout layer."""
    grid: tuple[int, int, int]
    """T', h, w."""


class TubeletEmbedding(nn.Module):
    """Conv3d over tubelets: clips (B, in_channels, T, H, W) or a stem's maps of them -> (B, T', h w, C)."""

    def __init__(self, dim: int, patch_size: int, in_channels: int = 3) -> None:
        super().__init__()
        kernel = (TUBELET, patch_size, patch_size)
        self.proj = nn.Conv3d(in_channels, dim, kernel_size=kernel, stride=kernel)

    def forward(self, clips: Tensor) -> Tensor:
        return self.proj(clips).permute(0, 2, 3, 4, 1).flatten(2, 3)


class EncoderBlock(nn.Module):
    """Pre-norm transformer block; with ``dropout`` it drops tokens between its attention and its MLP."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        dropout: KeyframeTokenDropout | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = SelfAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, round(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.dropout = dropout

    def forward(self, tokens: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S + M, C) and places (B, M) -> the same, fewer of both where the block drops tokens."""
        if self.dropout is None or kept.shape[1] == 0:  # a clip of the keyframe slot alone has nothing to drop
            tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        else:
            num_tokens = tokens.shape[1]
            weights = self.dropout.query_weights(num_tokens, num_tokens - kept.shape[1], tokens.device)
            attended, received = self.attn.with_received(self.norm1(tokens), weights)
            tokens, kept = self.dropout(tokens + self.drop_path(attended), received, kept)
        return tokens + self.drop_path(self.mlp(self.norm2(tokens))), kept


class VideoViT(nn.Module):
    """Plain ViT over all tokens of a clip with keyframe-centric token dropout; EVAD's encoder.

    The keyframe slot is the middle one, T' // 2, whose first frame is annotated, or the last one, whose second frame
    is. Parameters are named as VideoMAE's.

    Args:
        size: see ``TrunkSize``. A clip shorter than its ``num_frames`` is taken as the part around the keyframe, see
            ``SpaceTimePositions``.
        keep_rates: block number (from 0) -> share of tokens kept there; blocks not named keep all tokens.
        enhanced_weight, key_order: see ``KeyframeTokenDropout``.
        learned_positions: the position codes are a parameter instead of the fixed sine table.
        drop_path_rate: drop path rate of the last block; it rises from 0 at the first.
        checkpoint_blocks: recompute activations in the backward pass, for memory.
        stem: makes maps of frames, which are embedded in place of pixels; its stride must divide the patch size.
    """

    def __init__(
        self,
        size: TrunkSize = TrunkSize(),  # noqa: B008  (frozen)
        keep_rates: dict[int, float] | None = None,
        enhanced_weight: float = 1.0,
        key_order: KeyOrder = "position",
        learned_positions: bool = False,
        drop_path_rate: float = 0.0,
        checkpoint_blocks: bool = False,
        stem: ConvolutionalStem | None = None,
    ) -> None:
        super().__init__()
        keep_rates = keep_rates or {}
        if not all(0 < rate <= 1 for rate in keep_rates.values()):
            raise ValueError(f"keep rates must be above 0 and at most 1 (which keeps all tokens), got {keep_rates}")
        keep_rates = {layer: rate for layer, rate in keep_rates.items() if rate < 1}
        if any(not 0 <= layer < size.depth for layer in keep_rates):
            raise ValueError(f"keep_rates {sorted(keep_rates)} must lie in 0..{size.depth - 1}")
        _check_shares(keep_rates, size.num_slots)
        self.size, self.key_order, self.checkpoint_blocks = size, key_order, checkpoint_blocks
        self.stem = stem
        self.patch_embed = TubeletEmbedding(size.dim, *embedded(size, stem))
        self.positions = SpaceTimePositions(size.num_slots, size.grid, size.dim, learned_positions, size.keyframe)
        rates = torch.linspace(0, drop_path_rate, size.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            EncoderBlock(
                size.dim,
                size.num_heads,
                size.mlp_ratio,
                rates[layer],
                KeyframeTokenDropout(keep_rates[layer], enhanced_weight, key_order) if layer in keep_rates else None,
            )
            for layer in range(size.depth)
        )
        self.norm = nn.LayerNorm(size.dim, eps=NORM_EPS)

    @property
    def layout(self) -> TokenLayout:
        """Sizes of the tokens that a detection head depends on."""
        return self.size.layout

    def forward(self, clips: Tensor) -> EncodedClip:
        """Normalised clips (B, in_channels, T, H, W), H and W multiples of the patch size, or a stem's maps of them."""
        size, _ = embedded(self.size, self.stem)
        if self.stem is not None:
            clips = self.stem(clips.transpose(1, 2)).transpose(1, 2)
        if clips.shape[2] % TUBELET or clips.shape[3] % size or clips.shape[4] % size:
            raise ValueError(
                f"a clip of {tuple(clips.shape[2:])} (frames, height, width) "
                f"does not divide into {TUBELET} x {size} x {size}"
            )
        height, width = clips.shape[3] // size, clips.shape[4] // size
        tokens = self.patch_embed(clips)
        num_slots = tokens.shape[1]
        tokens = tokens + self.positions(num_slots, height, width).to(tokens.dtype)
        key, num_keyframe = keyframe_slot(num_slots, self.size.keyframe), height * width
        tokens = torch.cat([tokens[:, key : key + 1], tokens[:, :key], tokens[:, key + 1 :]], dim=1).flatten(1, 2)
        kept = torch.arange(tokens.shape[1] - num_keyframe, device=tokens.device).expand(tokens.shape[0], -1)

        maps, kept_by_layer = {}, []
        for layer, block in enumerate(self.blocks):
            if self.checkpoint_blocks and self.training:
                tokens, kept = checkpoint(block, tokens, kept, use_reentrant=False)
            else:
                tokens, kept = block(tokens, kept)
            if block.dropout is not None:
                kept_by_layer.append(kept)
            if layer in self.size.pyramid_layers:
                maps[layer] = tokens[:, :num_keyframe].transpose(1, 2).unflatten(2, (height, width))
        if self.key_order == "as_published":
            kept = kept.sort(dim=1).values
        return EncodedClip(
            self.norm(tokens),
            kept,
            tuple(maps[layer] for layer in self.size.pyramid_layers),
            tuple(kept_by_layer),
            (num_slots, height, width),
        )


def _check_shares(keep_rates: dict[int, float], num_slots: int) -> None:
    """Refuse rates under which a clip would lose tokens of its keyframe slot (rounding up saves tiny frames only)."""
    layers = sorted(keep_rates)
    rates = [keep_rates[layer] for layer in layers]
    shares = list(accumulate(rates, mul))
    if shares and shares[-1] < 1 / num_slots - 1e-9:
        raise ValueError(
            f"keep rates {', '.join(f'{rate:g}' for rate in rates)} at blocks {', '.join(map(str, layers))} leave "
            f"{', '.join(f'{share:.4g}' for share in shares)} of a clip's tokens, but the keyframe slot, which is "
            f"never dropped, has 1/{num_slots} = {1 / num_slots:.4g} of them. Raise the rates, drop in fewer layers, "
            f"or take more frames than num_frames={num_slots * TUBELET}"
        )
