"""Videos that are kept as folders of numbered pictures: which there are, when each is shown, which are missing.

Pictures count from 1, or from 0 where there is a picture 0: with 30 pictures per second, picture 31 is shown at 1 s.
They are found by one look at the folder and are opened when they are asked for (video.py).
"""

from __future__ import annotations

import os
import re
import stat
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.errors import printable
from datamodules.video.listing import VideoError, state_of

NUMBERED = re.compile(r"(.*?)([0-9]+)(\.(?:jpg|jpeg|png))", re.IGNORECASE)
PREFERRED_PREFIXES = ("{folder}_", "img_", "")
"""Prefixes of the video's pictures where a folder has several kinds; mmaction2 keeps optical flow beside frames."""
NAMES_SHOWN = 5
MISSING_PER_PICTURE, MISSING_AT_LEAST = 100, 100_000
"""Most numbers that may lack their picture; each becomes a frame. Numbers with larger gaps are time stamps and do not
count pictures. A few pictures out of an hour of film that kept their numbers are fine."""


class PictureFolder(NamedTuple):
    """One video as a folder of pictures; stands where the path of a video file stands."""

    path: Path
    frame_rate: float = 30.0
    """Pictures a second."""

    def __str__(self) -> str:
        return str(self.path)


Video = Path | PictureFolder
"""Source of frames: a video file, or a folder of pictures."""


def path_of(video: Video) -> Path:
    """Return the file, or the folder of pictures."""
    return video.path if isinstance(video, PictureFolder) else video


class PictureListing(NamedTuple):
    """The N pictures of a folder, from its first number to its last, as if none were missing."""

    times: np.ndarray
    """(N,) float64, seconds from picture 1."""
    numbers: np.ndarray
    """(N,) int64, which picture is shown: its own number, or that of the last one there is before it."""
    present: np.ndarray
    """(N,) bool, False where the picture is missing."""
    height: int
    width: int
    prefix: str
    """Folder and beginning of the name."""
    digits: int
    """Least number of digits."""
    ending: str

    def file(self, index: int) -> str:
        """The file of the picture shown at a position."""
        return f"{self.prefix}{self.numbers[index]:0{self.digits}d}{self.ending}"


def list_pictures(folder: PictureFolder) -> PictureListing:
    """List a folder's pictures. A second call for an unchanged folder costs nothing; gaps are reported once."""
    facts = state_of(folder.path, "folder of pictures")
    if not stat.S_ISDIR(facts.st_mode):
        raise VideoError("is not a folder of pictures", folder)
    return _list_unchanged(folder, facts.st_mtime_ns)


@lru_cache(maxsize=1024)
def _list_unchanged(folder: PictureFolder, mtime_ns: int) -> PictureListing:
    """``list_pictures`` of one state of a folder: mtime is there for the cache to notice a change."""
    kinds = _numbered(folder)
    prefix, ending = _kind(folder, list(kinds))
    written = kinds[prefix, ending]
    digits = min(map(len, written))
    there = _checked(folder, sorted({int(number) for number in written}))
    first = min(1, int(there[0]))
    numbers = np.arange(first, int(there[-1]) + 1)
    before = np.maximum(np.searchsorted(there, numbers, side="right") - 1, 0)
    shown = there[before]
    start = os.path.join(folder.path, prefix)
    height, width = _size(folder, [f"{start}{number:0{digits}d}{ending}" for number in there[:NAMES_SHOWN].tolist()])
    listing = PictureListing(
        (numbers - first) / folder.frame_rate, shown, shown == numbers, height, width, start, digits, ending
    )
    missing = numbers[~listing.present]
    if len(missing):
        from lightning.pytorch.utilities import rank_zero_warn

        names = [f"{prefix}{number:0{digits}d}{ending}" for number in missing[:NAMES_SHOWN].tolist()]
        rank_zero_warn(
            f"{printable(str(folder))}: {len(missing)} of {len(numbers)} pictures are missing, the ones before are "
            f"shown instead: {printable(', '.join(names))}{' ...' if len(missing) > NAMES_SHOWN else ''}"
        )
    return listing


def _numbered(folder: PictureFolder) -> dict[tuple[str, str], list[str]]:
    """The numbers of a folder's pictures as they are written, by beginning and ending of the name."""
    kinds: dict[tuple[str, str], list[str]] = {}
    try:
        with os.scandir(folder.path) as entries:
            for entry in entries:
                match = NUMBERED.fullmatch(entry.name)
                if match and not entry.name.startswith("."):
                    _refuse_special(entry)
                    prefix, number, ending = match.groups()
                    kinds.setdefault((prefix, ending), []).append(number)
    except OSError as error:
        raise VideoError(f"cannot be read ({error.strerror})", folder) from None
    return kinds


def _refuse_special(entry: os.DirEntry[str]) -> None:
    """Refuse a pipe or a device: opening one would wait for ever. For files this costs no system call."""
    if entry.is_file():
        return
    try:
        mode = entry.stat().st_mode
    except FileNotFoundError:  # a link to nowhere: as a picture that cannot be read
        return
    if not stat.S_ISDIR(mode):
        raise VideoError("is a pipe or a device, not a picture", entry.path)


def _checked(folder: PictureFolder, numbers: list[int]) -> np.ndarray:
    """The numbers of the pictures, ascending, once they are known to count pictures."""
    missing = numbers[-1] - len(numbers)
    if missing > max(MISSING_AT_LEAST, MISSING_PER_PICTURE * len(numbers)):
        raise VideoError(
            f"its {len(numbers)} pictures are numbered up to {numbers[-1]}, as by time stamps",
            folder,
            "number them in the order in which they are shown, such as img_00001.jpg",
        )
    return np.asarray(numbers, dtype=np.int64)


def _kind(folder: PictureFolder, kinds: list[tuple[str, str]]) -> tuple[str, str]:
    """Beginning and ending of the names that are the video's."""
    if not kinds:
        raise VideoError("holds no numbered picture such as img_00001.jpg", folder)
    if len(kinds) == 1:
        return kinds[0]
    for prefix in PREFERRED_PREFIXES:
        found = [kind for kind in kinds if kind[0] == prefix.format(folder=folder.path.name)]
        if len(found) == 1:
            return found[0]
    names = printable(", ".join(sorted(f"{prefix}*{ending}" for prefix, ending in kinds)[:NAMES_SHOWN]))
    raise VideoError(f"holds pictures of several kinds ({names})", folder, "keep one of them")


def _size(folder: PictureFolder, files: list[str]) -> tuple[int, int]:
    """Height and width of the first picture that can be read."""
    for file in files:
        picture = read_picture(file)
        if picture is not None:
            return picture.shape[:2]
    first = printable(os.path.basename(files[0]))
    raise VideoError(f"none of its first {len(files)} pictures can be read, {first} the first of them", folder)


def read_picture(file: str) -> np.ndarray | None:
    """(H, W, 3) uint8, blue, green, red; None where no picture can be read, or none of a size that is one."""
    import cv2

    try:
        content = np.fromfile(file, np.uint8)  # cv2.imread ends the process at names that are not UTF-8
        return cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    except (FileNotFoundError, IsADirectoryError, PermissionError, cv2.error):
        return None  # the last where the head says more than 2 to the power of 30 pixels
