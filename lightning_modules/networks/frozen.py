"""A network that teaches and does not learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class FrozenNetwork(nn.Module):
    """Frozen network: always in eval mode, without gradients, and out of checkpoints.

    It stays in eval under ``train()`` and adds nothing to a ``state_dict``. Loading a checkpoint, strict or not, leaves
    it as it is: a teacher's weights come from the teacher's own file.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.register_state_dict_post_hook(self._forget)
        self.register_load_state_dict_pre_hook(self._keep)

    @staticmethod
    def _forget(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            del state_dict[key]

    @staticmethod
    def _keep(module: FrozenNetwork, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Hand the network its own tensors, so that a strict load finds what it looks for."""
        state_dict.update({f"{prefix}network.{key}": value for key, value in module.network.state_dict().items()})

    def train(self, mode: bool = True) -> FrozenNetwork:
        """Stay in eval mode, whatever the modules around it do."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, *args: Any, method: str = "forward", **kwargs: Any) -> Any:
        """Call ``method`` of the network without gradients."""
        return getattr(self.network, method)(*args, **kwargs)
