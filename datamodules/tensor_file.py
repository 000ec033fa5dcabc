"""Files of tensors as PyTorch saves them: read without executing anything, refused in one sentence where damaged."""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import UserError

BYTES_LOOKED_AT = 512
ZIP, PICKLE = b"PK\x03\x04", b"\x80"
"""First bytes of PyTorch's files: since 1.6, and before."""
DAMAGE = (
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    TypeError,
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
"""Errors of ``zipfile`` and ``torch.load``, by trial, on files with a few bytes changed or cut off."""


def read_tensor_file(path: str | Path, what: str = "weights", classes: Sequence[type] = ()) -> Any:
    """Return what ``torch.save`` has written, on the CPU.

    Args:
        path: the file.
        what: it should hold, for messages.
        classes: plain data that it may hold apart from tensors and containers.

    Raises:
        UserError: there is no such file, it is none of PyTorch's, it is damaged, or it would execute something.
    """
    import torch

    path = Path(path)
    try:
        _check(path, what)
        with torch.serialization.safe_globals(list(classes)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        if unknown := re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error)):
            raise UserError(
                f"{path} holds more than tensors and is not read: {unknown[1]}",
                remedy=f"name a file that holds {what} alone",
            ) from error
        raise UserError("is damaged", where=path, remedy="copy it again") from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", where=path) from error
    except DAMAGE as error:
        # A long message's first sentence; Python's own errors do not help here.
        says = re.split(r"\.\s|\n", str(error))[0] if isinstance(error, RuntimeError | zipfile.BadZipFile) else ""
        reason = f" ({says})" if says else ""
        raise UserError(f"is damaged{reason}", where=path, remedy="copy it again") from error


def _check(path: Path, what: str) -> None:
    """Refuse what is no file of PyTorch's, by its first bytes and its checksums."""
    if path.is_dir():
        raise UserError(f"is a folder, not a file with the {what}", where=path)
    if not path.is_file():
        raise UserError(f"no {what} at {path}", remedy=f"name an existing file, or leave the {what} out")
    with path.open("rb") as file:
        head = file.read(BYTES_LOOKED_AT)
    if not head:
        raise UserError("is empty", where=path, remedy="copy it again")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"is a Git-LFS pointer, not the {what} themselves", where=path, remedy="run git lfs pull")
    if head.lstrip().startswith(b"<"):
        raise UserError(f"is a web page, not {what}", where=path, remedy="download the file itself")
    if not head.startswith((ZIP, PICKLE)):
        raise UserError(
            f"is no file of PyTorch's (it begins with {head[:16]!r})", where=path, remedy=f"name the {what}"
        )
    if head.startswith(ZIP):
        if not zipfile.is_zipfile(path):
            size = path.stat().st_size
            raise UserError(f"ends too early, after {size} bytes", where=path, remedy="copy it again")
        with zipfile.ZipFile(path) as archive:
            # PyTorch does not look at the checksums that it writes.
            if damaged := archive.testzip():
                raise UserError(f"is damaged: the checksum of {damaged} is wrong", where=path, remedy="copy it again")
