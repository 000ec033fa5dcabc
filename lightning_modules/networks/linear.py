"""Linear layers that a CPU computes in oneDNN.

torch gives matrix products in float32 to MKL, which on AMD processors leaves the wider half of their arithmetic unused;
its convolutions go to oneDNN, which does not. In training a linear layer is therefore a 1x1 convolution: on two cores
of an EPYC with AVX-512 the same product takes 0.45x the time, forward and backward (2592 x 768 x 3072; few rows gain
nothing). ``prepare_for_inference`` also keeps the weights in the order in which oneDNN reads them, which every call
would otherwise bring them into anew: 256 x 768 x 3072 then take 0.42x of torch's time, 100 x 256 x 32768 take 0.28x.
"""

from __future__ import annotations

from typing import Any

import timm.layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEWEST_ROWS = 256
"""Below it a convolution takes longer to start than it saves."""


def prepare_for_inference(network: nn.Module) -> None:
    """Let a network's linear layers keep a second copy of their weights in the order that a CPU reads them in.

    Worth its memory where a network will run often on few rows with weights that stay as they are. A layer gives its
    copy up when it is trained, moved or given other weights; values agree with torch's to rounding.
    """
    for module in network.modules():
        if isinstance(module, Linear):
            module.keep_in_order()


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, faster for many rows of float32 on a CPU. Values agree to rounding."""
    # First, so that nothing else is traced: a compiler chooses for itself, and what is exported stays plain.
    if torch.compiler.is_compiling() or not _goes_to_mkl(inputs) or inputs.shape[:-1].numel() < FEWEST_ROWS:
        return F.linear(inputs, weight, bias)
    rows = inputs.shape[:-1].numel()
    # Rows become the pixels of one image in channels-last memory, which is the memory they are in.
    image = inputs.reshape(1, rows, 1, -1).permute(0, 3, 1, 2)
    outputs = F.conv2d(image, weight[:, :, None, None], bias)
    return outputs.permute(0, 2, 3, 1).reshape(*inputs.shape[:-1], -1)


def _goes_to_mkl(inputs: Tensor) -> bool:
    """Whether torch would leave this product to MKL though oneDNN is at hand."""
    return (
        inputs.device.type == "cpu"
        and inputs.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )


class Linear(nn.Linear):
    """``nn.Linear`` by way of ``linear``."""

    _in_order: Tensor | None = None
    """The weight as oneDNN reads it; part of no checkpoint."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self.with_bias(inputs, self.bias)

    def with_bias(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """As ``forward``, with another bias."""
        if torch.compiler.is_compiling() or not self._reads_in_order(inputs):
            return linear(inputs, self.weight, bias)
        return torch.ops.mkldnn._linear_pointwise(inputs, self._in_order, bias, "none", [], "")

    def keep_in_order(self) -> None:
        """See ``prepare_for_inference``; for weights that oneDNN would not be given, nothing happens."""
        if _goes_to_mkl(self.weight):
            self._in_order = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())

    def _reads_in_order(self, inputs: Tensor) -> bool:
        # What is traced to count operations stays plain.
        usable = self._in_order is not None and not torch.is_grad_enabled() and not torch.jit.is_tracing()
        return usable and inputs.numel() > 0 and _goes_to_mkl(inputs)

    def train(self, mode: bool = True) -> Linear:
        if mode:
            self._in_order = None
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Linear:
        self._in_order = None
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._in_order = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_in_order"}


class Mlp(timm.layers.Mlp):
    """A transformer's MLP with GELU: (..., C) -> (..., C)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__(dim, hidden_dim)
        self.fc1, self.fc2 = Linear(dim, hidden_dim), Linear(hidden_dim, dim)
