"""Interface of temporal detectors' heads: from features in time to segments.

Times are in units of features here: feature i lasts from i to i + 1, its middle is at i + 0.5. Who calls a head turns
them into seconds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

Dense = TypeVar("Dense")


class ScoredSegments(NamedTuple):
    """N detections in one window or video."""

    segments: Tensor
    """(N, 2) start and end."""
    scores: Tensor
    """(N,) in 0..1."""
    labels: Tensor
    """(N,) int64."""


class SegmentHead(nn.Module, ABC, Generic[Dense]):
    """Dense predictions from features, the loss against ground truth, the imitation of a teacher, and decoding.

    Two heads made with the same arguments predict at the same places. So entry n of a student's output is about the
    same place as entry n of its teacher's. So imitation needs no assignment.
    """

    in_channels: int
    num_classes: int

    @abstractmethod
    def forward(self, features: Tensor, mask: Tensor) -> Dense:
        """(B, in_channels, T') and (B, T') bool -> the head's own NamedTuple of tensors, batch first.

        Any T'. What lies where ``mask`` is False changes nothing where it is True.
        """

    @abstractmethod
    def loss(self, outputs: Dense, segments: Sequence[Tensor], labels: Sequence[Tensor]) -> dict[str, Tensor]:
        """Named terms and their weighted sum as ``total``; a zero that carries gradient where nothing is to be found.

        Args:
            outputs: of B windows.
            segments: B entries (n, 2). labels: B entries (n,) int64.
        """

    @abstractmethod
    def imitation(self, outputs: Dense, teacher: Dense) -> dict[str, Tensor]:
        """Losses against the outputs of a teacher's head of the same kind: ``classes`` and ``segments``, scalars."""

    @abstractmethod
    def decode(self, outputs: Dense, score_threshold: float, max_segments: int) -> list[ScoredSegments]:
        """Return at most ``max_segments`` of the best segments above the threshold for each of B windows, unsuppressed.

        A place may be decoded with several classes.
        """


@torch.no_grad()
def start_head_from(head: SegmentHead[Any], trained: SegmentHead[Any]) -> None:
    """Give a head the weights of a trained one of the same arguments, which may read fewer channels.

    The first channels are read as the trained head reads its own, the others start at zero.
    """
    own, given = head.state_dict(), trained.state_dict()
    if own.keys() != given.keys():
        raise ValueError(f"{type(head).__name__} cannot start from a {type(trained).__name__} of other arguments")
    for name, value in own.items():
        source = given[name]
        if source.shape == value.shape:
            value.copy_(source)
        elif (*source.shape[:1], *source.shape[2:]) == (*value.shape[:1], *value.shape[2:]) and (
            (source.shape[1], value.shape[1]) == (trained.in_channels, head.in_channels)
            and trained.in_channels < head.in_channels
        ):
            value.zero_()[:, : source.shape[1]] = source
        else:
            raise ValueError(
                f"{name} has the shape {tuple(value.shape)}, in the trained head {tuple(source.shape)}; give both "
                "heads the same arguments"
            )
