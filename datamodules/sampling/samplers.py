"""Samples of every batch, on every rank, in every epoch.

Both samplers yield whole batches and are given rank and world size. They are ``DistributedSampler``s only by name: it
is how Lightning knows that the sharing out has been done and leaves them alone.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import DistributedSampler

from datamodules.errors import UserError

STAND_IN = -1
"""Index of a sample that must not count."""
GLOBAL_SEED = "PL_GLOBAL_SEED"
"""Environment variable in which Lightning keeps the seed of ``seed_everything``, for its subprocesses too."""


class Request(NamedTuple):
    """One sample of a batch to be made."""

    index: int
    seed: int | None
    """Seed of its augmentation; None for none. It is part of the request, so results do not depend on workers."""


class Position(NamedTuple):
    """Place in training."""

    epoch: int
    batches: int
    """Batches of this epoch that have been trained on."""


class ShuffledBatches(DistributedSampler):
    """Training batches: a new seeded order each epoch, equally many batches of equal size on each rank.

    A batch depends only on the seed, the epoch and its number in the epoch. So a resumed training continues with the
    batches that it would have had.

    Args:
        size: number of samples there are.
        batch_size: samples per batch and rank.
        samples_per_epoch: how many to draw at random each epoch, over all ranks; None takes every sample once.
            More than there are repeat.
        seed: of order and augmentation; None takes that of Lightning's ``seed_everything``, 0 where it was not called.
        position: asked when the batches of an epoch begin. None begins with the first batch of the epoch that
            ``set_epoch`` names.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        samples_per_epoch: int | None,
        seed: int | None,
        rank: int = 0,
        world_size: int = 1,
        position: Callable[[], Position] | None = None,
    ) -> None:
        total = size if samples_per_epoch is None else samples_per_epoch
        if size < 1 or total < world_size:
            raise UserError(
                f"{min(size, total)} training samples are too few for {world_size} processes",
                remedy="start fewer processes, or raise data.loader.samples_per_epoch",
            )
        self.size, self.total = size, total
        self.seed = int(os.environ.get(GLOBAL_SEED, 0)) if seed is None else seed
        self.rank, self.world_size = rank, world_size
        self.batch_size = min(batch_size, total // world_size)
        self.num_batches = total // (world_size * self.batch_size)
        self.position = position or (lambda: Position(self.epoch, 0))
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch, wherever training resumes in it."""
        return self.num_batches

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        """Return the samples of an epoch, (total,) int64."""
        return _draw(rng, self.size, self.total)

    def __iter__(self) -> Iterator[list[Request]]:
        epoch, first = self.position()
        rng = np.random.default_rng([self.seed, epoch])
        order = self._order(rng)
        seeds = rng.integers(0, 2**32, len(order))
        for batch in range(first, self.num_batches):
            start = (batch * self.world_size + self.rank) * self.batch_size
            chosen = slice(start, start + self.batch_size)
            yield [Request(int(i), int(s)) for i, s in zip(order[chosen], seeds[chosen], strict=True)]


class MixedBatches(ShuffledBatches):
    """``ShuffledBatches`` of two kinds of samples, in a given proportion.

    Args:
        size: number of samples of the first kind. others: of the second kind, whose indices follow.
        others_share: how many of an epoch's samples are of the second kind.

    The other arguments are those of ``ShuffledBatches``. With None for ``samples_per_epoch`` an epoch takes each sample
    of the first kind once, and of the second as many as the share makes.
    """

    def __init__(
        self,
        size: int,
        others: int,
        others_share: float,
        batch_size: int,
        samples_per_epoch: int | None,
        seed: int | None,
        rank: int = 0,
        world_size: int = 1,
        position: Callable[[], Position] | None = None,
    ) -> None:
        if not 0 < others_share < 1 or others < 1:
            raise UserError(
                f"a share of {others_share:g} of {others} samples cannot be drawn",
                where="data.unlabelled.share",
                remedy="choose a share between 0 and 1, of a folder that holds videos",
            )
        total = round(size / (1 - others_share)) if samples_per_epoch is None else samples_per_epoch
        super().__init__(size, batch_size, total, seed, rank, world_size, position)
        self.others, self.num_others = others, round(others_share * total)

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        first = _draw(rng, self.size, self.total - self.num_others)
        return rng.permutation(np.concatenate([first, self.size + _draw(rng, self.others, self.num_others)]))


def _draw(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    """``count`` of the numbers below ``size``, each as often as the others, in random order."""
    rounds = [rng.permutation(size) for _ in range(math.ceil(count / size))]
    return np.concatenate([np.zeros(0, np.int64), *rounds])[:count]


class EveryOnce(DistributedSampler):
    """Evaluation batches: every sample exactly once over all ranks, and equally many batches on each rank.

    A batch holds samples of one kind, in order, and the batches of a kind follow each other. Under DDP an evaluated
    network still exchanges its buffers, so a rank with one batch more would wait for ever. A rank with no sample left
    requests ``STAND_IN``.

    Args:
        kinds: (S,) of what kind each sample is: what must not share a batch is of two kinds.
    """

    def __init__(self, kinds: np.ndarray, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        _, first = np.unique(kinds, return_index=True)
        batches = []
        for kind in kinds[np.sort(first)]:
            samples = np.flatnonzero(kinds == kind).tolist()
            batches += [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]
        batches += [[STAND_IN]] * (-len(batches) % world_size)
        self.batches = batches[rank::world_size]

    def set_epoch(self, epoch: int) -> None:
        """The order never changes."""

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Request]]:
        for batch in self.batches:
            yield [Request(index, None) for index in batch]


class InOrder(DistributedSampler):
    """The items of a data set that already holds this rank's share, one after the other."""

    def __init__(self, size: int) -> None:
        self.size = size

    def set_epoch(self, epoch: int) -> None:
        """The order never changes."""

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.size))


class VideoWindows(DistributedSampler):
    """Evaluation batches of windows that follow each other: those of a video stay on one rank, in order.

    Videos go to the rank with the least to do, those of most windows first. A batch holds windows of one kind. All
    ranks take equally many batches; ``STAND_IN`` is asked for where a rank has nothing left.

    Args:
        windows: how many windows each video has; a window's index counts through all videos.
        kinds: (V,) of what kind each video is, as in ``EveryOnce``.
    """

    def __init__(
        self, windows: Sequence[int], kinds: np.ndarray, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        first = np.cumsum([0, *windows])
        shares: list[dict[int, list[int]]] = [{} for _ in range(world_size)]
        loads = [0] * world_size
        for video in sorted(range(len(windows)), key=lambda v: (-windows[v], v)):
            least = loads.index(min(loads))
            loads[least] += windows[video]
            shares[least].setdefault(int(kinds[video]), []).extend(range(first[video], first[video + 1]))
        batches = [
            [of_kind[i : i + batch_size] for of_kind in share.values() for i in range(0, len(of_kind), batch_size)]
            for share in shares
        ]
        self.batches = batches[rank] + [[STAND_IN]] * (max(map(len, batches)) - len(batches[rank]))

    def set_epoch(self, epoch: int) -> None:
        """The order never changes."""

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Request]]:
        for batch in self.batches:
            yield [Request(index, None) for index in batch]
