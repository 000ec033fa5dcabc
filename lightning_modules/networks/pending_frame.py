"""A frame that waits for the next one, so that a block may look one frame ahead and answer one frame late."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .streaming import compact_copy


class PendingFrame(NamedTuple):
    """The newest frame as it came in."""

    tokens: Tensor
    """(B, N, C)."""
    filled: Tensor
    """(B,) bool: whether there is one."""


def no_frame(
    batch_size: int, num_patches: int, dim: int, device: torch.device | None, dtype: torch.dtype | None
) -> PendingFrame:
    """Of streams that have seen nothing."""
    tokens = torch.zeros(batch_size, num_patches, dim, device=device, dtype=dtype)
    return PendingFrame(tokens, torch.zeros(batch_size, dtype=torch.bool, device=device))


def with_pending(tokens: Tensor, pending: PendingFrame) -> tuple[Tensor, PendingFrame]:
    """The frame that waits, then a chunk (B, T, N, C): (B, T + 1, N, C), and what waits after the chunk.

    A stream's first frame stands in for the one that is not there, as if the scene had been still.
    """
    waiting = torch.where(pending.filled[:, None, None], pending.tokens.to(tokens.dtype), tokens[:, 0])
    after = PendingFrame(compact_copy(tokens[:, -1], pending.tokens), torch.ones_like(pending.filled))
    return torch.cat([waiting[:, None], tokens], dim=1), after


def coded_next(key: Tensor, value: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
    """For each frame but the newest the next one's keys and values (B, T, H, N, D), with a code (2, H, 1, D) added.

    The position codes say where in a frame, not in which; without this one attention could not tell now from next.
    """
    key_code, value_code = code.to(key.dtype)
    return key[:, 1:] + key_code, value[:, 1:] + value_code
