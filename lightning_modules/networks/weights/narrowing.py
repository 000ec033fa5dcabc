"""Weights of a wide network as the start of a narrow one of the same kind.

The narrow network takes evenly spaced channels of each layer, the same ones wherever layers meet. This is uniform
selection (Xu et al., "Initializing Models with Larger Ones", ICLR 2024). Values stay as they are. It computes something
else than the wide network, but learns sooner than from random weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_CHANNELS: dict[str, tuple[int, ...]] = {
    "patch_embed.proj.weight": (0,),
    "action_logits.weight": (1,),
    "action_logits.bias": (),
    "mask_token": (2,),
    "positions.table": (1,),
    "proposal_features": (1,),
    "proposal_boxes": (),
}
"""End of a parameter's name -> the dimensions that are channels. Of others they are the first two."""
_DYNAMIC, _OUT = "inst_interact.dynamic_layer.", "inst_interact.out_layer.weight"


def narrowed(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with as many channels as a network's ``own`` tensors of these names have.

    Channels that are too few, and other dimensions (classes, patches, RoI bins, proposals), stay as they are.
    """
    result = {}
    for key, value in weights.items():
        wanted = own.get(key)
        if wanted is None or wanted.shape == value.shape:
            result[key] = value
        elif _DYNAMIC in key:
            result[key] = _narrowed_dynamic(key, weights, own)
        elif key.endswith(_OUT):
            result[key] = _narrowed_out(value, wanted)
        else:
            result[key] = _selected(value, wanted.shape, _channels(key, value))
    return result


def evenly(there: int, wanted: int) -> Tensor:
    """Return ``wanted`` of the numbers 0..there-1, evenly spread from 0 on; all where there are no more than that."""
    return torch.arange(min(there, wanted)) * there // min(there, wanted)


def _channels(key: str, value: Tensor) -> tuple[int, ...]:
    found = (channels for name, channels in _CHANNELS.items() if key.endswith(name))
    return next(found, tuple(range(min(2, value.dim()))))


def _selected(value: Tensor, shape: Sequence[int], channels: Sequence[int]) -> Tensor:
    """Select channels in the named dimensions, as many as ``shape`` has; stacks (query, key, value) stay in order."""
    for dim in channels:
        if dim < len(shape):
            value = value.index_select(dim, evenly(value.shape[dim], shape[dim]).to(value.device))
    return value


def _narrowed_dynamic(key: str, weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Tensor:
    """Select rows of what makes ``DynamicInteraction``'s two matrices, (D, E) and (E, D), one after the other."""
    module = key[: key.index("dynamic_layer.")]
    dims = [(len(part[f"{module}norm2.weight"]), len(part[f"{module}norm1.weight"])) for part in (weights, own)]
    (dim, inner), (new_dim, new_inner) = dims
    first, second = weights[key].chunk(2)
    columns = own[key].shape[1:]
    kept = [
        _selected(first.unflatten(0, (dim, inner)), (new_dim, new_inner, *columns), (0, 1, 2)[: first.dim() + 1]),
        _selected(second.unflatten(0, (inner, dim)), (new_inner, new_dim, *columns), (0, 1, 2)[: second.dim() + 1]),
    ]
    return torch.cat([part.flatten(0, 1) for part in kept])


def _narrowed_out(value: Tensor, wanted: Tensor) -> Tensor:
    """Select channels of the layer behind a filtered RoI, whose columns are channels of one bin after the other."""
    bins, new_bins = (weight.shape[1] // weight.shape[0] for weight in (value, wanted))
    if bins != new_bins:
        return value
    by_bin = value.unflatten(1, (bins, len(value)))
    return _selected(by_bin, (len(wanted), bins, len(wanted)), (0, 2)).flatten(1)
