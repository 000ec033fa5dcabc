"""Base of the streaming trunk's attention layers: the teacher's attention inside a frame."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.attention import SelfAttention
from ..layers.trunk_size import NORM_EPS
from ..streaming import State, StreamingModule


class CausalAttention(StreamingModule[State]):
    """Attention inside a frame with a look at earlier frames, residual included; a sub-class says how it looks back.

    ``norm1`` and ``attn`` are those of the teacher's block, whose weights fit; every other parameter is new.

    Shapes: B streams, T frames of the chunk, N patches per frame, C channels: (B, T, N, C) -> (B, T, N, C).

    Args:
        dim: C. num_heads: of the attention. num_patches: N of streams that do not say otherwise.
    """

    def __init__(self, dim: int, num_heads: int, num_patches: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = SelfAttention(dim, num_heads)
        self.num_patches = num_patches

    @abstractmethod
    def initial_state(
        self,
        batch_size: int,
        num_patches: int | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        """Return the state of streams that have seen nothing, of frames of ``num_patches``."""

    @torch.no_grad()
    def received(self, tokens: Tensor) -> Tensor:
        """Return the attention (B, T, N) that each token receives inside its own frame, without gradient."""
        query, key, _ = self.attn.project(self.norm1(tokens))
        attention = (query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)).softmax(-1)  # (B, T, H, N, N)
        return attention.mean(dim=(-3, -2))

    def new_parameters(self) -> set[str]:
        """Return the names of parameters that a clip's trunk has no weights for."""
        return {name for name, _ in self.named_parameters() if name.split(".")[0] not in ("norm1", "attn")}


AttentionFactory = Callable[[int, int, int], CausalAttention[Any]]
"""Makes an attention for ``dim``, ``num_heads`` and ``num_patches``: a sub-class, or one with its other arguments."""
