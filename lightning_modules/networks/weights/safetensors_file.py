"""Weights as safetensors, the form for exchange: tensors, and the card in the file's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from datamodules.errors import UserError
from datamodules.files import write_whole

from .card import Card

SUFFIX = ".safetensors"
CARD = "onlooker"
"""The entry of the metadata that holds the card as JSON."""


def write_safetensors(state_dict: Mapping[str, Tensor], path: str | Path, card: Card | None) -> None:
    """Write weights and their card, if there is one, in half precision where that loses nothing.

    Raises:
        UserError: the file cannot be written.
    """
    tensors = {key: value.detach().cpu() for key, value in state_dict.items()}
    if all(torch.equal(value.half().to(value.dtype), value) for value in tensors.values() if value.is_floating_point()):
        tensors = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
    # Copies: the format knows no tensors that share memory.
    copies = {key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
    about = {} if card is None else {CARD: json.dumps(card.to_dict())}
    write_whole(path, save(copies, {"format": "pt"} | about))


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], Card | None]:
    """Return the tensors of a file as they are stored and its card, None where it has none.

    Raises:
        UserError: the file is damaged, or its card is none.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
            text = (file.metadata() or {}).get(CARD)
    except SafetensorError as error:
        raise UserError(f"is damaged ({error})", where=path, remedy="copy it again") from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", where=path) from error
    if text is None:
        return tensors, None
    try:
        return tensors, Card.from_dict(json.loads(text))
    except ValueError as error:  # of JSON too
        raise UserError(f"its card cannot be read: {error}", where=path) from error
