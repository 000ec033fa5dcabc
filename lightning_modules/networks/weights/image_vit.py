"""Starting from an image ViT in timm's naming: its weights as those of a video ViT on a clip of equal frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor, nn

from ..layers.pixels import MEAN, STD
from ..layers.trunk_size import TUBELET
from .image_files import IMAGENET, hub_weights, normalisation_of, read_image_weights
from .videomae import PretrainedReport, encoder_of, load_videomae, place
from .videomae_names import Stored, read_tensors

HUB_PREFIX = "timm:"
PATCH = "patch_embed.proj.weight"
PREFIX_TOKENS = ("cls_token", "dist_token", "reg_token")
SCALED = {"ls1.gamma": "attn.proj", "ls2.gamma": "mlp.fc2"}
"""LayerScale, and the linear layer before it."""


def load_pretrained(network: nn.Module, weights: str | Path | Mapping[str, object]) -> PretrainedReport:
    """Start a network's encoder from VideoMAE or from an image ViT, whichever the weights are.

    Args:
        network: a ``VideoViT``, a ``StreamingTrunk``, or a detector with one of them.
        weights: a file or its content, see ``load_videomae`` and ``load_image_vit``; or ``timm:`` and the name of a
            model of timm's, such as ``timm:vit_small_patch14_dinov2.lvd142m``.

    Raises:
        ValueError: the weights do not fit. UserError: they cannot be read or fetched.
    """
    if isinstance(weights, str) and weights.startswith(HUB_PREFIX):
        name = weights.removeprefix(HUB_PREFIX)
        return load_image_vit(network, hub_weights(name), *normalisation_of(name))
    is_safetensors = not isinstance(weights, Mapping) and Path(weights).suffix == ".safetensors"
    tensors = read_image_weights(str(weights)) if is_safetensors else read_tensors(weights)
    return load_image_vit(network, tensors) if is_image_vit(tensors) else load_videomae(network, weights)


def is_image_vit(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether weights are those of a ViT that embeds pictures, not tubelets."""
    return PATCH in tensors and tensors[PATCH].dim() == 4


def load_image_vit(
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    mean: Sequence[float] = IMAGENET[0],
    std: Sequence[float] = IMAGENET[1],
) -> PretrainedReport:
    """Start a network's encoder from an image ViT in timm's naming. An error leaves the network as it was.

    A clip of equal frames then has the tokens of the picture, as the ViT without its class token and registers makes
    them. Every step is a note of the report:

    * the patch kernel is resized to the network's patches (by FlexiViT's pseudo-inverse), then halved and repeated over
      the two frames of a slot, and takes in the model's normalisation of pixels;
    * positions are resampled to the network's grid and repeated over the slots, which start alike in time;
    * LayerScale becomes a part of the layer before it; biases of keys, which change nothing, are left out;
    * class token, registers and their positions are left out.

    Args:
        network: see ``load_pretrained``; its encoder needs ``learned_positions``.
        tensors: the weights under timm's names.
        mean, std: of the pixels that the model was trained on, between 0 and 1.

    Raises:
        ValueError: another architecture, or other sizes than the network's; it lists what differs.
    """
    encoder, _ = encoder_of(network)
    if any(name.startswith("norm_pre.") for name in tensors):
        raise ValueError("the file's ViT has a norm before its blocks (norm_pre), which the network has not")
    if "pos_embed" not in tensors:
        raise ValueError("the file's ViT has no absolute positions (pos_embed), which the network needs")
    if not isinstance(encoder.positions.table, nn.Parameter):
        raise ValueError("an image ViT has learned positions; set learned_positions=true to take them")
    notes: list[str] = []
    stored = {
        name: Stored(value.float(), (name,))
        for name, value in tensors.items()
        if name not in (PATCH, "pos_embed", *PREFIX_TOKENS) and not name.endswith(tuple(SCALED))
    }
    stored |= _patch_embedding(tensors, encoder.size.patch_size, mean, std, notes)
    stored |= _positions(tensors, encoder.positions.num_slots, encoder.positions.grid, notes)
    stored |= _scaled(tensors, notes)
    stored = _with_separate_biases(stored, notes)
    if left_out := [name for name in PREFIX_TOKENS if name in tensors]:
        notes.append(f"{', '.join(left_out)} left out: there are tokens of patches alone")
    return place(network, stored, tensors, notes)


