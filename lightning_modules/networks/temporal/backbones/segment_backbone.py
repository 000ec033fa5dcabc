"""Interface of temporal detectors' backbones: from the frames of an untrimmed video to features in time."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class SegmentBackbone(nn.Module, ABC):
    """Steps of a window in, features in time out.

    A step is a frame or a stored feature. Feature i of the output stands for the ``step_stride`` steps from
    ``i * step_stride`` on.
    """

    in_channels: int
    """C of the input: 3 for RGB or its temporal gradient, 2 for optical flow, the width of stored features."""
    out_channels: int
    step_stride: int
    """Steps that one feature stands for. T is padded to its multiples before it comes here."""

    @abstractmethod
    def forward(self, steps: Tensor, mask: Tensor) -> Tensor:
        """Normalised frames (B, T, C, H, W), or features (B, T, C), and ``mask`` (B, T) bool -> (B, out_channels, T').

        T' is T / step_stride. Where ``mask`` is False (after the end of a video) the input is zero and the output
        arbitrary. The detector sets it to zero.
        """
