"""A pyramid of features in time, made by transformer blocks with local attention (ActionFormer, Zhang et al., 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from ...layers.linear import Linear, Mlp
from ..local_attention import local_attention


class TimeConv(nn.Conv1d):
    """Convolution over time of tokens, (B, T, C) -> (B, ceil(T / stride), C'); output j is centred on step j stride."""

    def __init__(self, in_dim: int, dim: int, stride: int = 1, groups: int = 1, bias: bool = True) -> None:
        super().__init__(in_dim, dim, kernel_size=3, stride=stride, padding=1, groups=groups, bias=bias)

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.transpose(1, 2)).transpose(1, 2)


class TimeConvs(nn.Module):
    """``depth`` convolutions, each followed by LayerNorm and ReLU; masked steps are zero before each and at the end.

    Shapes: tokens (B, T, in_dim), zero where ``mask`` (B, T) is False -> (B, T, dim).
    """

    def __init__(self, in_dim: int, dim: int, depth: int) -> None:
        super().__init__()
        # Without bias: the norm that follows brings one.
        self.convs = nn.ModuleList(TimeConv(dim if layer else in_dim, dim, bias=False) for layer in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            tokens = F.relu(norm(conv(tokens))) * mask[..., None]
        return tokens


class LocalBlock(nn.Module):
    """Pre-norm transformer block with local attention; ``stride`` 2 halves the length (ActionFormer).

    Queries, keys and values each pass a depthwise convolution, which tells neighbours apart: there is no position code.
    The short cut of a strided block is a maximum over three steps. What the block adds is scaled per channel, from
    ``layer_scale`` on.

    Shapes: tokens (B, T, C) and mask (B, T) -> (B, ceil(T / stride), C) and its mask; zero where a mask is False.
    """

    def __init__(
        self, dim: int, num_heads: int, window: int, stride: int = 1, drop_path: float = 0.0, layer_scale: float = 0.1
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim={dim} does not divide into num_heads={num_heads}")
        if window < 1 or window % 2 == 0:
            raise ValueError(f"window must be odd and at least 1 (steps, the own in the middle), got {window}")
        self.num_heads, self.window, self.stride = num_heads, window, stride
        self.norm1 = nn.LayerNorm(dim)
        self.query, self.key, self.value = (
            nn.Sequential(
                TimeConv(dim, dim, stride=stride, groups=dim, bias=False), nn.LayerNorm(dim), Linear(dim, dim)
            )
            for _ in range(3)
        )
        self.proj = Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)
        self.attention_gate = nn.Parameter(torch.full((dim,), layer_scale))
        self.mlp_gate = nn.Parameter(torch.full((dim,), layer_scale))

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.norm1(tokens) * mask[..., None]
        tokens, mask = self._short_cut(tokens, mask)
        query, key, value = (
            part(normed).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        attended = local_attention(query, key, value, mask, self.window).transpose(1, 2).flatten(2)
        tokens = tokens + self.drop_path(self.attention_gate * self.proj(attended))
        tokens = tokens + self.drop_path(self.mlp_gate * self.mlp(self.norm2(tokens)))
        return tokens * mask[..., None], mask

    def _short_cut(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.stride == 1:
            return tokens, mask
        # A masked step is never the largest, so that a padded window gives what the window alone gives.
        lowest = torch.finfo(tokens.dtype).min
        pooled = F.max_pool1d(tokens.masked_fill(~mask[..., None], lowest).transpose(1, 2), 3, self.stride, padding=1)
        mask = mask[:, :: self.stride]
        return pooled.transpose(1, 2).masked_fill(~mask[..., None], 0), mask


@dataclass(frozen=True)
class PyramidSize:
    """Sizes of a ``SegmentPyramid``; the defaults are ActionFormer's.

    Args:
        dim: C, channels of all levels.
        num_levels: the finest, and one per halving of the length.
        num_heads: of the attention.
        attention_window: steps of its own level that a point attends to; odd.
        embedding_depth: convolutions in front. stem_depth: blocks at full length.
        drop_path_rate: of every block.
        layer_scale: where the gates of the blocks start.
    """

    dim: int = 512
    num_levels: int = 6
    num_heads: int = 4
    attention_window: int = 19
    embedding_depth: int = 2
    stem_depth: int = 2
    drop_path_rate: float = 0.1
    layer_scale: float = 0.1

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise ValueError(f"dim={self.dim} does not divide into num_heads={self.num_heads}")
        if self.num_levels < 1 or self.embedding_depth < 1:
            raise ValueError(
                f"num_levels and embedding_depth must be at least 1, got {self.num_levels} and {self.embedding_depth}"
            )


class SegmentPyramid(nn.Module):
    """Embedding convolutions, blocks at full length, then a strided block for each coarser level.

    Shapes: tokens (B, T, in_dim), zero where mask (B, T) is False -> ``num_levels`` pairs of tokens
    (B, ceil(T / 2^level), dim), normed and zero where masked, and their mask.
    """

    def __init__(self, in_dim: int, size: PyramidSize) -> None:
        super().__init__()
        self.embedding = TimeConvs(in_dim, size.dim, size.embedding_depth)
        self.stem, self.branch = (
            nn.ModuleList(
                LocalBlock(
                    size.dim, size.num_heads, size.attention_window, stride, size.drop_path_rate, size.layer_scale
                )
                for _ in range(depth)
            )
            for stride, depth in ((1, size.stem_depth), (2, size.num_levels - 1))
        )
        self.norms = nn.ModuleList(nn.LayerNorm(size.dim) for _ in range(size.num_levels))

    def forward(self, tokens: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor]]:
        tokens = self.embedding(tokens, mask)
        for block in self.stem:
            tokens, mask = block(tokens, mask)
        levels = [(tokens, mask)]
        for block in self.branch:
            levels.append(block(*levels[-1]))
        return [(norm(tokens) * mask[..., None], mask) for norm, (tokens, mask) in zip(self.norms, levels, strict=True)]
