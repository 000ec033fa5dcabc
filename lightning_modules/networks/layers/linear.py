"""Linear layers that a CPU computes in oneDNN.

torch gives matrix products in float32 to MKL, which leaves the wider half of AVX-512 unused on AMD processors. Its
convolutions go to oneDNN, which uses it. In training a linear layer is therefore a 1x1 convolution. On two cores of an
EPYC with AVX-512 the same product takes 0.45x the time, forward and backward (2592 x 768 x 3072; few rows gain
nothing). On two cores of an EPYC without AVX-512 the convolution would take 1.6x the time. A single thread gains
nothing either, since torch does its 1x1 convolutions itself. A layer that is prepared for inference also keeps its
weight in oneDNN's order, which saves reordering it in every call. 256 x 768 x 3072 then take 0.42x of torch's time, 100
x 256 x 32768 take 0.28x.
"""

from __future__ import annotations

import timm.layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .prepared import Preparable

FEWEST_ROWS = 256
"""Below it a convolution takes longer to start than it saves."""


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, faster for many rows of float32 on a CPU. Values agree to rounding."""
    # First, so that nothing else is traced: compilers choose for themselves, and exported graphs stay plain.
    if torch.compiler.is_compiling() or not _goes_to_mkl(inputs) or not _convolves_faster(inputs):
        return F.linear(inputs, weight, bias)
    rows = inputs.shape[:-1].numel()
    # Rows become the pixels of one image in channels-last memory, which is the memory they are in.
    image = inputs.reshape(1, rows, 1, -1).permute(0, 3, 1, 2)
    outputs = F.conv2d(image, weight[:, :, None, None], bias)
    return outputs.permute(0, 2, 3, 1).reshape(*inputs.shape[:-1], -1)


def _goes_to_mkl(inputs: Tensor) -> bool:
    """Return whether torch would leave this product to MKL though oneDNN is available."""
    return (
        inputs.device.type == "cpu"
        and inputs.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )


def _convolves_faster(inputs: Tensor) -> bool:
    """Return whether convolutions go to oneDNN, use more than MKL's products, and have rows enough to gain by it."""
    return (
        inputs.shape[:-1].numel() >= FEWEST_ROWS
        and torch.get_num_threads() > 1
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    )


class Linear(Preparable, nn.Linear):
    """``nn.Linear`` by way of ``linear``; prepared, it keeps its weight in the order in which oneDNN reads it."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self.with_bias(inputs, self.bias)

    def with_bias(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """Compute ``forward`` with another bias."""
        in_order = self.kept
        if in_order is None or inputs.numel() == 0 or not _goes_to_mkl(inputs):
            return linear(inputs, self.weight, bias)
        return torch.ops.mkldnn._linear_pointwise(inputs, in_order, bias, "none", [], "")

    def made_of_weights(self) -> Tensor | None:
        return torch.ops.mkldnn._reorder_linear_weight(self.weight.detach()) if _goes_to_mkl(self.weight) else None


class Mlp(timm.layers.Mlp):
    """A transformer's MLP with GELU: (..., C) -> (..., C)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__(dim, hidden_dim)
        self.fc1, self.fc2 = Linear(dim, hidden_dim), Linear(hidden_dim, dim)
