"""States of many lanes of which only some have a frame at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils._pytree import tree_map

from ..networks.students.detector import DetectorState


class LaneStates:
    """States of single lanes, so that any of them make up a batch, whatever the size of their frames.

    Memory grows with the number of lanes alone.
    """

    def __init__(self) -> None:
        self._states: dict[int, DetectorState] = {}

    def joined(self, lanes: Sequence[int], is_first: Sequence[bool], fresh: DetectorState) -> DetectorState:
        """Return the state of a batch whose B rows are these lanes.

        Args:
            lanes: B numbers, all different.
            is_first: whether each starts a stream: its row is then that of ``fresh``.
            fresh: the initial state of B streams.
        """
        rows = [
            _row(fresh, row) if starts else self._states[lane]
            for row, (lane, starts) in enumerate(zip(lanes, is_first, strict=True))
        ]
        return tree_map(lambda *parts: torch.cat(parts), *rows)

    def keep(self, lanes: Sequence[int], state: DetectorState) -> None:
        """Take the state of a batch apart; its rows are these lanes."""
        for row, lane in enumerate(lanes):
            # A copy: else the state of a lane without frames would keep those of a whole batch in memory.
            self._states[lane] = tree_map(torch.clone, _row(state, row)) if len(lanes) > 1 else state


def _row(state: DetectorState, row: int) -> DetectorState:
    return tree_map(lambda part: part[row : row + 1], state)
