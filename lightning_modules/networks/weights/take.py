"""Take the network out of a checkpoint, in half precision, with a card.

    python -m lightning_modules.networks.weights.take runs/dsta/latest/checkpoints/last.ckpt dsta.pt card.yaml

The card is a YAML file with the entries of ``Card``. Its ``network`` may be the name of a network's file; the number of
classes is that of the card.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from datamodules.program_help import ProgramParser

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
    parser = ProgramParser(__doc__, "python -m lightning_modules.networks.weights.take")
    parser.add_argument("checkpoint", help="checkpoint of a run")
    parser.add_argument("weights", help="file to write, .pt or .safetensors")
    parser.add_argument("card", type=Path, nargs="?", help="YAML file with the card")
    given = parser.parse_args(arguments)
    # The branch head of a motion distillation serves training alone.
    kept = {
        key: value for key, value in read_state_dict(given.checkpoint).items() if not key.startswith("branch_head.")
    }
    save_weights(kept, given.weights, None if given.card is None else read_card(given.card))


if __name__ == "__main__":
    main(sys.argv[1:])
