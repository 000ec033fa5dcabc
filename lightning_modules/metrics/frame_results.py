"""Frame detections in a file: the csv form of the AVA challenge, which the evaluators of the field read.

``video,seconds,x1,y1,x2,y2,action_id,score``, corners as fractions of the frame, ids from 1.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np

from datamodules.errors import UserError
from datamodules.text_files import CLOSE_QUOTES, check_separator, open_text

COLUMNS = ("video", "seconds", "x1", "y1", "x2", "y2", "action_id", "score")
LARGEST_FRACTION = 1.5
"""Boxes may stick out of the frame a little; beyond this they must be pixels."""
WRITE_CORNERS = "write x1,y1,x2,y2, not width and height"
OF_PEOPLE = ("person_id", "entity_id", "track_id")
"""Last columns of annotation, where detections have their scores."""
ROWS_AT_A_TIME = 200_000
ROWS_TO_JUDGE_BY = 100
LARGEST_ID = 2**31 - 1


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
    """Read detections of any program.

    The first line may be a header. Lines of two columns, frames without detection in some programs, are passed over.
    """
    from tqdm import tqdm

    path = Path(path)
    names: dict[str, int] = {}
    parts = [(np.empty(0, np.int32), np.empty((0, len(COLUMNS) - 1)))]
    with (
        open_text(path, "file of detections") as file,
        tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, leave=False) as progress,
    ):
        first = 1
        while lines := list(islice(file, ROWS_AT_A_TIME)):
            if first == 1:
                check_separator(path, lines[:ROWS_TO_JUDGE_BY], ",".join(COLUMNS), (2, len(COLUMNS)))
                if _is_header(cells := _first_cells(lines[0], path)):
                    _check_header(cells, path)
                    lines[0] = "\n"
            plain = all(line.count(",") == len(COLUMNS) - 1 and '"' not in line for line in lines)
            videos, columns = (_plain_rows if plain else _rows)(lines, path, first)
            known = [names.setdefault(video.strip(), len(names)) for video in videos]
            parts.append((np.asarray(known, np.int32), columns))
            first += len(lines)
            progress.update(file.buffer.tell() - progress.n)
    videos, numbers = (np.concatenate(column) for column in zip(*parts, strict=True))
    boxes = numbers[:, 1:5]
    if len(boxes) and boxes.max() > LARGEST_FRACTION:
        raise UserError(
            f"corners reach up to {boxes.max():g} and look like pixels",
            path,
            "divide x by the width and y by the height of the frame",
        )
    return FrameDetections(tuple(names), videos, numbers[:, 0], boxes, numbers[:, 5].astype(np.int32), numbers[:, 6])


def _next_lines(file: TextIO, path: Path) -> list[str]:
    try:
        return list(islice(file, ROWS_AT_A_TIME))
    except UnicodeDecodeError as error:
        raise UserError("is not text in UTF-8", where=path, remedy="save it in this encoding") from error


def _cells(lines: list[str], path: Path) -> Iterator[list[str]]:
    try:
        yield from csv.reader(lines)
    except csv.Error as error:
        raise UserError(f"is no csv: {error}", where=path) from error


def _first_cells(line: str, path: Path) -> list[str]:
    """Return the cells of the first line, which may be a header."""
    try:
        return next(csv.reader([line]), [])
    except csv.Error as error:
        raise UserError(f"line 1: {error}", path, CLOSE_QUOTES) from None


def _is_header(line: Sequence[str]) -> bool:
    try:
        float(line[1])
    except (ValueError, IndexError):
        return True
    return False


def _check_header(cells: Sequence[str], path: Path) -> None:
    """Refuse annotation, and columns in another order; names that are not ours may mean anything."""
    names = [cell.strip().lower() for cell in cells]
    if names and names[-1] in OF_PEOPLE:
        problem = f"is annotation, not detections: its last column is {names[-1]}, not score"
        raise UserError(problem, path, "give the file of detections")
    for number, (name, ours) in enumerate(zip(names, COLUMNS, strict=False), start=1):
        if name != ours and name in COLUMNS:
            raise UserError(f"column {number} is {name}, expected {ours}", path, f"write {','.join(COLUMNS)}")


def _plain_rows(lines: list[str], path: Path, first: int) -> tuple[list[str], np.ndarray]:
    """Return what ``_rows`` gives, ten times as fast, for lines of eight columns without quotation marks."""
    try:
        numbers = np.loadtxt(lines, delimiter=",", usecols=range(1, len(COLUMNS)), comments=None, ndmin=2)
    except ValueError:
        return _rows(lines, path, first)  # which reports the error
    actions = numbers[:, 5]
    if (
        (numbers[:, 3:5] < numbers[:, 1:3]).any()
        or not np.isfinite(numbers).all()
        or (actions != np.rint(actions)).any()
        or (np.abs(actions) > LARGEST_ID).any()
    ):
        return _rows(lines, path, first)
    return [line.partition(",")[0] for line in lines], numbers


def _rows(lines: list[str], path: Path, first: int) -> tuple[list[str], np.ndarray]:
    """Videos, and the other columns (n, 7), of some lines; ``first`` is the number of the first of them."""
    videos, numbers = [], []
    reader = csv.reader(lines)
    try:
        for cells in reader:
            line = first + reader.line_num - 1
            if any("\n" in cell or "\r" in cell for cell in cells):
                raise UserError(f"line {line}: a cell goes over several lines", path, CLOSE_QUOTES)
            if len(cells) <= 2:
                continue
            if len(cells) != len(COLUMNS):
                raise UserError(f"line {line}: {len(cells)} columns, expected {','.join(COLUMNS)}", path)
            videos.append(cells[0])
            numbers.append([_number(path, line, *cell) for cell in zip(COLUMNS[1:], cells[1:], strict=True)])
            _, x1, y1, x2, y2, *_ = numbers[-1]
            if x2 < x1 or y2 < y1:
                raise UserError(
                    f"line {line}: the box {x1:g},{y1:g},{x2:g},{y2:g} ends before it begins", path, WRITE_CORNERS
                )
    except csv.Error as error:
        raise UserError(f"line {first + reader.line_num - 1}: {error}", path, CLOSE_QUOTES) from None
    return videos, np.asarray(numbers, np.float64).reshape(-1, len(COLUMNS) - 1)


def _number(path: Path, line: int, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value) or (name == "action_id" and (value != int(value) or abs(value) > LARGEST_ID)):
        kind = "a whole number" if name == "action_id" else "a number"
        raise UserError(f"line {line}: {name} must be {kind}, got {text!r}", path)
    return value
