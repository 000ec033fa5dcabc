"""Fixed sine position codes of VideoMAE, resized to any frame size."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .prepared import Preparable

Keyframe = Literal["middle", "last"]
"""The slot of a clip that holds the keyframe."""


def keyframe_slot(num_slots: int, keyframe: Keyframe) -> int:
    """Return the number of the keyframe's slot among ``num_slots``."""
    return num_slots - 1 if keyframe == "last" else num_slots // 2


def sine_table(num_positions: int, dim: int) -> Tensor:
    """Sine/cosine codes over flat positions, (num_positions, dim) float32, computed in float64.

    Channel j of position p has the angle p / 10000^(2 floor(j / 2) / dim). Even channels hold its sine, odd ones its
    cosine (VideoMAE, https://arxiv.org/abs/2203.12602; `EVAD.md`, section 2).
    """
    positions = torch.arange(num_positions, dtype=torch.float64)[:, None]
    exponents = 2 * torch.div(torch.arange(dim, dtype=torch.float64), 2, rounding_mode="floor") / dim
    angles = positions / torch.pow(torch.tensor(10000.0, dtype=torch.float64), exponents)
    table = angles.cos()
    table[:, 0::2] = angles[:, 0::2].sin()
    return table.float()


class SpaceTimePositions(Preparable):
    """Position codes of a clip's slots (tubelets), made for ``num_slots`` x ``grid`` x ``grid`` patches.

    Other frame sizes resize every slot's grid bicubically (align_corners false, no antialiasing); time is never
    resized. A clip with fewer slots takes those around ``keyframe``, so that its keyframe slot keeps its code. A
    curriculum from one slot to the whole clip needs that. ``learned`` codes are a parameter that starts at the fixed
    ones. Prepared for inference, the codes of every frame size met are kept.
    """

    table: Tensor
    """(num_slots grid grid, C)"""

    def __init__(
        self, num_slots: int, grid: int, dim: int, learned: bool = False, keyframe: Keyframe = "middle"
    ) -> None:
        super().__init__()
        self.num_slots = num_slots
        self.keyframe = keyframe
        self.keyframe_slot = keyframe_slot(num_slots, keyframe)
        self.grid = grid
        table = sine_table(num_slots * grid * grid, dim)
        if learned:
            self.table = nn.Parameter(table)
        else:
            self.register_buffer("table", table, persistent=False)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that do not decay although they are matrices."""
        return {"table"} if isinstance(self.table, nn.Parameter) else set()

    def forward(self, num_slots: int, height: int, width: int) -> Tensor:
        """Codes of ``num_slots`` slots around the keyframe on a ``height`` x ``width`` grid: (num_slots, h * w, C)."""
        if num_slots > self.num_slots:
            raise ValueError(
                f"clip has {num_slots} slots but the network was made for {self.num_slots}; set num_frames"
            )
        first = self.keyframe_slot - keyframe_slot(num_slots, self.keyframe)
        return self.slots(torch.arange(first, first + num_slots, device=self.table.device), height, width)

    def slots(self, indices: Tensor, height: int, width: int) -> Tensor:
        """Codes of the named slots: (len(indices), height * width, C)."""
        resized = self.kept
        if resized is None:
            return self._resized(self.table.view(self.num_slots, self.grid, self.grid, -1)[indices], height, width)
        if (height, width) not in resized:
            every = self.table.view(self.num_slots, self.grid, self.grid, -1)
            resized[height, width] = self._resized(every, height, width)
        return resized[height, width][indices]

    @staticmethod
    def _resized(codes: Tensor, height: int, width: int) -> Tensor:
        """(slots, grid, grid, C) -> (slots, height * width, C)."""
        if codes.shape[1:3] != (height, width):
            codes = F.interpolate(
                codes.permute(0, 3, 1, 2), size=(height, width), mode="bicubic", align_corners=False
            ).permute(0, 2, 3, 1)
        return codes.flatten(1, 2)

    def made_of_weights(self) -> dict[tuple[int, int], Tensor]:
        return {}
