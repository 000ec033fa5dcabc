"""Annotations in AVA's column order.

One row per box and action, no header needed::

    video,seconds,x1,y1,x2,y2,action_id,person_id
    kitchen_01,12.5,0.21,0.10,0.48,0.95,3,0

Corners are fractions of the frame, action ids count from 1. The person id may be left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from datamodules.annotations.mistakes import Mistake, keep
from datamodules.annotations.source import Keyframe
from datamodules.text_files import read_rows

BoxUnits = Literal["relative", "absolute"]
LARGEST_FRACTION = 1.5
"""Boxes may stick out of the frame a little; beyond this they must be pixels."""
COLUMNS = "video,seconds,x1,y1,x2,y2,action_id[,person_id]"
WIDTHS = (2, 7, 8)
"""Numbers of columns that a row may have."""
LONGEST_NUMBER = 18
"""Digits that surely fit into 64 bits."""


def read_ava_csv(
    path: str | Path,
    class_names: Sequence[str],
    box_units: BoxUnits = "relative",
    skip_empty_boxes: bool = False,
    mistakes: list[Mistake] | None = None,
) -> dict[str, tuple[Keyframe, ...]]:
    """Read the keyframes of every video named in a csv, in order of time.

    A row has 8 columns, or 7 without the person id. Rows with the same video, time, box and person are one box with
    several actions. Person ids become tracks, where every box of a moment has one. An empty action id is a box without
    action. A row of two columns (video, seconds) is an annotated
    moment without boxes. The first row may be a header.

    Args:
        path: the csv file.
        class_names: names of the K classes; action id n is the n-th of them, from 1.
        box_units: what the file holds. Boxes are returned as they are written: a Keyframe with absolute boxes still has
            to be divided by the size of its video.
        skip_empty_boxes: leave boxes without area out instead of refusing the file.
        mistakes: where rows with mistakes are put down, to read on without them; None refuses the file.

    Raises:
        UserError: the file is not there, is not text in UTF-8, or its columns are not separated by commas.
        Mistake: a row cannot be read, and ``mistakes`` is None.
    """
    path = Path(path)
    moments: dict[str, dict[float, dict[tuple[str, ...], set[int]]]] = {}
    for line, row in read_rows(path, "annotation file", COLUMNS, WIDTHS):
        if line == 1 and _is_header(row):
            continue
        try:
            if len(row) not in WIDTHS:
                where = f"{path}, line {line}"
                raise Mistake("rows that cannot be read", where, f"{len(row)} columns", f"expected {COLUMNS}")
            seconds = _number(path, line, "seconds", row[1])
            boxes = moments.setdefault(row[0], {}).setdefault(seconds, {})
            if len(row) == 2:
                continue
            person = (*row[2:6], *row[7:])
            if person not in boxes:
                if not _has_area(path, line, row[2:6], box_units, skip_empty_boxes):
                    continue
                boxes[person] = set()
            if row[6]:
                boxes[person].add(_class_index(path, line, row[6], len(class_names)))
        except Mistake as mistake:
            keep(mistake, mistakes)
    return {video: _keyframes(times, len(class_names)) for video, times in moments.items()}


def _is_header(row: Sequence[str]) -> bool:
    try:
        float(row[1])
    except (ValueError, IndexError):
        return True
    return False


def _number(path: Path, line: int, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Mistake("rows that cannot be read", f"{path}, line {line}", f"{column} must be a number, got {text!r}")
    return value


def _has_area(path: Path, line: int, corners: Sequence[str], box_units: BoxUnits, may_be_empty: bool) -> bool:
    """Return whether a row has a box; a box that cannot be meant is refused."""
    x1, y1, x2, y2 = (
        _number(path, line, name, text) for name, text in zip(("x1", "y1", "x2", "y2"), corners, strict=True)
    )
    if (x2 <= x1 or y2 <= y1) and not may_be_empty:
        raise Mistake(
            "boxes without area",
            f"{path}, line {line}",
            f"box {','.join(corners)} is empty",
            "corners are x1,y1,x2,y2 with x1<x2, y1<y2",
        )
    if box_units == "relative" and max(x2, y2) > LARGEST_FRACTION:
        raise Mistake(
            "boxes in pixels where fractions are expected",
            f"{path}, line {line}",
            f"box {','.join(corners)} looks like pixels",
            "set box_units to absolute if the file holds pixels, or divide by the frame's width and height",
        )
    return x2 > x1 and y2 > y1


def _class_index(path: Path, line: int, text: str, num_classes: int) -> int:
    action = _number(path, line, "action_id", text)
    if action != int(action) or not 1 <= action <= num_classes:
        raise Mistake(
            "action ids that are 0" if action == 0 else "action ids without a class",
            f"{path}, line {line}",
            f"action id {text} is not one of 1..{num_classes}, the {num_classes} classes",
            "ids count from 1, these seem to count from 0" if action == 0 else "line n of the classes names id n",
        )
    return int(action) - 1


def _keyframes(times: dict[float, dict[tuple[str, ...], set[int]]], num_classes: int) -> tuple[Keyframe, ...]:
    """The moments of one video in order of time; a person is (x1, y1, x2, y2[, id])."""
    numbers = _numbers({person[4] for people in times.values() for person in people if len(person) == 5} - {""})
    keyframes = []
    for seconds, people in sorted(times.items()):
        tracks = [numbers.get("".join(person[4:])) for person in people]
        known = None if None in tracks else np.asarray(tracks, np.int64)
        keyframes.append(Keyframe(seconds, *_box_arrays(people, num_classes), known))
    return tuple(keyframes)


def _numbers(ids: set[str]) -> dict[str, int]:
    """A number for every person id of a video: the id itself if all are whole numbers."""
    if all(text.removeprefix("-").isdecimal() and len(text) <= LONGEST_NUMBER for text in ids):
        return {text: int(text) for text in ids}
    return {text: number for number, text in enumerate(sorted(ids))}


def _box_arrays(people: dict[tuple[str, ...], set[int]], num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(M, 4) float32 boxes and (M, K) uint8 labels of one moment."""
    boxes = np.asarray([[float(corner) for corner in person[:4]] for person in people], np.float32).reshape(-1, 4)
    labels = np.zeros((len(people), num_classes), np.uint8)
    for row, actions in enumerate(people.values()):
        labels[row, list(actions)] = 1
    return boxes, labels
