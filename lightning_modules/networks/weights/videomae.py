"""Starting from VideoMAE: names of its files, checked, and placed in a ``VideoViT`` and the context decoder."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from datamodules.errors import UserError
from datamodules.tensor_file import read_tensor_file

from ..detection.context_decoder import ContextDecoder
from ..detection.vit import VideoViT
from ..layers.positions import SpaceTimePositions, sine_table
from .loading import KEYS_SHOWN

CONTAINERS = ("model", "module", "state_dict", "model_state")
"""Where in a checkpoint the weights are, if they are not the whole of it."""
WRAPPERS = ("module.", "model.", "_orig_mod.", "backbone.")
"""Prefixes that stand for whatever was wrapped around the network when it was saved; in any order, any number."""
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
"""From the names of VideoMAE (pre-training and fine-tuned) and of Hugging Face's transformers to ours, one by one."""
CHECKED = ("patch_embed", "blocks", "norm")
"""Parts of the encoder whose every parameter must fit."""
ROWS_FIRST = ("patch_embed", "positions", "blocks", "norm", "decoder")
CODES_TOLERANCE = 1e-2
"""Of position codes between -1 and 1, so that a table stored in bfloat16 is recognised."""


class PretrainedReport(NamedTuple):
    """What became of a file of pre-trained weights."""

    used: tuple[str, ...]
    """Names in the file of what the network now computes with."""
    left_over: tuple[str, ...]
    """The other names in the file."""
    missing: tuple[str, ...]
    """Names of the network's parameters that keep the start they had."""
    notes: tuple[str, ...] = ()
    """What a user should know, a sentence each."""

    def table(self) -> str:
        """One row a part of the network or the file; under them the notes."""
        columns = (self.used, self.left_over, tuple(name.removeprefix("head.") for name in self.missing))
        parts = [[part_of(our_name(name)) for name in names] for names in columns]
        rows = [
            (part, *counts)
            for part in dict.fromkeys([*ROWS_FIRST, *parts[0], *parts[1], *parts[2]])
            if any(counts := (parts[0].count(part), parts[1].count(part), parts[2].count(part)))
        ]
        width = max(len("part"), *(len(row[0]) for row in rows))
        lines = [f"{'part':<{width}}  {'used':>5}  {'left over':>9}  {'missing':>7}"]
        lines += [f"{part:<{width}}  {used:>5}  {left:>9}  {missing:>7}" for part, used, left, missing in rows]
        return "\n".join([*lines, *(f"* {note}" for note in self.notes)])

    def __str__(self) -> str:
        return self.table()


class Stored(NamedTuple):
    """A weight under our name, and the names it has in the file."""

    value: Tensor
    keys: tuple[str, ...]


