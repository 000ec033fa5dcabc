"""Videos that are kept as arrays of features, one array a video, and the moments that their rows stand for.

A feature is computed from ``window_frames`` frames of the video, the next one ``stride_frames`` later. Its time is the
middle of its frames. With stride 4 and window 16 at 30 frames per second, features 0, 1, 2 have the times 0.267, 0.4,
0.533 s.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tokenize import TokenError
from typing import IO, NamedTuple

import numpy as np

from datamodules.errors import UserError

ENDINGS = (".npy", ".npz")
DAMAGED = (
    OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile,
    SyntaxError, TokenError,  # numpy reads the head of an array as Python
    NotImplementedError, RuntimeError,  # packed in another way, or encrypted
)  # fmt: skip
"""Errors of numpy and zipfile at damaged files."""


class FeatureArray(NamedTuple):
    """N features of one video; stands where the path of a video stands."""

    files: tuple[Path, ...]
    """Arrays whose channels are put side by side, as those of RGB and of optical flow."""
    first_seconds: float
    """Time that feature 0 stands for."""
    step_seconds: float
    """Seconds from one feature to the next."""
    channels_first: bool = False
    """True for arrays (C, N) instead of (N, C)."""

    def __str__(self) -> str:
        return str(self.files[0])


@dataclass(frozen=True)
class FeatureFolder:
    """Folders of ``<video>.npy`` or ``<video>.npz`` (or ``v_<video>``), and the times of their rows.

    Args:
        folder: folder of arrays (N, C), float16 or float32. An npz holds one array.
        second_folder: arrays of the same videos whose channels are put beside the first, flow beside RGB; the longer
            of two arrays is cut.
        stride_frames: frames from one feature to the next. None for N features spread evenly over the whole video, like
            ActivityNet's resized to 100.
        window_frames: frames that one feature sees.
        frame_rate: frames per second of the videos when features were computed; None takes the annotation's.
        channels_first: arrays are (C, N).
    """

    folder: str | Path
    second_folder: str | Path | None = None
    stride_frames: float | None = 4
    window_frames: float = 16
    frame_rate: float | None = None
    channels_first: bool = False

    def __post_init__(self) -> None:
        if self.stride_frames is not None and not self.stride_frames > 0:
            raise UserError(f"stride_frames must be positive or None, got {self.stride_frames}")
        if not self.window_frames > 0 or (self.frame_rate is not None and not self.frame_rate > 0):
            raise UserError(
                f"window_frames and frame_rate must be positive, got {self.window_frames} and {self.frame_rate}"
            )

    def find(self, video_id: str, duration: float | None, frame_rate: float | None) -> FeatureArray | None:
        """The features of a video, None where one of its files is not there.

        Args:
            video_id: its name.
            duration: seconds, needed where features are spread over the video.
            frame_rate: of the annotation, needed where the folder has none of its own.
        """
        files = []
        for folder in (self.folder, self.second_folder):
            if folder is None:
                continue
            if not Path(folder).is_dir():
                raise UserError("no such folder of features", folder)
            names = [f"{prefix}{video_id}{ending}" for prefix in ("", "v_") for ending in ENDINGS]
            file = next((file for name in names if (file := Path(folder, name)).is_file()), None)
            if file is None:
                return None
            files.append(file)
        array = FeatureArray(tuple(files), 0.0, 1.0, self.channels_first)
        if self.stride_frames is None:
            if duration is None:
                raise UserError("features spread over the video need its duration, the annotation has none", array)
            step = duration / num_features(array)
            return array._replace(first_seconds=step / 2, step_seconds=step)
        rate = self.frame_rate or frame_rate
        if rate is None:
            raise UserError("the annotation does not say the video's frame rate", array, "set features.frame_rate")
        return array._replace(first_seconds=self.window_frames / 2 / rate, step_seconds=self.stride_frames / rate)


def num_features(array: FeatureArray) -> int:
    """N, read from the heads of the files."""
    axis = 1 if array.channels_first else 0
    return min(_shape(file)[axis] for file in array.files)


def num_channels(array: FeatureArray) -> int:
    """C, read from the heads of the files."""
    axis = 0 if array.channels_first else 1
    return sum(_shape(file)[axis] for file in array.files)


def read_features(array: FeatureArray, start: int, stop: int) -> np.ndarray:
    """Features ``start`` to ``stop`` of a video: (C, stop - start) float32. Of an npy file only they are read."""
    parts = []
    for file in array.files:
        whole = _open(file)
        part = whole[:, start:stop] if array.channels_first else whole[start:stop].T
        if not np.isfinite(part).all():
            raise UserError("holds values that are not finite", file, "compute the features of this video again")
        parts.append(part.astype(np.float32))
    return np.concatenate(parts)


def _open(file: Path) -> np.ndarray:
    _shape(file)
    if file.suffix == ".npy":
        return np.load(file, mmap_mode="r", allow_pickle=False)
    return _unpacked(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _unpacked(file: Path, mtime_ns: int) -> np.ndarray:
    """The array of one state of an npz. The last two are kept, since the windows of a video follow each other."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return arrays[arrays.files[0]]
    except DAMAGED as error:
        raise UserError(f"not a readable numpy array ({error})", file) from error


def _shape(file: Path) -> tuple[int, int]:
    """Shape of the one array of a file, from its head; the file must be as long as that says."""
    try:
        if file.suffix == ".npy":
            with file.open("rb") as stream:
                shape, dtype = _head(stream)
                length = file.stat().st_size - stream.tell()
        else:
            with zipfile.ZipFile(file) as members:
                names = members.namelist()
                if len(names) != 1:
                    raise UserError(f"holds {len(names)} arrays ({', '.join(names[:3])}), must be one", file)
                with members.open(names[0]) as stream:
                    shape, dtype = _head(stream)
                    length = members.getinfo(names[0]).file_size - stream.tell()
    except UserError:
        raise
    except DAMAGED as error:
        raise UserError(f"not a readable numpy array ({error})", file) from error
    if len(shape) != 2 or dtype.kind != "f":
        raise UserError(f"is an array {shape} of {dtype}; features are (N, C) floats", file)
    if math.prod(shape) * dtype.itemsize != length:
        raise UserError(f"is cut off or damaged: {shape} of {dtype} takes other than {length} bytes", file)
    return shape


def _head(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype
