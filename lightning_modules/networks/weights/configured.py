"""Networks built from a description: a file of ``configs/networks``, or the plain dict of a weights file's card."""

from __future__ import annotations

import json
import pkgutil
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from torch import nn

from datamodules.errors import UserError

from ..students.detector import StreamingDetector
from .card import NETWORKS, Card, short_name, with_classes_renamed
from .loading import load_exactly, read_weights


def network_config(file: str | Path, num_classes: int, changes: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a YAML file says of a network, with the files that it names and every default written out.

    Classes are named without their modules, so that a card outlives a move of the code.

    Args:
        file: names the class and its arguments; files in it are relative to it.
        num_classes: K, which a file leaves to the data.
        changes: as on the command line, ``backbone.keep_rates={3: 0.7}``.
    """
    parser = _parser()
    changes = [f"num_classes={num_classes}", *changes]
    parsed = parser.parse_args([f"--network={file}", *(f"--network.{change}" for change in changes)])
    return with_classes_renamed(json.loads(parser.dump(parsed, format="json", skip_unset=False))["network"], short_name)


def build_network(config: Mapping[str, Any]) -> nn.Module:
    """Build a network from its config; weights are random.

    A config may come from a stranger's file, so it can name nothing but this project's networks.

    Raises:
        ValueError: the config names something else, or arguments that the class does not take.
    """
    parser = _parser()
    try:
        parsed = parser.parse_object({"network": importable(config)})
    except (ArgumentError, TypeError) as error:
        raise ValueError(f"the config builds no network: {_first_line(error)}") from error
    return parser.instantiate(parsed).network


def importable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a network with the places of its classes, as the command line takes it.

    Raises:
        ValueError: it names something other than this project's networks.
    """
    _check_names(config)
    return with_classes_renamed(config, lambda name: _classes().get(short_name(name), name))


def network_of(file: str | Path, num_classes: int, changes: Sequence[str] = ()) -> nn.Module:
    """Build the network of a YAML file, see ``network_config``."""
    return build_network(network_config(file, num_classes, changes))


def load_network(path: str | Path) -> tuple[nn.Module, Card]:
    """Return the network of a weights file with its weights, in eval mode, and the file's card.

    Raises:
        UserError: the file has no card, or its card and weights do not fit each other.
    """
    weights, card = read_weights(path)
    if card is None:
        raise UserError(
            "has no card that says how to build its network", where=path, remedy="give its config beside the weights"
        )
    try:
        network = build_network(card.network)
        load_exactly(network, weights)
    except ValueError as error:
        raise UserError(str(error), where=path) from error
    if network.num_classes != len(card.classes):
        raise UserError(f"its network has {network.num_classes} classes, its card names {len(card.classes)}", path)
    return network.eval(), card


def card_with_timing(card: Card, network: nn.Module) -> Card:
    """Return the card with the delay and the timing that its network has now, which may have been chosen later."""
    if not isinstance(network, StreamingDetector):
        return card
    config = dict(card.network)
    if "init_args" in config:
        config["init_args"] = {**config["init_args"], "timing": asdict(network.timing)}
    return replace(card, network=config, look_ahead=network.look_ahead)


def _parser() -> ArgumentParser:
    _classes()  # configs name classes alone, which are looked up among what is imported
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "network")
    return parser


@cache
def _classes() -> dict[str, str]:
    """Return the networks and parts of networks of this project, name -> place."""
    found = {}
    for module in pkgutil.walk_packages(import_module(NETWORKS).__path__, f"{NETWORKS}."):
        for name, value in vars(import_module(module.name)).items():
            if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module.name:
                found[name] = f"{module.name}.{name}"
    return found


def _first_line(error: BaseException) -> str:
    return _first_line(error.__cause__) if error.__cause__ else str(error).partition("\n")[0]


def _check_names(config: Any, key: str = "network") -> None:
    """Refuse every class that is not one of our networks, which would be imported, and every path."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            _check_names(value, f"{key}.{name}")
    elif isinstance(config, list | tuple):
        for value in config:
            _check_names(value, key)
    elif isinstance(config, str):
        names_something = key.endswith(".class_path") or re.search(r"[./\\]", config)
        if names_something and short_name(config) not in _classes():
            raise ValueError(f"{key}={config} is no class of {NETWORKS}; a network's config may name nothing else")
