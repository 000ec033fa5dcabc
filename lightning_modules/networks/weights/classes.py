"""Weights, and teachers, of other classes than the data has: refused or told in words, before shapes are compared."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from datamodules.errors import UserError

from .card import Card


def check_classes(
    network: nn.Module, state_dict: Mapping[str, Tensor], path: str | Path | None, fresh: Sequence[str] = ()
) -> None:
    """Refuse weights whose only misfit is the number of classes, and name the parameters that must start fresh.

    Args:
        network: the one that shall have them; it has ``num_classes``.
        state_dict: the weights.
        path: where they come from.
        fresh: patterns of parameters that need no weights.

    Raises:
        UserError: as described; other misfits are left to ``load_exactly``.
    """
    own = network.state_dict()
    misshapen = [
        key
        for key in own.keys() & state_dict.keys()
        if own[key].shape != state_dict[key].shape and not any(fnmatch(key, pattern) for pattern in fresh)
    ]
    shapes = [(own[key].shape, state_dict[key].shape) for key in misshapen]
    counts = {given[:1] for _, given in shapes}
    of_classes = all(mine[:1] == (network.num_classes,) and mine[1:] == given[1:] for mine, given in shapes)
    if not misshapen or not of_classes or len(counts) != 1:
        return
    patterns = sorted({re.sub(r"\.\d+\.", ".*.", key.rpartition(".")[0]) + ".*" for key in misshapen})
    (count,) = counts.pop()
    raise UserError(
        f"these weights know {count} classes, but the data has {network.num_classes}",
        where=path,
        remedy=f"start the classifier fresh: --model.weights FILE --model.training.fresh '{json.dumps(patterns)}'",
    )


def other_classes(card: Card | None, names: Sequence[str] | None) -> str:
    """Say how the classes of a file differ from those of the data; empty where they do not, or one has no names."""
    if card is None or names is None or card.classes == tuple(names):
        return ""
    if len(card.classes) != len(names):
        return f"has {len(card.classes)} classes, the data has {len(names)}"
    number, there, here = next(
        (i, there, here) for i, (there, here) in enumerate(zip(card.classes, names, strict=True)) if there != here
    )
    return f"knows other classes than the data: class {number} is {there} there and {here} here"


def check_teacher(card: Card | None, path: str, data: Any) -> None:
    """Compare a teacher with the data that it is to teach on; a warning says where only the stride is another.

    Args:
        card: of its weights. path: the file. data: the DataModule.

    Raises:
        UserError: its classes are others.
    """
    if difference := other_classes(card, getattr(data, "class_names", None)):
        remedy = "take a teacher of these classes, in this order"
        raise UserError(f"{path} {difference}", where="model.teacher_weights", remedy=remedy)
    stride = getattr(data, "frame_stride", None)
    if card is not None and stride is not None and card.frame_stride != stride:
        warnings.warn(
            f"model.teacher_weights={path} was trained at a stride of {card.frame_stride} frames and is asked at a "
            f"stride of {stride}",
            stacklevel=2,
        )
