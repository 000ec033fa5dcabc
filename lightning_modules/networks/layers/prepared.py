"""Tensors computed from a network's weights, kept for inference so that no call computes them again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def prepare_for_inference(network: nn.Module) -> None:
    """Let every module that can keep something made of its weights do so.

    On a CPU this takes about as much memory again as the weights. It pays where a network runs often with unchanged
    weights, above all on few rows at a time: a stream. A module gives up what it kept when it is trained, moved or
    given other weights. Values agree with those of an unprepared network to rounding.
    """
    for module in network.modules():
        if isinstance(module, Preparable):
            module.prepare()


def release(network: nn.Module) -> None:
    """Let every module give up what it keeps: an optimiser is about to change the weights in place."""
    for module in network.modules():
        if isinstance(module, Preparable):
            module._kept = None


def in_float32_on_cpu(values: Tensor) -> bool:
    """Return whether a module computes in float32 on a CPU, which most prepared values are made for."""
    return values.dtype == torch.float32 and values.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


class Preparable(nn.Module):
    """A module that can keep something made of its weights; part of no checkpoint and of no copy."""

    _kept: Any = None

    def prepare(self) -> None:
        """Make what is kept."""
        self._kept = self.made_of_weights()

    def made_of_weights(self) -> Any:
        """Return the value to keep; None for nothing."""
        raise NotImplementedError

    @property
    def kept(self) -> Any:
        """Return the kept value, None where it must not be used.

        Gradients go to weights, and what is compiled, exported or traced to count its operations stays plain.
        """
        kept = self._kept
        if kept is None or torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.jit.is_tracing():
            return None
        return kept

    def train(self, mode: bool = True) -> Preparable:
        if mode:
            self._kept = None
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Preparable:
        self._kept = None
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._kept = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_kept"}
