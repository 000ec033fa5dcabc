"""Starting from VideoMAE: its weights, checked, and placed in a ``VideoViT`` and the context decoder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..detection.context_decoder import ContextDecoder
from ..detection.vit import VideoViT
from ..layers.positions import SpaceTimePositions, sine_table
from ..students.trunk import StreamingTrunk
from .videomae_names import Stored, block_of, by_our_names, our_name, part_of, read_tensors, shown

CHECKED = ("patch_embed", "blocks", "norm")
"""Parts of the encoder whose every parameter must fit."""
ROWS_FIRST = ("patch_embed", "positions", "blocks", "norm", "decoder")
IN_A_STREAM = re.compile(r"^(blocks\.\d+)\.attention\.(norm1|attn)\.")
"""Names under which a streaming trunk has the parts of a clip's block."""
CODES_TOLERANCE = 1e-2
"""Tolerance of position codes between -1 and 1, so that a table stored in bfloat16 is recognised."""


class PretrainedReport(NamedTuple):
    """Report on the loading of a file of pre-trained weights."""

    used: tuple[str, ...]
    """Names in the file of what the network now computes with."""
    left_over: tuple[str, ...]
    """The other names in the file."""
    missing: tuple[str, ...]
    """Names of the network's parameters that keep the start they had."""
    notes: tuple[str, ...] = ()
    """Remarks for the user, one sentence each."""

    def table(self) -> str:
        """Return one row per part of the network or the file; under them the notes."""
        missing = tuple(name.removeprefix("head.").removeprefix("trunk.") for name in self.missing)
        columns = (self.used, self.left_over, missing)
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


def load_videomae(network: nn.Module, weights: str | Path | Mapping[str, object]) -> PretrainedReport:
    """Start a ``VideoViT`` or a ``StreamingTrunk``, or the one that is a detector's, from VideoMAE or VideoMAE V2.

    Tong et al., 2022, https://arxiv.org/abs/2203.12602; Wang et al., 2023, https://arxiv.org/abs/2303.16727.
    ``weights`` are a file or its content: a pre-training checkpoint, a fine-tuned classifier, or either as Hugging
    Face's transformers name it, in ``.safetensors`` too. An error leaves the network as it was.

    * Encoder: every parameter must fit. A file does not tell the number of heads; the published have 6 (S), 12 (B) and
      16 (L, H, g).
    * Final norm: a fine-tuned classifier has ``fc_norm`` instead, made for the mean of all tokens and not for tokens.
      It is left over and ``norm`` keeps its start, as in the published EVAD.
    * Context decoder: a pre-training decoder of its width gives it the first blocks, the projection and the mask token.
      The published EVAD forgets that token, which in both networks stands for tokens not seen. Any other is left over,
      as are its final norm and its head, which have no place here.
    * Positions: VideoMAE's are fixed codes, which the network computes itself for frames of any size. ``num_frames``,
      ``patch_size`` and ``pretrain_size`` must be those of the pre-training. A table in the file counts as used where
      it holds the network's own codes; a learned one needs ``learned_positions``.
    * Biases of keys, which newer transformers store, change nothing: they add the same to all scores of a query, which
      a softmax ignores. The network has none, and they count as used.

    Raises:
        ValueError: where the file holds no VideoMAE encoder, or none of the network's sizes; it lists what differs.
    """
    encoder, _ = encoder_of(network)
    tensors = read_tensors(weights)
    stored = by_our_names(tensors)
    notes: list[str] = []
    recomputed: tuple[str, ...] = ()
    if table := stored.get("positions.table"):
        if problem := positions_problem(table, encoder.positions):
            notes.append(problem)
            del stored["positions.table"]
        elif not isinstance(encoder.positions.table, nn.Parameter):
            recomputed = table.keys
    if lost_biases(stored):
        notes.append(
            "all query and value biases are zero, which is what early versions of transformers 5 made of the published "
            "ones (huggingface/transformers#48675); take the published file"
        )
    return place(network, stored, tensors, notes, recomputed)


def encoder_of(network: nn.Module) -> tuple[VideoViT | StreamingTrunk, str]:
    """Return the encoder that pre-trained weights are for, and the prefix of its parameters' names.

    Raises:
        ValueError: there is none.
    """
    for name in ("backbone", "trunk"):
        if isinstance(encoder := getattr(network, name, None), VideoViT | StreamingTrunk):
            return encoder, f"{name}."
    if isinstance(network, VideoViT | StreamingTrunk):
        return network, ""
    raise ValueError(
        f"{type(network).__name__} has no VideoViT and no StreamingTrunk that pre-trained weights could fill"
    )


def place(
    network: nn.Module,
    stored: Mapping[str, Stored],
    tensors: Mapping[str, Tensor],
    notes: Sequence[str],
    recomputed: tuple[str, ...] = (),
) -> PretrainedReport:
    """Fill a network's encoder, and its context decoder where there is something for it; report on it.

    Args:
        stored: the weights under our names, of a ``VideoViT``; a table of positions only where it fits.
        tensors: all there is in the file.
        notes: of what was done to them before.
        recomputed: names in the file of what the network makes itself.

    Raises:
        ValueError: the encoder is of other sizes than the network's; it lists what differs.
    """
    encoder, prefix = encoder_of(network)
    own = network.state_dict()
    new = encoder.new_parameters() if isinstance(encoder, StreamingTrunk) else set()
    places = {
        re.sub(IN_A_STREAM, r"\1.\2.", name.removeprefix(prefix)): name
        for name in own
        if name.startswith(prefix) and name.removeprefix(prefix) not in new
    }
    check_encoder(stored, {name: own[place] for name, place in places.items()})
    placed = {places[name]: entry for name, entry in stored.items() if part_of(name) in CHECKED}
    notes = list(notes)
    table = stored.get("positions.table")
    if table is not None and isinstance(encoder.positions.table, nn.Parameter):
        placed[f"{prefix}positions.table"] = table._replace(value=table.value.view_as(encoder.positions.table))
    if "norm.weight" not in stored and "fc_norm.weight" in stored:
        notes.append("norm starts fresh: the file is of a classifier, whose fc_norm is of tokens' means")
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


def lost_biases(stored: Mapping[str, Stored]) -> bool:
    """Return whether all biases are zero in a file that has them as transformers 5 has."""
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
    """Return a remark on a stored table that is neither loaded nor made again; None if it is either.

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
    """Return the tensors of a pre-training decoder that the context decoder takes, under its names, and a note.

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
