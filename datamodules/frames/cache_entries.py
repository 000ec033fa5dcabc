"""Entries of the caches on disk: damage is found, reported once and repaired, and no cache fills the disk.

An entry is a file or a folder that a program wrote whole. Disks, copies and other programs may still harm it later: cut
it, fill its end with zeros, take a file away. Whatever is read is therefore checked, and what fails is made anew.
"""

from __future__ import annotations

import errno
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from datamodules.errors import UserError, printable

T = TypeVar("T")
NOT_ITS_FAULT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors of the system: too many open files, no memory. They say nothing about the entry."""


CHANGED_MEANWHILE = frozenset({errno.ENOENT, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR})
"""While an entry is deleted: another process has done it, or has put a new one in its place."""
ATTEMPTS = 3
"""Other processes may mend an entry at the same time, and take away what this one has made."""


class DamagedEntry(UserError):
    """An entry, ``where``, that cannot be read or does not hold what was written."""


def damage(entry: Path, reason: Exception | str) -> Exception:
    """The error for what was met while an entry was read: DamagedEntry, unless the system is short of something."""
    if isinstance(reason, OSError) and reason.errno in NOT_ITS_FAULT:
        return reason
    text = f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else reason
    return DamagedEntry(f"is damaged ({printable(text)})", entry, "delete it, and check the disk")


def read_or_make(read: Callable[[], T], make: Callable[[], None]) -> T:
    """Read from an entry; where it is damaged, say so, make it anew and read again.

    Raises:
        DamagedEntry: what was made anew is damaged too.
    """
    for attempt in range(ATTEMPTS):
        try:
            return read()
        except DamagedEntry as found:
            if attempt:  # the first time, another process may be mending it
                clear_damaged(found)
                make()
    return read()


def clear_damaged(found: DamagedEntry) -> None:
    """Warn of a damaged entry and take it away."""
    warnings.warn(f"{printable(str(found.where))} {found.problem}; it is made anew", stacklevel=3)
    remove(Path(str(found.where)))


def remove(entry: Path) -> None:
    """Delete an entry, file or folder, if there is one."""
    try:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in CHANGED_MEANWHILE:
            return
        raise UserError(f"cannot be deleted ({error.strerror})", entry, "delete it, or choose another cache") from error


def check_space(
    folder: Path, what: str, total: float, to_write: float, max_gib: float, setting: str, advice: str
) -> None:
    """Refuse to fill the disk, or to take more of it than is allowed.

    Args:
        folder: of the cache; it need not be there yet.
        what: what it is to hold.
        total: bytes that the wanted entries take, those that are there included.
        to_write: bytes of those that are not there.
        max_gib: what a cache may take.
        setting: what allows it more.
        advice: the other ways out.
    """
    if total > max_gib * 2**30:
        raise UserError(
            f"{what} take {in_bytes(total)}, more than the {in_bytes(max_gib * 2**30)} allowed",
            remedy=f"{advice}, or raise {setting}",
        )
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if to_write > free:
        raise UserError(f"{what} take {in_bytes(to_write)} more, {in_bytes(free)} are free", folder, advice)


def in_bytes(number: float) -> str:
    """A number of bytes in the largest unit of which there is at least one.

    >>> in_bytes(999), in_bytes(1536), in_bytes(64 * 2**30), in_bytes(1e-3 * 2**30)
    ('999 bytes', '1.5 KiB', '64 GiB', '1.02 MiB')
    """
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if number >= 1024**power:
            return f"{number / 1024**power:.3g} {unit}"
    return f"{number:.0f} bytes"
