"""Tiny networks with weights drawn so that every part of them matters."""

from __future__ import annotations

import torch
from torch import nn

from lightning_modules.networks.evad import EvadTeacher
from lightning_modules.networks.student import StreamingDetector

CONFIG = {
    "num_classes": 4,
    "num_frames": 8,
    "pretrain_size": 64,
    "dim": 24,
    "depth": 5,
    "num_heads": 3,
    "patch_size": 16,
    "keep_rates": {1: 0.8, 3: 0.75},
    "enhanced_weight": 4.0,
    "key_order": "position",
    "pyramid_layers": (0, 2, 3, 4),
    "head_dim": 16,
    "num_proposals": 6,
    "num_stages": 3,
    "localizer_heads": 2,
    "dynamic_dim": 5,
    "localizer_hidden": 20,
    "localizer_roi_size": 3,
    "decoder_dim": 12,
    "decoder_depth": 2,
    "decoder_heads": 2,
    "decoder_hidden": 10,
    "decoder_roi_size": 2,
    "roi_extension": (0.4, 0.2),
}
"""Arguments of a small ``EvadTeacher``: 4 slots, a 4 x 4 position grid."""


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


def tiny_teacher(seed: int = 0, **changes) -> EvadTeacher:
    """A random teacher of ``CONFIG`` with ``changes``, in eval mode."""
    return randomise(EvadTeacher(**(CONFIG | changes)), seed).eval()


STUDENT = {
    "num_classes": 3,
    "num_frames": 4,
    "pretrain_size": 64,
    "window": 3,
    "memory_keep_rate": 0.5,
    "dim": 8,
    "depth": 2,
    "num_heads": 2,
    "patch_size": 16,
    "mlp_ratio": 2.0,
    "pyramid_layers": (0, 0, 1, 1),
    "head_dim": 8,
    "num_proposals": 4,
    "num_stages": 2,
    "localizer_heads": 2,
    "dynamic_dim": 3,
    "localizer_hidden": 8,
    "localizer_roi_size": 2,
    "decoder_dim": 8,
    "decoder_depth": 2,
    "decoder_heads": 2,
    "decoder_hidden": 8,
    "decoder_roi_size": 2,
}
"""Arguments of the smallest ``StreamingDetector`` in which all of its parts have something to do."""


def tiny_student(temporal: str, **changes) -> StreamingDetector:
    """A student of ``STUDENT`` with ``changes``, as constructed, in eval mode."""
    return StreamingDetector(temporal, **(STUDENT | changes)).eval()
