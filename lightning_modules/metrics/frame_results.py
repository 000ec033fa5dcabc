"""Frame detections in a file: the csv form of the AVA challenge, which the evaluators of the field read.

``video,seconds,x1,y1,x2,y2,action_id,score``, corners as fractions of the frame, ids from 1.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

COLUMNS = ("video", "seconds", "x1", "y1", "x2", "y2", "action_id", "score")
LARGEST_FRACTION = 1.5
"""Boxes may stick out of the frame a little; beyond this they must be pixels."""
ROWS_AT_A_TIME = 200_000


class FrameDetections(NamedTuple):
    """R rows, one an action of a box."""

    names: tuple[str, ...]
    """V videos."""
    videos: np.ndarray
    """(R,) int32, positions in ``names``."""
    seconds: np.ndarray
    """(R,) float64."""
    boxes: np.ndarray
    """(R, 4) float64, xyxy as fractions."""
    actions: np.ndarray
    """(R,) int32, as the file has them."""
    scores: np.ndarray
    """(R,) float64."""


def read_frame_detections(path: str | Path) -> FrameDetections:
    """Read detections from whatever program.

    The first line may be a header. Lines of two columns, frames without detection in some programs, are passed over.
    """
    from tqdm import tqdm

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of detections")
    names: dict[str, int] = {}
    parts = [(np.empty(0, np.int32), np.empty((0, 6)), np.empty(0, np.int32))]
    progress = tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, leave=False)
    with path.open(newline="", encoding="utf-8-sig") as file, progress:
        reader, first = csv.reader(file), 1
        while lines := list(islice(reader, ROWS_AT_A_TIME)):
            if first == 1 and _is_header(lines[0]):
                lines[0] = []
            parts.append(_columns(lines, names, path, first))
            first += len(lines)
            progress.update(file.buffer.tell() - progress.n)
    videos, numbers, actions = (np.concatenate(column) for column in zip(*parts, strict=True))
    boxes = numbers[:, 1:5]
    if len(boxes) and boxes.max() > LARGEST_FRACTION:
        raise ValueError(
            f"{path}: corners reach up to {boxes.max():g} and look like pixels; divide x by the width and y by the "
            "height of the frame"
        )
    return FrameDetections(tuple(names), videos, numbers[:, 0], boxes, actions, numbers[:, 5])


def _is_header(line: Sequence[str]) -> bool:
    try:
        float(line[1])
    except (ValueError, IndexError):
        return True
    return False


def _columns(
    lines: list[list[str]], names: dict[str, int], path: Path, first: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Videos (n,), seconds with corners and score (n, 6), action ids (n,) of some lines; new names are entered."""
    kept = [line for line in lines if len(line) > 2]
    if not kept:
        return np.empty(0, np.int32), np.empty((0, 6)), np.empty(0, np.int32)
    try:
        videos, *corners, actions, scores = zip(*kept, strict=True)
        if len(corners) != 5:
            raise ValueError
        numbers = np.array([*corners, scores], dtype=np.float64).T
        ids = np.array(actions, dtype=np.float64)
        if not np.isfinite(numbers).all() or (ids != ids.astype(np.int32)).any():
            raise ValueError
    except ValueError:
        raise ValueError(_complaint(lines, path, first)) from None
    known = [names.setdefault(video.strip(), len(names)) for video in videos]
    return np.asarray(known, np.int32), numbers, ids.astype(np.int32)


def _complaint(lines: list[list[str]], path: Path, first: int) -> str:
    """Which line is wrong, and how."""
    for number, line in enumerate(lines, start=first):
        if len(line) > 2 and len(line) != len(COLUMNS):
            return f"{path}, line {number}: {len(line)} columns, expected {','.join(COLUMNS)}"
        for name, text in list(zip(COLUMNS, line, strict=False))[1:]:
            try:
                value = float(text)
            except ValueError:
                value = np.nan
            if not np.isfinite(value) or (name == "action_id" and value != int(value)):
                kind = "a whole number" if name == "action_id" else "a number"
                return f"{path}, line {number}: {name} must be {kind}, got {text!r}"
    return f"{path}, from line {first} on: not rows of {','.join(COLUMNS)}"
