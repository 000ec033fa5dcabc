"""Names of VideoMAE's files, of its authors and of Hugging Face's transformers, and ours for them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from datamodules.errors import UserError
from datamodules.tensor_file import read_tensor_file

from .loading import KEYS_SHOWN

CONTAINERS = ("model", "module", "state_dict", "model_state")
"""Keys of a checkpoint that may hold the weights."""
WRAPPERS = ("module.", "model.", "_orig_mod.", "backbone.")
"""Prefixes of wrappers around the network when it was saved; in any order, any number."""
RENAMES = (
    (r"^videomae\.", ""),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "positions.table"),
    (r"^encoder\.", ""),
    (r"^layer\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"^pos_embed$", "positions.table"),
    (r"^classifier\.", "head."),
    (r"^decoder\.decoder_layers\.", "decoder.blocks."),
    (r"^(encoder_to_decoder\.|mask_token$)", r"decoder.\1"),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
)
"""Names of VideoMAE (pre-training and fine-tuned) and of Hugging Face's transformers, and ours for them, in turn."""


class Stored(NamedTuple):
    """A weight under our name, and the names it has in the file."""

    value: Tensor
    keys: tuple[str, ...]


def read_tensors(weights: str | Path | Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors of a file (or of what was read from one), taken out of a checkpoint's container."""
    content = weights if isinstance(weights, Mapping) else read_file(Path(weights))
    while inner := next((part for name in CONTAINERS if isinstance(part := content.get(name), Mapping)), None):
        content = inner
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"there are no weights among {shown(content)} (nor below {', '.join(CONTAINERS)})")
    return tensors


def read_file(path: Path) -> Mapping[str, object]:
    """The content of a .safetensors or a PyTorch file, without executing anything in it."""
    if path.suffix == ".safetensors" and path.is_file():
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is no safetensors file: {error}") from error
    # VideoMAE keeps its command line in the file, as an ``argparse.Namespace``: attributes, nothing that runs.
    content = read_tensor_file(path, "pre-trained weights", classes=[argparse.Namespace])
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not weights by name")
    return content


def our_name(key: str) -> str:
    """The name in a file -> ours, without the prefix of the backbone; a pre-training decoder's is ``decoder.``."""
    while prefix := next((prefix for prefix in WRAPPERS if key.startswith(prefix)), None):
        key = key.removeprefix(prefix)
    for pattern, ours in RENAMES:
        key = re.sub(pattern, ours, key)
    return key


def part_of(name: str) -> str:
    return name.split(".", 1)[0]


def block_of(name: str) -> int:
    """The number of the block that a name of the encoder or the decoder is in, -1 where it is in none."""
    match = re.match(r"(?:decoder\.)?blocks\.(\d+)\.", name)
    return int(match[1]) if match else -1


def shown(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:KEYS_SHOWN]) + (", ..." if len(names) > KEYS_SHOWN else "")


def by_our_names(tensors: Mapping[str, Tensor]) -> dict[str, Stored]:
    """The weights of a file under our names, separate queries, keys and values joined as ``SelfAttention`` has them."""
    stored: dict[str, Stored] = {}
    for key, value in tensors.items():
        name = our_name(key)
        if name in stored:
            raise ValueError(f"the file holds two weights for {name}: {stored[name].keys[0]} and {key}; leave one")
        stored[name] = Stored(value, (key,))
    for attention in [name.removesuffix("query.weight") for name in stored if name.endswith(".attn.query.weight")]:
        names = [f"{attention}{part}.weight" for part in ("query", "key", "value")]
        if not all(name in stored for name in names):
            continue  # names left over here are reported as unused
        parts = [stored.pop(name) for name in names]
        parts_keys = [*parts, *filter(None, [stored.pop(f"{attention}key.bias", None)])]
        stored[f"{attention}qkv.weight"] = Stored(
            torch.cat([part.value for part in parts]), tuple(key for part in parts_keys for key in part.keys)
        )
        for part, ours in (("query.bias", "q_bias"), ("value.bias", "v_bias")):
            if attention + part in stored and attention + ours not in stored:
                stored[attention + ours] = stored.pop(attention + part)
    return stored
