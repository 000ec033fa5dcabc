"""A streaming detector of the configs, made small, and its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_modules.networks.weights.card import Card
from lightning_modules.networks.weights.configured import network_config

NETWORKS = Path(__file__).parents[3] / "configs" / "networks"
SMALL = ["num_classes=3", "trunk.size={dim: 8, depth: 2, num_heads: 2, num_frames: 8, pretrain_size: 64}"]
SMALL += ["trunk.size.pyramid_layers=[0, 0, 1, 1]", "head.localizer.hidden_dim=8", "head.decoder.hidden_dim=8"]


def small_config(name: str = "dsta_late_tiny") -> dict[str, Any]:
    """The config of a student."""
    return network_config(NETWORKS / f"{name}.yaml", 10, SMALL)


def small_card(config: dict[str, Any]) -> Card:
    """The card of a network with this config; frames of 64 pixels, eight a second."""
    return Card(config, ("sit", "stand", "walk"), 2, 16.0, 64, "miniature", "0123abc", look_ahead=3)
