"""A causal network as a backbone of windows: the same weights serve whole windows and frames as they arrive."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from ...streaming import State, StreamingModule
from .segment_backbone import SegmentBackbone


class StreamingFeatures(StreamingModule[State]):
    """One feature per step of a stream: (B, T, in_channels, H, W), or (B, T, in_channels) -> (B, T, out_channels)."""

    in_channels: int
    out_channels: int
    step_shape: tuple[int, ...]
    """Shape of the steps it was made for: (C, H, W) of a frame, (C,) of a stored feature."""

    @abstractmethod
    def initial_state(
        self,
        batch_size: int,
        frame_size: tuple[int, int] | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        """``frame_size`` is the height and width of the frames to come, for what remembers places in them."""

    def state_for(self, steps: Tensor) -> State:
        """The initial state of streams that begin with a chunk such as this."""
        height, width = steps.shape[-2:]
        frame_size = (height, width) if steps.dim() == 5 else None
        return self.initial_state(len(steps), frame_size, device=steps.device, dtype=steps.dtype)


class StreamingBackbone(SegmentBackbone):
    """A streaming network over windows, each from its initial state: a feature knows the window's past alone.

    Frames after the end of a video need no care: no feature before them knows of them.

    Shapes: (B, T, ...) -> (B, out_channels, T).
    """

    step_stride = 1

    def __init__(self, trunk: StreamingFeatures) -> None:  # type: ignore[type-arg]  # see FrameScores
        super().__init__()
        self.trunk = trunk
        self.in_channels, self.out_channels = trunk.in_channels, trunk.out_channels

    def forward(self, steps: Tensor, mask: Tensor) -> Tensor:
        features, _ = self.trunk(steps, self.trunk.state_for(steps))
        return features.transpose(1, 2)
