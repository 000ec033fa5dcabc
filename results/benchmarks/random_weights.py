"""Random weights that hide nothing: for timing and for comparing two implementations."""

from __future__ import annotations

import torch
from torch import nn


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter anew: gates, biases and norms too, which start where they would hide mistakes.

    Proposals become boxes of a fifth to eight times the frame around any place, so that every pyramid level is read.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    with torch.no_grad():
        for name, parameter in network.named_parameters():
            values = draw(*parameter.shape)
            if name.endswith("proposal_boxes"):
                scales = torch.logspace(-0.7, 0.9, len(values))[:, None] * (values[:, 2:] * 0.1).exp()
                values = torch.cat([torch.rand(len(values), 2, generator=generator), scales], dim=1)
            elif parameter.dim() > 1 and parameter.shape[-1] > 1 and not name.endswith(("mask_token", "features")):
                values = values * max(parameter.shape[1:].numel(), 1) ** -0.5
            elif parameter.dim() == 1:
                values = values * 0.3 + ("norm" in name and name.endswith("weight"))
            if "bboxes_delta" in name:
                values = values * 0.3
            parameter.copy_(values)
    return network
