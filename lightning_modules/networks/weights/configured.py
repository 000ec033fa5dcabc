"""Networks from what describes them: a file of ``configs/networks``, or the plain dict of a weights file's card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from torch import nn

# Configs name these by their class alone, which is looked up among what is imported.
from ..students import detector as student  # noqa: F401
from .card import Card
from .loading import load_exactly, read_weights

OURS = re.compile(rf"{re.escape(__package__)}(\.\w+)+")


def network_config(file: str | Path, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a YAML file says of a network, with the files that it names and every default written out.

    Args:
        file: names the class and its arguments; files in it are relative to it.
        changes: as on the command line, ``backbone.keep_rates={3: 0.7}``.
    """
    parser = _parser()
    parsed = parser.parse_args([f"--network={file}", *(f"--network.{change}" for change in changes)])
    return json.loads(parser.dump(parsed, format="json", skip_unset=False))["network"]


def build_network(config: Mapping[str, Any]) -> nn.Module:
    """Build a network from its config; weights are random.

    A config may come from a file that somebody else wrote, so it can name nothing but this project's networks.

    Raises:
        ValueError: the config names something else, or arguments that the class does not take.
    """
    _check_names(config)
    parser = _parser()
    return parser.instantiate(parser.parse_object({"network": dict(config)})).network


def network_of(file: str | Path, changes: Sequence[str] = ()) -> nn.Module:
    """Build the network of a YAML file, see ``network_config``."""
    return build_network(network_config(file, changes))


def load_network(path: str | Path) -> tuple[nn.Module, Card]:
    """Return the network of a weights file with its weights, in eval mode, and the file's card.

    Raises:
        ValueError: the file has no card, or its card and weights do not fit each other.
    """
    weights, card = read_weights(path)
    if card is None:
        raise ValueError(f"{path} has no card that says how to build its network; give its config beside the weights")
    network = build_network(card.network)
    if network.num_classes != len(card.classes):
        raise ValueError(f"{path}: its network has {network.num_classes} classes, its card names {len(card.classes)}")
    load_exactly(network, weights)
    return network.eval(), card


def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "network")
    return parser


def _check_names(config: Any, key: str = "network") -> None:
    """Refuse every dotted name that is not one of our networks, which would be imported, and every path."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            _check_names(value, f"{key}.{name}")
    elif isinstance(config, list | tuple):
        for value in config:
            _check_names(value, key)
    elif isinstance(config, str) and re.search(r"[./\\]", config) and not OURS.fullmatch(config):
        raise ValueError(f"{key}={config} is no class of {__package__}; a network's config may name nothing else")
