"""Memory of past frames for the context decoder of a streaming detector: EVAD's token dropout made causal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..detection.context_decoder import ContextDecoder, SceneContext
from ..layers.trunk_size import TUBELET
from ..streaming import compact_copy


@dataclass(frozen=True)
class MemorySize:
    """Tokens of past frames that a stream keeps.

    Args:
        frames: K, past frames that are remembered; 0 for no memory.
        stride: frames are read whose age is a multiple of it. 2, with all tokens kept, gives the context decoder slots
            as the teacher's, which do not share frames.
        keep_rate: share of a frame's tokens that is kept.
    """

    frames: int = 7
    stride: int = 1
    keep_rate: float = 0.5

    def __post_init__(self) -> None:
        if self.frames < 0:
            raise ValueError(f"a memory has frames=0 (none) or more, got frames={self.frames}")
        if self.stride < 1 or self.frames % self.stride:
            raise ValueError(f"a memory's stride={self.stride} must be at least 1 and divide its frames={self.frames}")
        if not 0 < self.keep_rate <= 1:
            raise ValueError(f"a memory's keep_rate must be above 0 and at most 1, got {self.keep_rate}")

    def num_kept(self, num_patches: int) -> int:
        """Return how many tokens are kept of a past frame of ``num_patches``."""
        return math.ceil(self.keep_rate * num_patches)

    @property
    def chooses(self) -> bool:
        """Return whether the attention that tokens receive decides what is kept."""
        return self.frames > 0 and self.keep_rate < 1


class MemoryState(NamedTuple):
    """The kept tokens of the K newest frames, oldest first; n tokens per frame, C decoder width."""

    tokens: Tensor
    """(B, K, n, C), projected to the decoder's width."""
    places: Tensor
    """(B, K, n) int64, where in their frame they stood, ascending."""
    filled: Tensor
    """(B,) int64, how many of the K entries hold a frame: always the last ones."""


class ContextMemory(nn.Module):
    """Ring buffer of past frames' most attended tokens, and the scene that they make with the newest frame.

    A frame is whole while it is the newest. Then the ``keep_rate`` of its tokens that received most attention are kept,
    once and for all. When it is read, a kept token gets three codes: its place, the teacher's slot for the frame's age,
    and a learned code of the age, which starts at zero.

    Args:
        size: see ``MemorySize``. dim: C.
        keyframe_age: the age of the frame that stands where the teacher's keyframe does, see ``Timing``.
        frames_per_slot: of the teacher.

    Shapes: B streams, T frames of the chunk, L frames read out (the last ones), N patches per frame; K =
    ``size.frames``, of which R = K / ``size.stride`` are read.
    """

    def __init__(self, size: MemorySize, dim: int, keyframe_age: int = 0, frames_per_slot: int = TUBELET) -> None:
        super().__init__()
        self.size, self.dim = size, dim
        self.keyframe_age, self.frames_per_slot = keyframe_age, frames_per_slot
        self.age_code = nn.Parameter(torch.zeros(size.frames // size.stride, 1, dim))

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that do not decay although they are matrices."""
        return {"age_code"}

    def initial_state(
        self,
        batch_size: int,
        num_patches: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> MemoryState:
        frames, kept = self.size.frames, self.size.num_kept(num_patches)
        return MemoryState(
            torch.zeros(batch_size, frames, kept, self.dim, device=device, dtype=dtype),
            torch.zeros(batch_size, frames, kept, device=device, dtype=torch.long),
            torch.zeros(batch_size, device=device, dtype=torch.long),
        )

    def forward(
        self, tokens: Tensor, received: Tensor, state: MemoryState, last: int
    ) -> tuple[MemoryState, MemoryState]:
        """Append a chunk's frames; return what its ``last`` frames read of those before them, and the state after.

        tokens (B, T, N, C) projected, received (B, T, N). What the L frames read is a ``MemoryState`` of B L streams
        and R frames.
        """
        num_frames, kept = tokens.shape[1], self.size.num_kept(tokens.shape[2])
        places = received.topk(kept, dim=-1).indices.sort(dim=-1).values  # (B, T, n)
        chosen = tokens.gather(2, places[..., None].expand(-1, -1, -1, tokens.shape[-1]))
        tokens = torch.cat([state.tokens.to(chosen.dtype), chosen], dim=1)  # (B, K + T, n, C)
        places = torch.cat([state.places, places], dim=1)
        steps = torch.arange(num_frames, device=tokens.device)
        filled = (state.filled[:, None] + steps).clamp(max=self.size.frames)  # (B, T), before each frame
        first = num_frames - last
        index = steps[first:, None] + torch.arange(
            0, self.size.frames, self.size.stride, device=tokens.device
        )  # (L, R)
        before = MemoryState(
            tokens[:, index].flatten(0, 1),
            places[:, index].flatten(0, 1),
            torch.div(filled[:, first:].flatten(), self.size.stride, rounding_mode="floor"),
        )
        after = MemoryState(
            compact_copy(tokens[:, num_frames:], state.tokens),
            compact_copy(places[:, num_frames:], state.places),
            (state.filled + num_frames).clamp(max=self.size.frames),
        )
        return before, after

    def context(
        self, decoder: ContextDecoder, newest: Tensor, past: MemoryState, grid: tuple[int, int]
    ) -> SceneContext:
        """Return the scene of the newest frames with the past around them.

        newest (B, N, C) projected tokens, past of B streams and R frames, grid (h, w). Where the decoder pools actors
        in the keyframe's slot alone, that is the newest frame's.
        """
        batch, num_patches, dim = newest.shape
        num_read = len(self.age_code)
        codes = decoder.positions.slots(self._slots(decoder, newest.device), *grid).to(newest.dtype)
        past_codes = codes[:-1] + self.age_code.to(newest.dtype)  # (R, N, C)
        newest = newest + codes[-1]

        is_filled = torch.arange(num_read, device=newest.device) >= num_read - past.filled[:, None]  # (B, R)
        places = past.places[..., None].expand_as(past.tokens)
        past_tokens = past.tokens.to(newest.dtype)
        canvas, weights = newest[:, None], None
        if decoder.temporal_roi:
            before = decoder.mask_token.to(newest.dtype).expand(batch * num_read, num_patches, dim)
            before = before.unflatten(0, (batch, num_read)).scatter(2, places, past_tokens) + past_codes
            canvas = torch.cat([before, canvas], dim=1)
            weights = torch.cat([is_filled, is_filled.new_ones(batch, 1)], dim=1).float()
            weights = weights / weights.sum(1, keepdim=True)

        past_tokens = past_tokens + past_codes.expand(batch, -1, -1, -1).gather(2, places)
        sequence = torch.cat([past_tokens.flatten(1, 2), newest], dim=1)
        readable = is_filled.repeat_interleave(past.tokens.shape[2], dim=1)
        readable = torch.cat([readable, is_filled.new_ones(batch, num_patches)], dim=1)
        return SceneContext(canvas, weights, sequence, readable, grid)

    def _slots(self, decoder: ContextDecoder, device: torch.device) -> Tensor:
        """Return (R + 1,): the teacher's slots that the past frames read and the newest one stand for."""
        after_keyframe = self.keyframe_age - torch.arange(self.size.frames, -1, -self.size.stride, device=device)
        slots = decoder.positions.keyframe_slot + torch.div(after_keyframe, self.frames_per_slot, rounding_mode="floor")
        return slots.clamp(0, decoder.positions.num_slots - 1)
