"""Queue of actors that are localized in one frame and classified a few frames later."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..streaming import compact_copy

NOBODY = (-10.0, 10.0)
"""Person logits of the frames before a stream's first one."""


class QueueState(NamedTuple):
    """The actors of the newest K frames, oldest first: P proposals after each of R stages."""

    person_logits: Tensor
    """(B, K, R, P, 2)."""
    boxes: Tensor
    """(B, K, R, P, 4)."""


class ActorQueue:
    """Delay line of actors: at every frame of a stream, those of the frame ``length`` frames before it."""

    def __init__(self, length: int, num_stages: int, num_proposals: int) -> None:
        self.length, self.num_stages, self.num_proposals = length, num_stages, num_proposals

    def initial_state(self, batch_size: int, device: torch.device | None, dtype: torch.dtype | None) -> QueueState:
        exact = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)  # bfloat16 is too coarse
        shape = (batch_size, self.length, self.num_stages, self.num_proposals)
        person_logits, boxes = (torch.zeros(*shape, size, device=device, dtype=exact) for size in (2, 4))
        return QueueState(person_logits.copy_(torch.tensor(NOBODY)), boxes)

    def needed(self, num_frames: int, last: int) -> int:
        """The first frame of a chunk of T whose actors the outputs at its ``last`` frames need."""
        return max(0, num_frames - last - self.length)

    def __call__(
        self, found: QueueState, state: QueueState, num_frames: int, last: int
    ) -> tuple[QueueState, QueueState]:
        """The actors that wait no longer at the ``last`` of T frames, (B, last, ...), and the state after the chunk.

        ``found`` are those of the chunk's frames from ``needed`` on. If its newest frames are left out, the outputs are
        the same, but the state cannot be used.
        """
        first = self.needed(num_frames, last)
        if first == 0:
            first = -self.length
            found = QueueState(*(torch.cat([old.to(new.dtype), new], 1) for old, new in zip(state, found, strict=True)))
        begin = num_frames - last - self.length - first
        answered = QueueState(*(part[:, begin : begin + last] for part in found))
        newest = (part[:, part.shape[1] - self.length :] for part in found)
        return answered, QueueState(*(compact_copy(part, old) for part, old in zip(newest, state, strict=True)))
