"""A checkpoint is whole or not there."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest
import torch

from datamodules.errors import UserError
from lightning_modules.runs.checkpoint_files import WholeCheckpoints


def content(value: float, count: int = 40_000) -> dict:
    return {"state_dict": {"network.weight": torch.full((count,), value)}, "global_step": 3}


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    WholeCheckpoints().save_checkpoint(content(1.0), path)
    found = WholeCheckpoints().load_checkpoint(path, weights_only=True)
    assert torch.equal(found["state_dict"]["network.weight"], torch.ones(40_000)) and found["global_step"] == 3
    assert [each.name for each in path.parent.iterdir()] == ["last.ckpt"]


def test_a_full_disk_leaves_the_checkpoint_before_and_is_named_in_one_line(small_disk):
    path = small_disk / "last.ckpt"
    WholeCheckpoints().save_checkpoint(content(1.0), path)
    with pytest.raises(UserError) as error:
        WholeCheckpoints().save_checkpoint(content(2.0), path)
    assert str(error.value) == f"{path}: cannot be written: No space left on device"
    found = WholeCheckpoints().load_checkpoint(path, weights_only=True)
    assert torch.equal(found["state_dict"]["network.weight"], torch.ones(40_000))
    assert [each.name for each in small_disk.iterdir()] == ["last.ckpt"]


def test_what_cannot_be_stored_is_no_fault_of_the_disk(tmp_path):
    with pytest.raises(AttributeError, match="pickle"):
        WholeCheckpoints().save_checkpoint({"function": lambda: None}, tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []


class Killing:
    """Ends the process that writes it."""

    def __reduce__(self) -> tuple:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_kill_while_one_is_written_leaves_the_one_before_and_its_rest_goes_with_the_next_reading(tmp_path):
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint(content(1.0), path)
    broken = {"weight": torch.ones(99), "then": Killing()}
    process = multiprocessing.get_context("fork").Process(
        target=WholeCheckpoints().save_checkpoint, args=(broken, path)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2
    found = WholeCheckpoints().load_checkpoint(path, weights_only=True)
    assert torch.equal(found["state_dict"]["network.weight"], torch.ones(40_000))
    assert os.listdir(tmp_path) == ["last.ckpt"]
