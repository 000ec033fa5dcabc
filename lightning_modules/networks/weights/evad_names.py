"""EVAD's published checkpoints: the names of their parameters, and what their shapes tell about the network."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ..layers.trunk_size import TUBELET

POSITIONS = "backbone.positions.table"

# The first pattern that matches a name at its beginning is replaced.
_NAMES = (
    (r"det_head\.s0_headseries\.(\d+)\.self_attn\.in_proj_", r"head.localizer.stages.\1.self_attn.qkv."),
    (r"det_head\.s0_headseries\.(\d+)\.self_attn\.out_proj\.", r"head.localizer.stages.\1.self_attn.proj."),
    (r"det_head\.s0_headseries\.", "head.localizer.stages."),
    (r"det_head\.decoder\.", "head.decoder."),
    (r"det_head\.", "head.decoder."),
    (r"init_proposal_features\.weight$", "head.localizer.proposal_features"),
    (r"init_proposal_boxes\.weight$", "head.localizer.proposal_boxes"),
    (r"(patch_embed|blocks|norm)\.", r"backbone.\1."),
    (r"pos_embed$", POSITIONS),
)
_PYRAMID = re.compile(r"fpn_(lateral|output)([2-5])\.")
_LAYER_SCALES = {"gamma_1": "attn.proj", "gamma_2": "mlp.fc2"}


def state_of_release(content: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The tensors of a release checkpoint, or of its ``model_state`` alone, without the prefix of parallel training."""
    state = content.get("model_state", content)
    return {key.removeprefix("module."): value for key, value in state.items()}


def is_release(content: Mapping[str, Any]) -> bool:
    """Return whether this is a checkpoint of EVAD's release."""
    return any("s0_headseries." in str(key) for key in content.get("model_state", content))


def renamed_from_release(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The parameters under the names that ``EvadTeacher`` gives them.

    Layer scale, which the release has as an option, is multiplied into the projection before it; the class weights of
    the loss are left behind.
    """
    state = dict(state_of_release(content))
    for key in [key for key in state if key.rpartition(".")[2] in _LAYER_SCALES]:
        scale = state.pop(key)
        block, _, name = key.rpartition(".")
        for part in ("weight", "bias"):
            scaled = f"{block}.{_LAYER_SCALES[name]}.{part}"
            state[scaled] = state[scaled] * (scale[:, None] if part == "weight" else scale)
    state = {_own_name(key): value for key, value in state.items() if not key.startswith("criterion.")}
    if POSITIONS in state:
        state[POSITIONS] = state[POSITIONS].squeeze(0)
    return state


class ReleaseSizes(NamedTuple):
    """Sizes that the shapes of a checkpoint's parameters imply; arguments by the part that takes them."""

    num_classes: int
    trunk: dict[str, Any]
    """Arguments of ``TrunkSize``."""
    learned_positions: bool
    localizer: dict[str, Any]
    """Arguments of ``Localizer``."""
    decoder: dict[str, Any]
    """Arguments of ``ContextDecoder``."""


def sizes_from_shapes(state: Mapping[str, Tensor]) -> ReleaseSizes:
    """Read sizes from the shapes of parameters under the names that ``renamed_from_release`` gives.

    Raises:
        ValueError: a parameter that tells a size is absent; it is named.
    """

    def shape(key: str) -> tuple[int, ...]:
        if key not in state:
            raise ValueError(
                f"no {key} among the weights ({', '.join(list(state)[:4])}, ...); "
                "expected a checkpoint of EVAD's release or its model_state"
            )
        return tuple(state[key].shape)

    dim, _, tubelet, patch_size, _ = shape("backbone.patch_embed.proj.weight")
    if tubelet != TUBELET:
        raise ValueError(f"the patch embedding spans {tubelet} frames, a slot has {TUBELET}")
    stage = "head.localizer.stages.0"
    num_proposals, head_dim = shape("head.localizer.proposal_features")
    roi_area = shape(f"{stage}.inst_interact.out_layer.weight")[1] / head_dim
    num_classes, decoder_hidden = shape("head.decoder.blocks.0.action_logits.weight")
    decoder_dim = shape("head.decoder.encoder_to_decoder.weight")[0]
    return ReleaseSizes(
        num_classes=num_classes,
        trunk={
            "dim": dim,
            "depth": _count(state, "backbone.blocks"),
            "patch_size": patch_size,
            "mlp_ratio": shape("backbone.blocks.0.mlp.fc1.weight")[0] / dim,
        },
        learned_positions=POSITIONS in state,
        localizer={
            "dim": head_dim,
            "num_proposals": num_proposals,
            "num_stages": _count(state, "head.localizer.stages"),
            "dynamic_dim": shape(f"{stage}.inst_interact.norm1.weight")[0],
            "hidden_dim": shape(f"{stage}.linear1.weight")[0],
            "roi_size": round(math.sqrt(roi_area)),
        },
        decoder={
            "dim": decoder_dim,
            "depth": _count(state, "head.decoder.blocks"),
            "mlp_ratio": shape("head.decoder.blocks.0.mlp.fc1.weight")[0] / decoder_dim,
            "hidden_dim": decoder_hidden,
        },
    )


def _own_name(name: str) -> str:
    pyramid = _PYRAMID.match(name)
    if pyramid:
        kind, level = pyramid.groups()
        return f"head.pyramid.{kind}s.{int(level) - 2}.{name[pyramid.end() :]}"
    for pattern, replacement in _NAMES:
        renamed, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return renamed
    return name


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Return the number of numbered parts below a prefix."""
    numbers = (int(key.removeprefix(f"{prefix}.").split(".")[0]) for key in state if key.startswith(f"{prefix}."))
    return 1 + max(numbers, default=-1)
