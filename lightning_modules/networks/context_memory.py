"""What a streaming detector keeps of past frames for its context decoder: EVAD's token dropout made causal."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .context_decoder import ContextDecoder
from .streaming import compact_copy


class MemoryState(NamedTuple):
    """The kept tokens of the K newest frames, oldest first; n tokens a frame, C decoder width."""

    tokens: Tensor
    """(B, K, n, C), projected to the decoder's width."""
    places: Tensor
    """(B, K, n) int64, where in their frame they stood, ascending."""
    filled: Tensor
    """(B,) int64, how many of the K entries hold a frame: always the last ones."""


class ContextMemory(nn.Module):
    """Ring buffer of past frames' most attended tokens, and the context decoder's reading of it.

    A frame is whole while it is the newest; what is kept of it, once and for all, are the ``keep_rate`` of its tokens
    that received most attention then. At the time of use a kept token gets its place's position code, that of the
    teacher's slot its frame's age falls into, and a learned code of the age itself that starts at zero.

    Args:
        dim: C. keep_rate: share of a frame's tokens that is kept.
        window: K, past frames that are remembered.
        frames_per_slot: of the teacher.
        stride: of the past frames those are read that are so many, twice so many ... frames old.
        keyframe_age: the age of the frame that stands where the teacher's keyframe does.

    Shapes: B streams, T frames of the chunk, L frames read out (the last ones), N patches a frame, K = ``window``,
    R = K / ``stride`` past frames that are read.
    """

    def __init__(
        self,
        dim: int,
        window: int,
        keep_rate: float,
        frames_per_slot: int,
        stride: int = 1,
        keyframe_age: int = 0,
    ) -> None:
        super().__init__()
        if window < 0:
            raise ValueError(f"window must be 0 (no memory) or more frames, got {window}")
        if stride < 1 or window % stride:
            raise ValueError(f"memory_stride={stride} must be at least 1 and divide window={window}")
        if not 0 < keep_rate <= 1:
            raise ValueError(f"keep_rate must be above 0 and at most 1, got {keep_rate}")
        self.window, self.keep_rate, self.frames_per_slot = window, keep_rate, frames_per_slot
        self.stride, self.keyframe_age = stride, keyframe_age
        self.age_code = nn.Parameter(torch.zeros(window // stride, 1, dim))

    def num_kept(self, num_patches: int) -> int:
        """Tokens kept of a past frame of ``num_patches``."""
        return math.ceil(self.keep_rate * num_patches)

    def initial_state(
        self, batch_size: int, num_patches: int, dim: int, device: torch.device | None, dtype: torch.dtype | None
    ) -> MemoryState:
        kept = self.num_kept(num_patches)
        return MemoryState(
            torch.zeros(batch_size, self.window, kept, dim, device=device, dtype=dtype),
            torch.zeros(batch_size, self.window, kept, device=device, dtype=torch.long),
            torch.zeros(batch_size, device=device, dtype=torch.long),
        )

    def forward(
        self, tokens: Tensor, received: Tensor, state: MemoryState, last: int
    ) -> tuple[MemoryState, MemoryState]:
        """Append a chunk's frames; give what each of its ``last`` frames reads of those before it, and the state after.

        tokens (B, T, N, C) projected, received (B, T, N). What the L frames read is a ``MemoryState`` of B L streams
        and R frames.
        """
        num_frames, kept = tokens.shape[1], self.num_kept(tokens.shape[2])
        places = received.topk(kept, dim=-1).indices.sort(dim=-1).values  # (B, T, n)
        chosen = tokens.gather(2, places[..., None].expand(-1, -1, -1, tokens.shape[-1]))
        tokens = torch.cat([state.tokens.to(chosen.dtype), chosen], dim=1)  # (B, K + T, n, C)
        places = torch.cat([state.places, places], dim=1)
        steps = torch.arange(num_frames, device=tokens.device)
        filled = (state.filled[:, None] + steps).clamp(max=self.window)  # (B, T), before each frame
        first = num_frames - last
        index = steps[first:, None] + torch.arange(0, self.window, self.stride, device=tokens.device)  # (L, R)
        before = MemoryState(
            tokens[:, index].flatten(0, 1),
            places[:, index].flatten(0, 1),
            torch.div(filled[:, first:].flatten(), self.stride, rounding_mode="floor"),
        )
        after = MemoryState(
            compact_copy(tokens[:, num_frames:], state.tokens),
            compact_copy(places[:, num_frames:], state.places),
            (state.filled + num_frames).clamp(max=self.window),
        )
        return before, after

    def read(
        self,
        decoder: ContextDecoder,
        newest: Tensor,
        past: MemoryState,
        boxes: Tensor,
        image_sizes: Tensor,
        grid: tuple[int, int],
        every_block: bool = False,
    ) -> Tensor:
        """Action logits (depth or 1, B, P, num_classes) of actors in the newest frames with the past as context.

        newest (B, N, C) projected tokens, past of B streams and R frames, boxes (B, P, 4), image_sizes (B, 2), grid
        (h, w).
        """
        batch, num_patches, dim = newest.shape
        num_read = len(self.age_code)
        codes = decoder.positions.slots(self._slots(decoder, newest.device), *grid).to(newest.dtype)
        past_codes = codes[:-1] + self.age_code.to(newest.dtype)  # (R, N, C)
        newest_codes = codes[-1]

        is_filled = torch.arange(num_read, device=newest.device) >= num_read - past.filled[:, None]  # (B, R)
        places = past.places[..., None].expand_as(past.tokens)
        canvas = decoder.mask_token.to(newest.dtype).expand(batch * num_read, num_patches, dim)
        canvas = canvas.unflatten(0, (batch, num_read)).scatter(2, places, past.tokens.to(newest.dtype)) + past_codes
        weights = torch.cat([is_filled, is_filled.new_ones(batch, 1)], dim=1).float()
        actors = decoder.pool_actors(
            torch.cat([canvas, (newest + newest_codes)[:, None]], dim=1),
            boxes,
            image_sizes,
            grid,
            weights / weights.sum(1, keepdim=True),
        )

        past_tokens = past.tokens.to(newest.dtype) + past_codes.expand(batch, -1, -1, -1).gather(2, places)
        sequence = torch.cat([past_tokens.flatten(1, 2), newest + newest_codes, actors], dim=1)
        always = is_filled.new_ones(batch, num_patches + actors.shape[1])
        readable = torch.cat([is_filled.repeat_interleave(past.tokens.shape[2], dim=1), always], dim=1)
        return decoder.refine(sequence, actors.shape[1], readable[:, None, None], every_block)

    def _slots(self, decoder: ContextDecoder, device: torch.device) -> Tensor:
        """(R + 1,) the teacher's slots that the past frames read and the newest one stand for."""
        after_keyframe = self.keyframe_age - torch.arange(self.window, -1, -self.stride, device=device)
        slots = decoder.positions.keyframe_slot + torch.div(after_keyframe, self.frames_per_slot, rounding_mode="floor")
        return slots.clamp(0, decoder.positions.num_slots - 1)
