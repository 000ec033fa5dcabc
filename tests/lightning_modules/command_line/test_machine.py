"""Faults of the machine are one line with a file's name; bugs are not among them."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from datamodules.errors import UserError
from lightning_modules.command_line.machine import faults_of_the_machine


def fail(error: BaseException) -> str:
    """Return what becomes of an error inside the block."""
    with pytest.raises(BaseException) as raised, faults_of_the_machine():
        raise error
    assert (raised.value is error) != isinstance(raised.value, UserError)
    return str(raised.value) if isinstance(raised.value, UserError) else "passed through"


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (errno.ENAMETOOLONG, "x.mp4"),
        (errno.EISDIR, "folder"),
        (errno.ENOTDIR, "file/below"),
        (errno.ENOSPC, "full.csv"),
        (errno.EROFS, "locked.csv"),
        (errno.EACCES, "closed.csv"),
        (errno.ENOENT, "absent.csv"),
        (errno.EIO, "sick.csv"),
    ],
)
def test_what_the_system_says_of_a_file_is_one_line_with_its_name(number, name):
    assert fail(OSError(number, os.strerror(number), name)) == f"{name}: {os.strerror(number)}"


def test_a_full_disk_is_told_without_a_name_too():
    assert fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) == "No space left on device"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOENT, "No such file or directory"),  # of which file?
        OSError("some library's own"),
        OSError(errno.EBADF, "Bad file descriptor", "a.csv"),
        ValueError("a bug"),
        KeyError("a bug"),
        RuntimeError("a bug"),
        ImportError("cannot import name 'x' from 'lightning_modules'"),
        ModuleNotFoundError("No module named 'lightning_modules.nothing'", name="lightning_modules.nothing"),
    ],
    ids=repr,
)
def test_a_bug_passes_through(error):
    assert fail(error) == "passed through"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            ModuleNotFoundError("No module named 'cv2'", name="cv2"),
            "opencv-contrib-python-headless is not installed; pip",
        ),
        (ModuleNotFoundError("No module named 'a.b'", name="a.b"), "a is not installed; pip install a"),
        (ModuleNotFoundError("Try `pip install -U 'wandb>=0.12'`"), "wandb is not installed; pip install wandb"),
        (MisconfigurationException("no such\nswitch"), "no such switch"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "the GPU has too little memory: CUDA"),
        (RuntimeError("[enforce fail at a.cpp:1] . DefaultCPUAllocator: can't allocate"), "there is too little memory"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "a process that reads data has ended",
        ),
        (RuntimeError("PytorchStreamWriter failed writing file data/1"), "a file of tensors cannot be written: Pyt"),
        (MemoryError("Unable to allocate 12 GiB"), "there is too little memory: Unable to allocate 12 GiB; make data"),
        (UserError("is wrong", "a.csv"), "a.csv: is wrong"),
    ],
    ids=["cv2", "package", "wandb", "lightning", "gpu memory", "allocator", "worker", "disk", "memory", "user"],
)
def test_other_faults_are_told_with_the_way_out(error, line):
    with pytest.raises(UserError) as raised, faults_of_the_machine():
        raise error
    assert str(raised.value).startswith(line)
