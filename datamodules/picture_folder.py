"""Videos that are kept as folders of numbered pictures: which there are, when each is shown, which are missing.

Pictures count from 1, or from 0 where there is a picture 0: with 30 pictures a second, picture 31 is shown at 1 s. They
are found by one look at the folder and are opened when they are asked for (video.py).
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.video_listing import VideoError

NUMBERED = re.compile(r"(.*?)(\d+)(\.(?:jpg|jpeg|png))", re.IGNORECASE)
PREFERRED_PREFIXES = ("{folder}_", "img_", "")
"""Which pictures are the video's where a folder has several kinds; mmaction2 keeps optical flow beside its frames."""
NAMES_SHOWN = 5


class PictureFolder(NamedTuple):
    """One video as a folder of pictures; stands where the path of a video file stands."""

    path: Path
    frame_rate: float = 30.0
    """Pictures a second."""

    def __str__(self) -> str:
        return str(self.path)


Video = Path | PictureFolder
"""What frames are read from: a video file, or a folder of pictures."""


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
    """List a folder's pictures. A second call for an unchanged folder costs nothing; what is missing is told once."""
    try:
        changed = folder.path.stat().st_mtime_ns
    except FileNotFoundError:
        raise VideoError(f"{folder}: no such folder of pictures") from None
    return _list_unchanged(folder, changed)


@lru_cache(maxsize=1024)
def _list_unchanged(folder: PictureFolder, mtime_ns: int) -> PictureListing:
    """``list_pictures`` of one state of a folder: mtime is there for the cache to notice a change."""
    kinds: dict[tuple[str, str], list[str]] = {}
    with os.scandir(folder.path) as entries:
        for entry in entries:
            match = NUMBERED.fullmatch(entry.name)
            if match and not entry.name.startswith("."):
                prefix, number, ending = match.groups()
                kinds.setdefault((prefix, ending), []).append(number)
    prefix, ending = _kind(folder, list(kinds))
    written = kinds[prefix, ending]
    digits = min(map(len, written))
    there = np.unique(np.asarray(written, dtype=np.int64))
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
            f"{folder}: {len(missing)} of {len(numbers)} pictures are missing, the ones before are shown instead: "
            f"{', '.join(names)}{' ...' if len(missing) > NAMES_SHOWN else ''}"
        )
    return listing


def _kind(folder: PictureFolder, kinds: list[tuple[str, str]]) -> tuple[str, str]:
    """Beginning and ending of the names that are the video's."""
    if not kinds:
        raise VideoError(f"{folder}: holds no numbered picture such as img_00001.jpg")
    if len(kinds) == 1:
        return kinds[0]
    for prefix in PREFERRED_PREFIXES:
        found = [kind for kind in kinds if kind[0] == prefix.format(folder=folder.path.name)]
        if len(found) == 1:
            return found[0]
    names = ", ".join(sorted(f"{prefix}*{ending}" for prefix, ending in kinds)[:NAMES_SHOWN])
    raise VideoError(f"{folder}: holds pictures of several kinds ({names}); keep one of them")


def _size(folder: PictureFolder, files: list[str]) -> tuple[int, int]:
    """Height and width of the first picture that can be read."""
    import cv2

    for file in files:
        picture = cv2.imread(file)
        if picture is not None:
            return picture.shape[:2]
    raise VideoError(f"{folder}: none of its first {len(files)} pictures can be read, {files[0]} the first of them")
