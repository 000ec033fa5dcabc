"""Class scores for every frame as it arrives: the network of online action detection."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..streaming import State
from .backbones.streaming_backbone import StreamingFeatures


class FrameScores(StreamingFeatures[State]):
    """A causal trunk and a linear classifier: (B, T, ...) -> logits (B, T, num_classes), several may be true at once.

    Its state is the trunk's, so is its receptive field.
    """

    # Without its type variable: jsonargparse gives objects of a parametrised class no arguments.
    def __init__(self, trunk: StreamingFeatures, num_classes: int = 20) -> None:  # type: ignore[type-arg]
        super().__init__()
        self.trunk = trunk
        self.classifier = nn.Linear(trunk.out_channels, num_classes)
        self.num_classes = self.out_channels = num_classes
        self.in_channels, self.step_shape = trunk.in_channels, trunk.step_shape
        self.receptive_field = trunk.receptive_field

    def initial_state(
        self,
        batch_size: int,
        frame_size: tuple[int, int] | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        return self.trunk.initial_state(batch_size, frame_size, device=device, dtype=dtype)

    def forward(self, steps: Tensor, state: State) -> tuple[Tensor, State]:
        features, state = self.trunk(steps, state)
        return self.classifier(features), state
