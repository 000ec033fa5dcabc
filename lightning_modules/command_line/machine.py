"""Faults of the machine and of installed packages, as errors that a user can resolve."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from datamodules.errors import UserError

from .building import ROOMS, missing_package, was_raised
from .causes import raised_by

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Errors of the operating system about a whole disk, mostly without a file's name."""
OF_A_FILE = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EFBIG,
    errno.EMFILE,
    errno.ENFILE,
    errno.ETXTBSY,
    errno.EBUSY,
)

SMALLER = "make data.batch_size or data.num_workers smaller, or end other programs"
BY_MESSAGE = (
    (r"DefaultCPUAllocator: (can't|not enough)", "there is too little memory", SMALLER),
    (r"DataLoader worker \(pid.*(killed|exited)", "a process that reads data has ended", SMALLER),
    (r"PytorchStreamWriter failed writing", "a file of tensors cannot be written", "see if the disk is full"),
)
"""PyTorch's messages about the machine, and for each the text to report and the remedy."""


@contextmanager
def faults_of_the_machine() -> Iterator[None]:
    """Turn what the system, a missing package or a setting of Lightning's refuses into a ``UserError``."""
    try:
        yield
    except (MisconfigurationException, ImportError, RuntimeError, MemoryError, OSError) as error:
        fault = _fault(error)
        if fault is None:
            raise
        raise fault from error


def _fault(error: Exception) -> UserError | None:
    begin = re.split(r"\. |\n", str(error))[0]
    if isinstance(error, MisconfigurationException):
        return UserError(str(error))
    if package := missing_package(error):
        return UserError(f"{package} is not installed", remedy=f"pip install {package}")
    if isinstance(error, torch.OutOfMemoryError):
        return UserError(f"the GPU has too little memory: {begin}", remedy=SMALLER)
    if isinstance(error, MemoryError):
        return UserError(f"there is too little memory: {begin}", remedy=SMALLER)
    if isinstance(error, RuntimeError):
        found = [(problem, remedy) for form, problem, remedy in BY_MESSAGE if re.search(form, str(error))]
        return UserError(f"{found[0][0]}: {begin}", remedy=found[0][1]) if found else None
    return _of_the_system(error) if isinstance(error, OSError) else None


def _of_the_system(error: OSError) -> UserError | None:
    if error.errno in FULL or (error.errno in OF_A_FILE and error.filename is not None):
        where = error.filename.decode() if isinstance(error.filename, bytes) else error.filename
        return UserError(error.strerror, where=where)
    if isinstance(error, FileNotFoundError) and raised_by(error).startswith(ROOMS) and was_raised(error):
        return UserError(str(error))
    return None