def load_videomae(network: nn.Module, weights: str | Path | Mapping[str, object]) -> PretrainedReport:
    """Start a ``VideoViT``, or the one that is a detector's ``backbone``, from VideoMAE or VideoMAE V2.

    Tong et al., 2022, https://arxiv.org/abs/2203.12602; Wang et al., 2023, https://arxiv.org/abs/2303.16727.
    ``weights`` are a file or its content: a pre-training checkpoint, a fine-tuned classifier, or either as Hugging
    Face's transformers name it, in ``.safetensors`` too. An error leaves the network as it was.

    * Encoder: every parameter must fit. A file does not tell the number of heads; the published have 6 (S), 12 (B) and
      16 (L, H, g).
    * Final norm: a fine-tuned classifier has ``fc_norm`` instead, made for the mean of all tokens and not for tokens.
      It is left over and ``norm`` keeps its start, as in the published EVAD.
    * Context decoder: a pre-training decoder of its width gives it its first blocks, the projection and the mask token
      (which the published EVAD forgets; in both it stands for tokens that nobody has seen). Any other is left over, as
      are its final norm and its head, which have no place here.
    * Positions: VideoMAE's are fixed codes that the network makes itself, for frames of any size, if ``num_frames``,
      ``patch_size`` and ``pretrain_size`` are those of the pre-training. A table in the file counts as used where it
      holds the network's own codes; a learned one needs ``learned_positions``.
    * Biases of keys, which newer transformers store, change nothing: they add the same to all scores of a query, and a
      softmax does not see that. The network has none, and they count as used.

    Raises:
        ValueError: where the file holds no VideoMAE encoder, or none of the network's sizes; it lists what differs.
    """
    encoder = getattr(network, "backbone", network)
    if not isinstance(encoder, VideoViT):
        raise ValueError(
            f"{type(network).__name__} has no VideoViT that VideoMAE could fill; a streaming detector starts from its "
            "clip detector (start_from, or teacher_weights of a distillation), which starts from VideoMAE"
        )
    prefix = "" if encoder is network else "backbone."
    tensors = read_tensors(weights)
    stored = by_our_names(tensors)
    own = network.state_dict()
    check_encoder(stored, {name.removeprefix(prefix): value for name, value in own.items() if name.startswith(prefix)})

    placed = {prefix + name: entry for name, entry in stored.items() if part_of(name) in CHECKED}
    recomputed: tuple[str, ...] = ()
    notes: list[str] = []
    if table := stored.get("positions.table"):
        if problem := positions_problem(table, encoder.positions):
            notes.append(problem)
        elif isinstance(encoder.positions.table, nn.Parameter):
            placed[f"{prefix}positions.table"] = table._replace(value=table.value.view_as(encoder.positions.table))
        else:
            recomputed = table.keys
    if "norm.weight" not in stored and "fc_norm.weight" in stored:
        notes.append("norm starts fresh: the file is of a classifier, whose fc_norm is of tokens' means")
    if lost_biases(stored):
        notes.append(
            "all query and value biases are zero, which is what early versions of transformers 5 made of the published "
            "ones (huggingface/transformers#48675); take the published file"
        )
    if isinstance(decoder := getattr(getattr(network, "head", None), "decoder", None), ContextDecoder):
        fitting, note = decoder_weights(stored, decoder)
        placed |= {f"head.{name}": entry for name, entry in fitting.items()}
        notes += [note] if note else []

    # The rest is missing on purpose, and in the report.
    network.load_state_dict({name: entry.value for name, entry in placed.items()}, strict=False)
    used = {key for entry in placed.values() for key in entry.keys}.union(recomputed)
    return PretrainedReport(
        tuple(key for key in tensors if key in used),
        tuple(key for key in tensors if key not in used),
        tuple(name for name in own if name not in placed),
        tuple(notes),
    )


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
            continue  # what is left here is reported as having no place
        parts = [stored.pop(name) for name in names]
        parts_keys = [*parts, *filter(None, [stored.pop(f"{attention}key.bias", None)])]
        stored[f"{attention}qkv.weight"] = Stored(
            torch.cat([part.value for part in parts]), tuple(key for part in parts_keys for key in part.keys)
        )
        for part, ours in (("query.bias", "q_bias"), ("value.bias", "v_bias")):
            if attention + part in stored and attention + ours not in stored:
                stored[attention + ours] = stored.pop(attention + part)
    return stored


def lost_biases(stored: Mapping[str, Stored]) -> bool:
    """Whether all biases are zero in a file that has them as transformers 5 has."""
    biases = [
        entry for name, entry in stored.items() if name.startswith("blocks.") and name.endswith(("q_bias", "v_bias"))
    ]
    of_transformers = any(entry.keys[0].endswith((".query.bias", ".value.bias")) for entry in biases)
    return of_transformers and not any(entry.value.any() for entry in biases)


def sizes(shapes: Mapping[str, torch.Size]) -> dict[str, float]:
    """Arguments of a ``VideoViT`` as far as the shapes of its parameters tell them."""
    found: dict[str, float] = {}
    if len(shape := shapes.get("patch_embed.proj.weight", torch.Size())) == 5:
        found |= {"dim": shape[0], "patch_size": shape[-1]}
    if len(shape := shapes.get("blocks.0.mlp.fc1.weight", torch.Size())) == 2:
        found["mlp_ratio"] = shape[0] / shape[1]
    return found | {"depth": 1 + max(map(block_of, shapes), default=-1)}


def check_encoder(stored: Mapping[str, Stored], own: Mapping[str, Tensor]) -> None:
    """Refuse weights whose encoder is not of the network's sizes, or is not VideoMAE's."""
    theirs = {name: entry.value.shape for name, entry in stored.items() if part_of(name) in CHECKED}
    ours = {name: value.shape for name, value in own.items() if part_of(name) in CHECKED}
    if not any(name in ours and part_of(name) != "norm" for name in theirs):
        keys = [key for entry in stored.values() for key in entry.keys]
        raise ValueError(f"the file holds nothing of a VideoMAE encoder; its names are {shown(keys)}")
    their_sizes, our_sizes = sizes(theirs), sizes(ours)
    depth = min(their_sizes["depth"], our_sizes["depth"])
    missing = [name for name in ours if name not in theirs and part_of(name) != "norm" and block_of(name) < depth]
    if not any(name.endswith((".q_bias", ".v_bias")) for name in theirs):  # trained without: zero, as they start
        missing = [name for name in missing if not name.endswith((".q_bias", ".v_bias"))]
    strange = [key for name in theirs if name not in ours and block_of(name) < depth for key in stored[name].keys]
    misshapen = [
        f"{name}: {tuple(theirs[name])} in the file, {tuple(ours[name])} in the network"
        for name in ours
        if name in theirs and theirs[name] != ours[name]
    ]
    problems = []
    if their_sizes["depth"] != our_sizes["depth"]:
        problems.append(f"{their_sizes['depth']} blocks in the file, {our_sizes['depth']} in the network")
    problems += [
        f"{what} ({len(names)}): {shown(names)}"
        for what, names in (
            ("misshapen", misshapen),
            ("missing in the file", missing),
            ("without a place in the network", strange),
        )
        if names
    ]
    if not problems:
        return
    wanted = [f"{name}={value:.16g}" for name, value in their_sizes.items() if our_sizes.get(name) != value]
    way_out = "these are weights of another architecture than VideoMAE's"
    if wanted:
        way_out = (
            f"build the network with {', '.join(wanted)}, and the num_heads, pyramid_layers and keep_rates to match"
        )
    raise ValueError(f"the file's encoder does not fit the network's; {'; '.join(problems)}. Way out: {way_out}")


def positions_problem(table: Stored, positions: SpaceTimePositions) -> str | None:
    """What is to be said of a stored table that is neither loaded nor made again; None if it is either.

    Raises:
        ValueError: where the table was learned and the network has no place for it: its weights would see positions
            that they were not trained with.
    """
    own = positions.table
    stored = table.value.flatten(0, -2).float().cpu()
    rows, width = own.numel() // own.shape[-1], own.shape[-1]
    fits = stored.shape == (rows, width)
    is_learned = not torch.allclose(stored, sine_table(*stored.shape), rtol=0, atol=CODES_TOLERANCE)
    if fits and (isinstance(own, nn.Parameter) or not is_learned):
        return None
    difference = (
        f"{table.keys[0]} holds {stored.shape[0]} codes of width {stored.shape[1]}, the network has {rows} of width "
        f"{width} ({positions.num_slots} slots of {positions.grid} x {positions.grid})"
    )
    sizes_of_training = "set num_frames and pretrain_size to those of the pre-training (frames may have any other size)"
    if not is_learned:
        return f"{difference}; {sizes_of_training} unless these are meant"
    if fits:
        raise ValueError(f"{table.keys[0]} holds learned positions; set learned_positions=true to take them")
    raise ValueError(f"{difference}, and they are learned; set learned_positions=true, and {sizes_of_training}")


def decoder_weights(stored: Mapping[str, Stored], decoder: ContextDecoder) -> tuple[dict[str, Stored], str]:
    """What of a pre-training decoder the context decoder takes, under the detector's names, and a note on it.

    All of it or nothing: parts of different widths were not trained with each other.
    """
    own = {f"decoder.{name}": value for name, value in decoder.state_dict().items()}
    depth = len(decoder.blocks)
    projections = ("decoder.encoder_to_decoder.weight", "decoder.mask_token")
    theirs = {name: entry for name, entry in stored.items() if name.startswith("decoder.blocks.")}
    depth_in_file = 1 + max(map(block_of, theirs), default=-1)
    theirs = {name: entry for name, entry in theirs.items() if block_of(name) < depth}
    theirs |= {name: stored[name] for name in projections if name in stored}
    for name, entry in theirs.items():
        if name not in own:
            return {}, f"the pre-training decoder is left over: {entry.keys[0]} has no place in the context decoder"
        if entry.value.shape != own[name].shape:
            return {}, (
                f"the pre-training decoder is left over: {entry.keys[0]} is {tuple(entry.value.shape)} in the file, "
                f"{tuple(own[name].shape)} in the network (the decoder's dim and mlp_ratio)"
            )
    if not depth_in_file:
        return theirs, ""
    return theirs, f"{min(depth, depth_in_file)} of the context decoder's {depth} blocks start from the pre-training's"
