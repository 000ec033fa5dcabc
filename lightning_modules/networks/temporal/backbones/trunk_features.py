"""The streaming detector's trunk as a source of one feature per frame."""

from __future__ import annotations

import torch
from torch import Tensor

from ...students.trunk import StreamingTrunk, TrunkState
from .streaming_backbone import StreamingFeatures


class TrunkFeatures(StreamingFeatures[TrunkState]):
    """The mean over the tokens of each frame: (B, T, in_channels, H, W) -> (B, T, dim).

    Args:
        trunk: causal tokens; its ``pyramid_layers`` are not read and may be empty.
    """

    def __init__(self, trunk: StreamingTrunk) -> None:
        super().__init__()
        self.trunk = trunk
        size = trunk.size
        self.in_channels, self.out_channels = size.in_channels, size.dim
        self.step_shape = (size.in_channels, size.pretrain_size, size.pretrain_size)
        self.receptive_field = trunk.receptive_field

    def initial_state(
        self,
        batch_size: int,
        frame_size: tuple[int, int] | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> TrunkState:
        return self.trunk.initial_state(batch_size, frame_size, device=device, dtype=dtype)

    def forward(self, steps: Tensor, state: TrunkState) -> tuple[Tensor, TrunkState]:
        encoded, state = self.trunk(steps, state)
        return encoded.tokens.mean(2), state
