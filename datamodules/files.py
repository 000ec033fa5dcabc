"""Files that are written whole or not at all, however the program ends."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from .errors import UserError

UNFINISHED = ".partial"
"""Ending of what is being written; ``sweep`` removes what a killed program left."""
OLDER_NAME = re.compile(r"\..+\.([0-9]+)\.partial|.+\.([0-9]+)\.part", re.DOTALL)
"""Names of earlier versions."""


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write text (UTF-8) or bytes under a name that readers find either as it was before or complete.

    Raises:
        UserError: the file cannot be written: no space, no permission, a folder in its place, a name too long.
    """
    with whole_path(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(path: str | Path, mode: str = "w", newline: str | None = None) -> Iterator[IO[Any]]:
    """Open a file for writing; it takes its name when the block ends without an error.

    Args:
        mode: ``w`` for text in UTF-8, ``wb`` for bytes.
        newline: as of ``open``; ``""`` for the csv module.
    """
    with (
        whole_path(path) as unfinished,
        unfinished.open(mode, newline=newline, encoding=None if "b" in mode else "utf-8") as file,
    ):
        yield file


@contextmanager
def whole_path(path: str | Path) -> Iterator[Path]:
    """Yield a path in the same folder; what the block makes there, file or folder, takes the name when it succeeds.

    The yielded path keeps the ending of ``path``, since some libraries choose a format by it. A file is on the disk
    before it gets its name. Folders on the way are made.

    Raises:
        UserError: the operating system refused; the message names ``path``.
    """
    path = Path(path)
    unfinished = _beside(path)
    try:
        _remove(unfinished)  # of a killed program whose number this one has got
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        if unfinished.is_file():
            _flush(unfinished)
        unfinished.replace(path)
    except OSError as error:
        if error.filename not in (None, *map(str, (unfinished, path, path.parent)), path, unfinished, path.parent):
            raise  # about another file, which its own reader or writer has to name
        raise UserError(f"cannot be written: {error.strerror or error}", where=path) from error
    finally:
        # A disk that is full or gone may refuse this too; the first error is the one to see.
        with suppress(OSError):
            _remove(unfinished)


@contextmanager
def errors_named(path: str | Path) -> Iterator[None]:
    """Let what the operating system refuses while a file is written name that file, as ``UserError``."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror or error}", where=path) from error


def require_writable(path: str | Path) -> None:
    """Refuse at once what could not be written after long work; folders on the way are made.

    Raises:
        UserError: no permission, a folder in its place, a name too long.
    """
    path = Path(path)
    with errors_named(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        trial = _beside(path)
        trial.touch()
        trial.unlink()


def make_once(folder: Path, is_complete: Callable[[], bool], make: Callable[[], None]) -> None:
    """Make a folder's files unless they are there. Several processes may ask, on several machines: one makes them.

    Args:
        folder: is made by ``make``; a lock lies beside it.
        is_complete: whether all files are there.
        make: makes what is missing.

    Raises:
        UserError: the folder's parent cannot be made.
    """
    if is_complete():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot be made ({error.strerror})", folder.parent, "choose another root") from error
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if not is_complete():
            make()


def sweep(folder: str | Path, older_names: bool = False) -> None:
    """Remove what programs of this machine that no longer run have left unfinished in ``folder``.

    Args:
        folder: sub-folders are left alone.
        older_names: also remove what earlier versions of this program left, in a folder that is ours alone.
    """
    for leftover in Path(folder).glob(f".*-{_host()}-*{UNFINISHED}*"):
        _remove_leftover(leftover, leftover.name.split(UNFINISHED)[0].rpartition("-")[2])
    for leftover in Path(folder).iterdir() if older_names else ():
        match = OLDER_NAME.fullmatch(leftover.name)
        if match:
            _remove_leftover(leftover, match[1] or match[2])


def _remove_leftover(path: Path, process: str) -> None:
    if process.isdigit() and not _runs(int(process)):
        with suppress(OSError):
            _remove(path)


def _runs(process: int) -> bool:
    """Return whether a process of that number runs on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another user's
        return True
    return True


def _beside(path: Path) -> Path:
    """Name the unfinished file: hidden, short for any length of the target's name, with the number of its process."""
    name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]
    ending = path.suffix if len(path.suffix) < 16 else ""
    return path.with_name(f".{name}-{_host()}-{os.getpid()}{UNFINISHED}{ending}")


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _flush(path: Path) -> None:
    """Wait until the disk has the file, so that a power cut cannot leave its name with half of it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
