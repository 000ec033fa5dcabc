"""Small constant tensors that are made once, not in every call."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn


def constant(values: tuple[Any, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return numbers as a tensor on the device and in the type of ``like``: the same one for the same numbers.

    Values are numbers or tuples of them. It must not be written to. Where a graph is made, it is a constant of that.
    """
    dtype = dtype or like.dtype
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(like) not in (Tensor, nn.Parameter):
        return _new(values, dtype, like.device)
    return _made(values, dtype, like.device)


@lru_cache(maxsize=1024)
def _made(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    # Not one of inference mode, which could take no part in training.
    with torch.inference_mode(False):
        return _new(values, dtype, device)


def _new(values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)
