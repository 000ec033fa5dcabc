"""The streaming contract: one path for a whole clip, for a single frame, and for anything between.

    outputs, state = network(frames, state)          # frames (B, T, ...), outputs (B, T, ...), any T >= 1
    state = network.initial_state(batch_size)        # nested tuples of tensors, batch first, constant shapes

Any split of a clip into chunks gives the same outputs and the same last state. Outputs do not depend on later frames.
The lanes of a batch do not see each other. The state passed in is left as it was.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

State = TypeVar("State")


class StreamingModule(nn.Module, ABC, Generic[State]):
    """A module under the streaming contract.

    ``receptive_field`` is how many frames, the newest included, an output depends on; None where a recurrence makes it
    unbounded.
    """

    receptive_field: int | None

    @abstractmethod
    def initial_state(
        self, batch_size: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """The state of ``batch_size`` streams that have seen nothing."""

    @abstractmethod
    def forward(self, frames: Any, state: State) -> tuple[Any, State]:
        """Process a chunk of T frames: (B, T, ...) and a state -> (B, T, ...) and the state after the chunk."""


def select_lanes(lanes: Tensor, chosen: State, other: State) -> State:
    """Lane by lane one of two states: ``chosen`` where ``lanes`` (B,) bool is True, ``other`` elsewhere.

    Values of the lane not taken never mix in, NaN included: resetting a lane heals it, holding one protects it.
    """

    def select(first: Tensor, second: Tensor) -> Tensor:
        return torch.where(lanes.view(-1, *[1] * (first.dim() - 1)), first, second.to(first.dtype))

    return tree_map(select, chosen, other)


def compact_copy(part: Tensor, like: Tensor) -> Tensor:
    """Return a part of a chunk as a state keeps it: in the type of the state before it, contiguous in its own memory.

    So it does not keep the whole chunk alive, and a compiler sees the same layout in every state.
    """
    return part.to(like.dtype).clone(memory_format=torch.contiguous_format)


def state_bytes(state: Any) -> int:
    """Bytes that the tensors of a state hold."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(state) if isinstance(leaf, Tensor))
