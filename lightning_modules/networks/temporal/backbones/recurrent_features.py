"""A recurrent layer over stored features: the causal network of an online detector whose backbone ran before."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...layers.lstm import LSTM
from ...students.decomposed_attention import RecurrentState
from .streaming_backbone import StreamingFeatures


class RecurrentFeatures(StreamingFeatures[RecurrentState]):
    """Projection, layer norm, ReLU, LSTM: (B, T, in_channels) -> (B, T, dim).

    The form of MiniROAD (An et al., ICCV 2023), which finds one recurrent layer enough for online action detection;
    it has a GRU.
    """

    receptive_field = None

    def __init__(self, in_channels: int, dim: int = 512) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, dim
        self.step_shape = (in_channels,)
        self.projection = nn.Sequential(nn.Linear(in_channels, dim), nn.LayerNorm(dim), nn.ReLU())
        self.lstm = LSTM(dim)

    def initial_state(
        self,
        batch_size: int,
        frame_size: tuple[int, int] | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> RecurrentState:
        """``frame_size`` means nothing to features."""
        return RecurrentState(
            *(torch.zeros(batch_size, self.out_channels, device=device, dtype=dtype) for _ in range(2))
        )

    def forward(self, features: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState]:
        projected = self.projection(features)
        # In the state's precision: under autocast a cell that adds up over thousands of steps would round away.
        with torch.autocast(features.device.type, enabled=False):
            outputs, hidden, cell = self.lstm(projected.to(state.cell.dtype), *state)
        return outputs, RecurrentState(hidden, cell)
