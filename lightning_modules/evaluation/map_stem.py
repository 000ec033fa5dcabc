"""Check that stored maps are those that a network's stem computes."""

from __future__ import annotations

from torch import nn

from datamodules.batches import MapFacts
from datamodules.errors import UserError

from ..networks.layers.stem import ConvolutionalStem, stem_of


def facts_of(stem: ConvolutionalStem) -> MapFacts:
    """Return what maps of a stem are known by."""
    return MapFacts(stem.fingerprint(), stem.name, stem.channels, stem.stride)


def check_stem(network: nn.Module, data: object) -> None:
    """Refuse data whose maps come from another stem than the network's.

    Raises:
        UserError: the network has no frozen stem, or not that of the maps.
    """
    maps: MapFacts | None = getattr(data, "maps", None)
    if maps is None:
        return
    stem = stem_of(network)
    if stem is None or not stem.frozen:
        raise UserError(
            f"holds maps of a frozen stem ({maps.name}), the network has none",
            where="data.frames.maps",
            remedy="give the network that stem, or read pixels (maps: null)",
        )
    if (ours := facts_of(stem)) != maps:
        raise UserError(
            f"holds maps of {maps.name} {maps.stem}, the network's stem is {ours.name} {ours.stem}",
            where="data.frames.maps",
            remedy="give the network the weights that the maps were made with, or make others in another folder",
        )
