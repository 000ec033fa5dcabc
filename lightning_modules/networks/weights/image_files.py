"""Weights of image models: files of PyTorch and safetensors under timm's names, and those of timm's hub."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from datamodules.errors import UserError
from datamodules.tensor_file import read_tensor_file

from .safetensors_file import SUFFIX, read_safetensors

CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Keys of a checkpoint that may hold the weights; averaged ones first, as timm does."""
HUB = "timm"
"""Word given instead of a file: the weights that timm has for a model."""
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of pixels between 0 and 1."""
LITE_BLOCK = re.compile(r"_blocks\.(\d+)\.([^.]+)\.(.+)")
LITE_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
LITE_INSIDE = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
"""Names of efficientnet-lite-pytorch and timm's for them, in a block that widens its input."""
LITE_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""The same names in the first block, which does not widen its input."""


def read_image_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a file of an image model, taken out of a checkpoint's container; nothing is executed.

    Raises:
        UserError: it is not there or damaged, or holds no weights.
    """
    path = Path(path)
    content: Any
    if path.suffix == SUFFIX and path.is_file():
        content = read_safetensors(path)[0]
    else:
        content = read_tensor_file(path, "weights of an image model", classes=[argparse.Namespace])
    while isinstance(content, Mapping) and (name := next((name for name in CONTAINERS if name in content), None)):
        content = content[name]
    tensors = dict(content) if isinstance(content, Mapping) else {}
    tensors = {key.removeprefix("module."): value for key, value in tensors.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError("holds no weights of an image model (expected tensors by name)", where=path)
    return tensors


def with_timm_names(tensors: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """Give the weights of efficientnet-lite-pytorch timm's names; those of other files keep theirs.

    Args:
        own: names of timm's model, which say how its blocks are numbered.
    """
    if "_conv_stem.weight" not in tensors:
        return dict(tensors)
    blocks = list(dict.fromkeys(name.rpartition(".conv_dw.")[0] for name in own if ".conv_dw." in name))
    renamed = {}
    for key, value in tensors.items():
        if match := LITE_BLOCK.fullmatch(key):
            number, layer, rest = int(match[1]), match[2], match[3]
            names = LITE_INSIDE if f"_blocks.{number}._expand_conv.weight" in tensors else LITE_FIRST
            block = blocks[number] if number < len(blocks) else f"blocks.{number}"
            renamed[f"{block}.{names.get(layer, layer)}.{rest}"] = value
        else:
            layer, _, rest = key.partition(".")
            renamed[f"{LITE_OUTSIDE.get(layer, layer)}.{rest}"] = value
    return renamed


def require_model(name: str) -> None:
    """Refuse a name that timm does not know."""
    if not timm.is_model(name.partition(".")[0]):
        raise ValueError(f"timm has no model called {name}; timm.list_models() lists those that it has")


def normalisation_of(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation that a model of timm was trained with, ImageNet's where it is not stated."""
    config = timm.get_pretrained_cfg(name)
    return IMAGENET if config is None else (tuple(config.mean), tuple(config.std))


def hub_weights(name: str) -> dict[str, Tensor]:
    """Return the weights that timm has for a model, from its hub or from the local cache of it.

    Raises:
        ValueError: there is no such model, or no weights for it. UserError: the hub cannot be reached.
    """
    require_model(name)
    if not timm.is_model_pretrained(name):
        raise ValueError(f"timm has no weights for {name}; name a file of them")
    try:
        model: Any = timm.create_model(name, pretrained=True)
    except OSError as error:  # what the hub's client raises without a network, and for files that are missing
        raise UserError(
            f"the weights of timm's {name} cannot be fetched ({error})", remedy="name a file of them"
        ) from error
    return dict(model.state_dict())
