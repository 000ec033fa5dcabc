"""A batch depends on seed, epoch and its number in the epoch alone, whenever it is asked for."""

from __future__ import annotations

import pytest
from torch.utils.data import Dataset

from datamodules.sampling.samplers import Position, Request, ShuffledBatches
from datamodules.source_data import LateLoader


def batches(epoch: int, first: int = 0, rank: int = 0, world_size: int = 1) -> list[list[Request]]:
    return list(ShuffledBatches(20, 3, None, 7, rank, world_size, lambda: Position(epoch, first)))


@pytest.mark.parametrize("rank", [0, 1])
def test_an_epoch_that_is_gone_on_with_has_the_batches_that_were_left(rank):
    whole = batches(2, rank=rank, world_size=2)
    assert len(whole) == 3
    for first in range(4):
        assert batches(2, first, rank, 2) == whole[first:]


def test_every_epoch_has_an_order_and_seeds_of_its_own():
    first, second = batches(0), batches(1)
    assert first != second and {request.seed for batch in first for request in batch}.isdisjoint(
        request.seed for batch in second for request in batch
    )


def test_the_length_is_that_of_a_whole_epoch():
    assert len(ShuffledBatches(20, 3, None, 7, position=lambda: Position(0, 4))) == 6


def test_without_a_position_the_epoch_is_the_one_that_was_set():
    sampler = ShuffledBatches(20, 3, None, 7)
    assert list(sampler) == batches(0)
    sampler.set_epoch(3)
    assert list(sampler) == batches(3)


class Requests(Dataset):
    """Items are what was asked for."""

    def __getitem__(self, batch: list[Request]) -> list[Request]:
        return batch


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_asks_where_training_is_when_its_first_batch_is_wanted(workers):
    position = [Position(0, 0)]
    sampler = ShuffledBatches(20, 3, None, 7, position=lambda: position[0])
    loader = LateLoader(
        Requests(),
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        collate_fn=lambda batch: batch,
        persistent_workers=workers > 0,
    )
    made_early = iter(loader)
    position[0] = Position(1, 2)
    assert list(made_early) == batches(1)[2:]
    cut_short = iter(loader)
    assert next(cut_short) == batches(1)[2]
    position[0] = Position(2, 0)
    assert list(loader) == batches(2)