def _patch_embedding(
    tensors: Mapping[str, Tensor], patch_size: int, mean: Sequence[float], std: Sequence[float], notes: list[str]
) -> dict[str, Stored]:
    """Kernel (C, 3, p, p) and bias as a tubelet's (C, 3, 2, patch_size, patch_size), for this project's pixels."""
    kernel, name = tensors[PATCH].float(), PATCH.replace("weight", "bias")
    bias = tensors.get(name, torch.zeros(len(kernel))).float()
    if kernel.shape[-1] != patch_size:
        notes.append(f"patch kernel resized from {kernel.shape[-1]} to {patch_size} pixels")
        kernel = resample_patch_embed(kernel, [patch_size, patch_size])
    if kernel.shape[1] == len(mean):
        means, deviations = (torch.tensor(values)[:, None, None] for values in (mean, std))
        bias = bias + (kernel * ((MEAN - means) / deviations)).sum((1, 2, 3))
        kernel = kernel * (STD / deviations)
        numbers = ", ".join(f"{value:g}" for value in (*mean, *std))
        notes.append(f"normalisation of pixels (mean and standard deviation {numbers}) made part of the patch kernel")
    notes.append(f"patch kernel halved and repeated over the {TUBELET} frames of a slot")
    kernel = kernel[:, :, None].repeat(1, 1, TUBELET, 1, 1) / TUBELET
    return {PATCH: Stored(kernel, (PATCH,)), name: Stored(bias, (name,) if name in tensors else ())}


def _positions(tensors: Mapping[str, Tensor], num_slots: int, grid: int, notes: list[str]) -> dict[str, Stored]:
    """Positions (1, [prefix +] s s, C) of a picture as those of a clip (num_slots grid grid, C)."""
    table = tensors["pos_embed"].float()
    prefix = sum(tensors[name].shape[1] for name in PREFIX_TOKENS if name in tensors)
    rows = table.shape[1]
    if math.isqrt(rows - prefix) ** 2 != rows - prefix:
        prefix = 0  # a model whose class token and registers have no positions
    side = math.isqrt(rows - prefix)
    if side**2 != rows - prefix:
        raise ValueError(f"the file's {rows} positions are those of no square picture")
    table = table[:, prefix:]
    if side != grid:
        notes.append(f"positions resampled from {side} x {side} to {grid} x {grid}")
        table = resample_abs_pos_embed(table, [grid, grid], num_prefix_tokens=0)
    notes.append(f"positions repeated over {num_slots} slots, which start alike in time")
    return {"positions.table": Stored(table.repeat(1, num_slots, 1), ("pos_embed",))}


def _scaled(tensors: Mapping[str, Tensor], notes: list[str]) -> dict[str, Stored]:
    """Linear layers with the LayerScale behind them as a part of them."""
    scaled = {}
    for name in tensors:
        for ending, layer in SCALED.items():
            if name.endswith(ending):
                for part in ("weight", "bias"):
                    key = f"{name.removesuffix(ending)}{layer}.{part}"
                    gamma = tensors[name].float().view(-1, *[1] * (tensors[key].dim() - 1))
                    scaled[key] = Stored(tensors[key].float() * gamma, (key, name))
    if scaled:
        notes.append(f"{len(scaled) // 2} LayerScales made part of the layers before them")
    return scaled


def _with_separate_biases(stored: Mapping[str, Stored], notes: list[str]) -> dict[str, Stored]:
    """The biases of queries and values by themselves, as ``SelfAttention`` has them."""
    result: dict[str, Stored] = {}
    ending = "attn.qkv.bias"
    for name, entry in stored.items():
        if name.endswith(ending):
            query, _, value = entry.value.chunk(3)
            attention = name.removesuffix("qkv.bias")
            result |= {
                f"{attention}q_bias": entry._replace(value=query),
                f"{attention}v_bias": entry._replace(value=value),
            }
        else:
            result[name] = entry
    if len(result) > len(stored):
        notes.append("biases of keys left out, which change nothing")
    return result
