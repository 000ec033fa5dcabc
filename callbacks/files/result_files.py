"""Files of predictions: one for each video, named after it, never one of those that are predicted on."""

from __future__ import annotations

import hashlib
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from io import RawIOBase
from itertools import count
from pathlib import Path
from typing import TypeVar

from lightning.pytorch import Trainer
from tqdm import tqdm

from datamodules.errors import UserError, printable
from datamodules.files import errors_named

T = TypeVar("T")
LONGEST_NAME = 240
"""Bytes of a file's name; file systems take 255."""
NAMED_FILES = 10
"""Files named at the end, at most; of further ones only the number is given."""


class ResultFiles:
    """The files that a prediction leaves in one folder: their names, their lines, and a report of them.

    A video's files lie in sub-folders like the video's own: ``cam/1`` becomes ``<folder>/cam/1.<ending>``. No two
    videos of a run get the same file, also where the file system does not tell "A" from "a"; names that are too long
    are cut. A name that was changed ends in ``~`` and a digest of the video's id.

    Args:
        folder: made if missing.
        trainer: one process of several puts its rank into its file names. Its datamodule's ``input_files``, where it
            has them, are never written to.

    Raises:
        UserError: there can be no such folder.
    """

    def __init__(self, folder: Path, trainer: Trainer) -> None:
        self.folder = folder
        self._rank = f".rank{trainer.global_rank}" if trainer.world_size > 1 else ""
        self._inputs = set(_identities(getattr(trainer.datamodule, "input_files", ())))
        self._owners: dict[str, str] = {}
        self._started: dict[Path, None] = {}
        if folder.exists() and not folder.is_dir():
            raise UserError("is no folder, so results cannot go there", folder, "choose another folder for them")
        with errors_named(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, video_id: str, ending: str) -> Path:
        """Name the file of a video."""
        *folders, name = [_FOLDERS.get(part, part) for part in video_id.split("/") if part] or ["video"]
        ending = f"{self._rank}.{ending}"
        for attempt in count():
            file = _named(name, video_id, ending, attempt)
            relative = "/".join((*folders, file))
            owner = self._owners.setdefault(unicodedata.normalize("NFC", relative).casefold(), video_id)
            if owner == video_id:
                return self.folder / relative
        raise AssertionError("unreachable")

    def shared_path(self, stem: str, ending: str) -> Path:
        """Name a file that all videos share."""
        return self.folder / f"{stem}{self._rank}.{ending}"

    def is_started(self, path: Path) -> bool:
        """Return whether this run has written to the file."""
        return path in self._started

    def start(self, path: Path, may_replace: Callable[[Path], bool] = Path.is_file) -> None:
        """Make way for a file of this run: an earlier one goes, which is reported; an input stays.

        Args:
            path: one that this object named.
            may_replace: whether what has the name is of an earlier prediction.

        Raises:
            UserError: the path is an input, or something that may not be replaced.
        """
        with errors_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            exists = path.exists()
        if set(_identities([path])) & self._inputs:
            raise UserError("is predicted on, so results cannot go there", path, "choose another folder for them")
        if exists:
            if not may_replace(path):
                raise UserError(
                    "exists and is no result of an earlier prediction", path, "remove it, or choose another folder"
                )
            say(f"replacing {printable(str(path))} of an earlier prediction")
        self._started[path] = None

    def append(self, path: Path, text: str) -> None:
        """Write whole lines to the end of a file, all of them or, where there is no space, none."""
        is_new = not self.is_started(path)
        if is_new:
            self.start(path)
        with errors_named(path), path.open("wb" if is_new else "ab", buffering=0) as file:
            # Names of files may hold bytes that are no text.
            write_all(file, text.encode("utf-8", "backslashreplace"))

    def report(self) -> None:
        """Print which files were written."""
        if len(self._started) <= NAMED_FILES:
            for path in sorted(self._started):
                say(f"wrote {printable(str(path))}")
        else:
            say(f"wrote {len(self._started)} files into {printable(str(self.folder))}")
        self._started.clear()


_FOLDERS = {".": "_", "..": "__"}
"""Parts of a path that would lead elsewhere."""


def say(text: str) -> None:
    """Print a line above a progress bar, where there is one, not into it."""
    tqdm.write(text, file=sys.stdout)


def _named(name: str, video_id: str, ending: str, attempt: int) -> str:
    """The name of a file: as it is, or cut to the length that there may be, or with a digest where it is taken."""
    room = LONGEST_NAME - len(os.fsencode(ending))
    if attempt == 0 and len(os.fsencode(name)) <= room:
        return name + ending
    mark = "~" + hashlib.sha256(os.fsencode(f"{attempt} {video_id}")).hexdigest()[:8]
    kept = name
    while len(os.fsencode(kept)) > room - len(mark):
        kept = kept[:-1]
    return kept + mark + ending


def _identities(paths: Iterable[Path]) -> Iterator[tuple[int, int]]:
    """Device and number of each file that exists: equal however it is reached, through links too."""
    for path in paths:
        with suppress(OSError):
            facts = path.stat()
            yield facts.st_dev, facts.st_ino


def add_video(videos: dict[str, T], video_id: str, found: T) -> None:
    """Keep what was found in a video under its id.

    Raises:
        UserError: there is a video of that id already, and the file could hold only one of them.
    """
    if video_id in videos:
        raise UserError(f"two videos are called {video_id!r}", remedy="give each its own name")
    videos[video_id] = found


def write_all(file: RawIOBase, content: bytes | memoryview) -> int:
    """Write to an unbuffered file; where that fails half way, take the half back."""
    start, rest = file.seek(0, os.SEEK_END), memoryview(content)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        with suppress(OSError):
            file.truncate(start)
        raise
    return len(content)
