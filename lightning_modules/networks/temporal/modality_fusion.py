"""Fusion of motion and appearance into the features of the joint detector (DCMD)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.linear import Linear


class ModalityFusion(nn.Module, ABC):
    """Motion and appearance, (B, D, T') each, and ``mask`` (B, T') bool -> (B, out_channels, T').

    What lies where ``mask`` is False changes nothing where it is True.
    """

    out_channels: int

    @abstractmethod
    def forward(self, motion: Tensor, appearance: Tensor, mask: Tensor) -> Tensor: ...


class ModalityGate(nn.Module):
    """Gates of one modality, a channel and time step each, from the other (equations 12 to 14).

    The query is the target's mean over time, where ``mask`` is True; the key is the reference at t. The sigmoid of
    their product, channel by channel, gates the target at t. No value moves in time.

    Shapes: target and reference (B, D, T'), mask (B, T') -> (B, D, T').
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query, self.key = Linear(dim, dim, bias=False), Linear(dim, dim, bias=False)

    def forward(self, target: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
        count = mask.sum(1, keepdim=True).clamp(min=1)
        pooled = target.masked_fill(~mask[:, None], 0).sum(2) / count  # (B, D), equation 12
        return self.gate(pooled, reference) * target  # equation 14

    def gate(self, pooled: Tensor, reference: Tensor) -> Tensor:
        """Equation 13: pooled (B, D), reference (B, D, T') -> (B, D, T') between 0 and 1."""
        return (self.query(pooled)[:, :, None] * self.key(reference.transpose(1, 2)).transpose(1, 2)).sigmoid()


class LocalAttentiveFusion(ModalityFusion):
    """Each modality gated by the other, concatenated: D channels of motion, then D of appearance.

    Lee et al., CVPR 2023, https://arxiv.org/abs/2303.17285, equations 12 to 15. That the mean aggregates over time, and
    that either direction has weights of its own, is inferred.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.motion_gate, self.appearance_gate = ModalityGate(dim), ModalityGate(dim)
        self.out_channels = 2 * dim

    def forward(self, motion: Tensor, appearance: Tensor, mask: Tensor) -> Tensor:
        return torch.cat(
            [self.motion_gate(motion, appearance, mask), self.appearance_gate(appearance, motion, mask)], dim=1
        )


class ConcatFusion(ModalityFusion):
    """Motion above appearance, as they are."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_channels = 2 * dim

    def forward(self, motion: Tensor, appearance: Tensor, mask: Tensor) -> Tensor:
        return torch.cat([motion, appearance], dim=1)


class SumFusion(ModalityFusion):
    """The sum."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.out_channels = dim

    def forward(self, motion: Tensor, appearance: Tensor, mask: Tensor) -> Tensor:
        return motion + appearance


class CrossAttention(nn.Module):
    """Attention of the target at each time over the reference at all times, added to it: shapes as ``ModalityGate``."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim={dim} does not divide into num_heads={num_heads}")
        self.num_heads = num_heads
        self.query, self.key, self.value = (Linear(dim, dim, bias=False) for _ in range(3))
        self.proj = Linear(dim, dim)

    def forward(self, target: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
        target, reference = target.transpose(1, 2), reference.transpose(1, 2)  # (B, T', D)
        reference = reference.masked_fill(~mask[..., None], 0)  # a key that is not read must still be finite
        query, key, value = (
            part.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, H, T', D / H)
            for part in (self.query(target), self.key(reference), self.value(reference))
        )
        readable = mask | ~mask.any(1, keepdim=True)  # a softmax over nothing would be NaN
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=readable[:, None, None])
        return (target + self.proj(found.transpose(1, 2).flatten(2))).transpose(1, 2)


class GlobalAttentionFusion(ModalityFusion):
    """Each modality with the result of its attention over all times of the other, concatenated.

    The paper compares its fusion with attention over time; the form, heads and residual included, is ours.
    """

    def __init__(self, dim: int, num_heads: int = 4) -> None:
        super().__init__()
        self.motion_attention, self.appearance_attention = (CrossAttention(dim, num_heads) for _ in range(2))
        self.out_channels = 2 * dim

    def forward(self, motion: Tensor, appearance: Tensor, mask: Tensor) -> Tensor:
        return torch.cat(
            [self.motion_attention(motion, appearance, mask), self.appearance_attention(appearance, motion, mask)],
            dim=1,
        )
