"""States of videos, by which it is known whether what was computed of one still is that of it.

Size and time of the last change tell quickly. The copy of a data set has other times and the same content, so a digest
of the content decides where only the time differs.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.video.listing import VideoError, state_of
from datamodules.video.picture_folder import Video, path_of


class VideoState(NamedTuple):
    """State of a file, or of a folder of pictures, as it is now."""

    path: Path
    bytes: int | None
    """None for a folder: its size says nothing about its pictures."""
    mtime_ns: int
    """Of a folder that of the picture that changed last: one that is overwritten leaves the folder's own as it is."""

    @classmethod
    def of(cls, video: Video) -> VideoState:
        """Look at a video.

        Raises:
            VideoError: it is not there, or must not be looked at.
        """
        path = path_of(video)
        facts = state_of(path, "video")
        if stat.S_ISDIR(facts.st_mode):
            return cls(path, None, _newest(path, facts.st_mtime_ns))
        return cls(path, facts.st_size, facts.st_mtime_ns)

    def digest(self) -> str:
        """Return the digest of the content, for which all of it is read once.

        Raises:
            VideoError: it cannot be read.
        """
        return _digest(*self)

    def record(self) -> dict[str, Any]:
        """Return what is to be stored as JSON."""
        return {"bytes": self.bytes, "mtime_ns": self.mtime_ns, "sha256": self.digest()}

    def is_recorded(self, stored: Mapping[str, Any]) -> bool:
        """Return whether this is the stored state; older records lack the digest."""
        if self.bytes is not None and stored["bytes"] != self.bytes:
            return False
        return stored["mtime_ns"] == self.mtime_ns or ("sha256" in stored and stored["sha256"] == self.digest())


@lru_cache(maxsize=65536)
def _newest(folder: Path, mtime_ns: int) -> int:
    """Time of the last change to a folder or to a file in it; its own is there to look again when it changes."""
    try:
        with os.scandir(folder) as entries:
            return max([mtime_ns, *(entry.stat().st_mtime_ns for entry in entries)])
    except OSError as error:
        raise VideoError(f"cannot be read ({error.strerror})", folder) from None


@lru_cache(maxsize=65536)
def _digest(path: Path, size: int | None, mtime_ns: int) -> str:
    """SHA-256 of a file, or of the files of a folder and their names; size and time are there to notice a change."""
    try:
        if size is not None:
            return _of_file(path)
        names = sorted(entry.name for entry in os.scandir(path) if entry.is_file())
        return hashlib.sha256(os.fsencode("".join(f"{_of_file(path / name)} {name}/" for name in names))).hexdigest()
    except OSError as error:
        raise VideoError(f"cannot be read ({error.strerror})", path) from None


def _of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
