"""Faults of the machine and of what is installed on it, as errors that a user can mend."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from datamodules.errors import UserError

from .building import ROOMS, missing_package, was_raised
from .causes import raised_by

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""What the operating system says of a whole disk, mostly without a file's name."""
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


@contextmanager
def faults_of_the_machine() -> Iterator[None]:
    """Turn what the system, a missing package or a setting of Lightning's refuses into a ``UserError``."""
    try:
        yield
    except UserError:
        raise
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except ImportError as error:
        if package := missing_package(error):
            raise UserError(f"{package} is not installed", remedy=f"pip install {package}") from error
        raise
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the GPU has too little memory: {str(error).split('. ')[0]}",
            remedy="make data.batch_size smaller, or the trainer's accumulate_grad_batches larger with it",
        ) from error
    except OSError as error:
        if error.errno in FULL or (error.errno in OF_A_FILE and error.filename is not None):
            where = error.filename.decode() if isinstance(error.filename, bytes) else error.filename
            raise UserError(error.strerror, where=where) from error
        if isinstance(error, FileNotFoundError) and raised_by(error).startswith(ROOMS) and was_raised(error):
            raise UserError(str(error)) from error
        raise
