"""Take the network out of a checkpoint, in half precision, with a card.

    python -m lightning_modules.networks.weights.take CHECKPOINT WEIGHTS [CARD.yaml]

The card is a YAML file with the entries of ``Card``; its ``network`` may be the name of a network's file, which has as
many classes as the card names.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from .card import Card
from .configured import network_config
from .loading import read_state_dict, save_weights


def read_card(file: Path) -> Card:
    """Read a card from a YAML file; a network's file is relative to the working directory.

    The delay is the network's own.
    """
    content = yaml.safe_load(file.read_text())
    network = content.get("network")
    if isinstance(network, str):
        network = network_config(network, len(content.get("classes") or ()))
    timing = (network or {}).get("init_args", {}).get("timing") or {}
    return Card.from_dict({"look_ahead": timing.get("look_ahead", 0), **content, "network": network})


def main(arguments: list[str]) -> None:
    if len(arguments) not in (2, 3):
        sys.exit("usage: python -m lightning_modules.networks.weights.take CHECKPOINT WEIGHTS [CARD.yaml]")
    # The branch head of a motion distillation serves training alone.
    kept = {key: value for key, value in read_state_dict(arguments[0]).items() if not key.startswith("branch_head.")}
    save_weights(kept, arguments[1], read_card(Path(arguments[2])) if len(arguments) == 3 else None)


if __name__ == "__main__":
    main(sys.argv[1:])
