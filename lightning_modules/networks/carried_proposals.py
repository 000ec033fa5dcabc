"""Proposals that a stream carries from one frame to the next, so that few stages and few proposals find its actors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .localizer import LocalizedActors, person_like


class ProposalState(NamedTuple):
    """The most person-like proposals of the newest frame: C of them, D channels."""

    features: Tensor
    """(B, C, D) after the last stage."""
    boxes: Tensor
    """(B, C, 4) after the last stage, xyxy in pixels of the network input."""
    filled: Tensor
    """(B,) bool: whether there is a previous frame."""


class CarriedProposals:
    """Lets ``count`` of a frame's ``num_proposals`` start where the previous frame's most person-like ones ended.

    The others stay the learned ones, so that new actors are found. In a stream's first frame all are learned. What is
    carried has no gradient: each frame learns to start from what it is given.
    """

    def __init__(self, count: int, num_proposals: int) -> None:
        if not 0 <= count < num_proposals:
            raise ValueError(
                f"carried_proposals={count} must be 0 or more and less than num_proposals={num_proposals}: the others "
                "find new actors"
            )
        self.count = count
        # Spread over all of them: neighbours among learned proposals may cover one part of the frame.
        self.replaced = [index * num_proposals // count for index in range(count)]

    def initial_state(
        self, batch_size: int, dim: int, device: torch.device | None, dtype: torch.dtype | None
    ) -> ProposalState:
        of_boxes = torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)  # bfloat16 is too coarse
        return ProposalState(
            torch.zeros(batch_size, self.count, dim, device=device, dtype=dtype),
            torch.zeros(batch_size, self.count, 4, device=device, dtype=of_boxes),
            torch.zeros(batch_size, dtype=torch.bool, device=device),
        )

    def mix(self, features: Tensor, boxes: Tensor, state: ProposalState) -> tuple[Tensor, Tensor]:
        """The learned proposals, features (B, P, D) and boxes (B, P, 4), with the carried ones in their places."""
        places = torch.tensor(self.replaced, device=features.device)
        carries = state.filled[:, None, None]

        def mixed(learned: Tensor, carried: Tensor) -> Tensor:
            carried = torch.where(carries, carried.to(learned.dtype), learned[:, places])
            return learned.index_copy(1, places, carried)

        return mixed(features, state.features), mixed(boxes, state.boxes)

    def select(self, actors: LocalizedActors, state: ProposalState) -> ProposalState:
        """What the frame leaves to the next, in the types of the state before it."""
        score = person_like(actors.person_logits[-1])  # (B, P)
        # In the order of their places: an order by score could turn around for nothing but rounding.
        chosen = score.topk(self.count, dim=1).indices.sort(dim=1).values[..., None]
        features, boxes = actors.features.detach(), actors.boxes[-1].detach()
        return ProposalState(
            features.gather(1, chosen.expand(-1, -1, features.shape[-1])).to(state.features.dtype),
            boxes.gather(1, chosen.expand(-1, -1, 4)).to(state.boxes.dtype),
            torch.ones_like(state.filled),
        )
