"""Base of metrics over frames and videos: states of rows that two processes can join without mixing them up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class RowMetric(Metric):
    """A metric whose states are columns of rows, grouped by counts of consecutive rows.

    A frame or a video is such a count, not a number that two ranks could both use. Gathering concatenates both counts
    and rows, rank after rank, and so keeps frames and videos whole and apart. Subclasses say in ``_empty_states`` what
    they keep, and call ``_start`` at the end of their constructor.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def _empty_states(self) -> dict[str, Tensor]:
        """State -> a column of its type without a row."""
        raise NotImplementedError

    def _start(self) -> None:
        for name in self._empty_states():
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget everything. Each state starts with an empty tensor: a rank without a row gathers the right dtype."""
        super().reset()
        self._append(self._empty_states())

    def _append(self, columns: Mapping[str, Tensor]) -> None:
        for name, column in columns.items():
            getattr(self, name).append(column)

    def _gathered(self, side: str, names: Sequence[str]) -> dict[str, Tensor]:
        """The states ``<side>_<name>`` as one column each, on the CPU."""
        return {name: dim_zero_cat(getattr(self, f"{side}_{name}")).cpu() for name in names}


def concatenate(parts: Iterable[Tensor], empty: Tensor) -> Tensor:
    """Return all rows, of the dtype and on the device of ``empty``, which is the result where there is no row."""
    rows = [part.detach().to(device=empty.device, dtype=empty.dtype) for part in parts if part.numel()]
    return torch.cat([empty, *rows])


def check_columns(entry: Mapping[str, Tensor], where: str, columns: Sequence[str], width: int, form: str) -> int:
    """Number of rows of one frame or video, after a look at its columns.

    Args:
        where: what the entry is called in an error.
        columns: those it must have; the first is (N, ``width``), which ``form`` describes, ``labels`` and what stands
            beside them are (N,).
    """
    missing = [column for column in columns if column not in entry]
    if missing:
        raise ValueError(f"{where} has no {missing}; it has {sorted(entry)}")
    lengths = {column: len(entry[column]) for column in columns}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"{where} has columns of different lengths: {lengths}")
    first, *others = columns
    count, places = lengths[first], entry[first]
    if count and (places.ndim != 2 or places.shape[1] != width):
        raise ValueError(f"{where}[{first!r}] must be (N, {width}) {form}, got {tuple(places.shape)}")
    if "labels" not in columns:
        return count
    for column in others:
        if entry[column].ndim != 1:
            raise ValueError(f"{where}[{column!r}] must be (N,), got {tuple(entry[column].shape)}")
    labels = entry["labels"]
    if count and (labels.is_floating_point() or labels.dtype == torch.bool):
        raise TypeError(f"{where}['labels'] must be integers, got {labels.dtype}")
    return count
