"""Text that users write or export: csv, json and lists of names, read so that every error names its file.

Text is UTF-8, with or without a byte-order mark, or UTF-16 with one. Lines end with a line feed, with or without a
carriage return before it. Nothing else ends a line, as names may hold any other character.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from .errors import UserError

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    # UTF-32 first: its mark begins with that of UTF-16.
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
SAVE_AS_UTF8 = 'save it as UTF-8 (in Excel: "CSV UTF-8 (comma delimited)")'
OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
NUMBER = re.compile(r" *-?\d*([.,]\d+)? *")
LINES_TO_JUDGE_BY = 100
CLOSE_QUOTES = "close every quotation mark on its line"
RENAME = "give it a name of one line"
HEAD_BYTES = 4096
NAMES_SHOWN = 5


@contextmanager
def open_text(path: str | Path, what: str = "file", remedy: str | None = None) -> Iterator[TextIO]:
    """Open a text file for reading, line ends as they are.

    Args:
        path: the file.
        what: what it is called where it is missing.
        remedy: the way out there.

    Raises:
        UserError: there is no such file, it cannot be read, or it is not text in a known encoding.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise UserError(f"is no {what}" if path.exists() else f"no such {what}", path, remedy)
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if head.startswith(mark)), "utf-8")
        if encoding.startswith("utf-8") and b"\0" in head:
            raise UserError("is no text in UTF-8, for it holds zero bytes", path, SAVE_AS_UTF8)
        with path.open(newline="", encoding=encoding) as file:
            yield file
    except UnicodeDecodeError as error:
        raise UserError(_undecodable(path, encoding, error), path, SAVE_AS_UTF8) from None
    except OSError as error:
        if error.filename not in (None, path, str(path)):
            raise  # about another file
        raise UserError(f"cannot be read: {error.strerror or error}", path) from error


def _undecodable(path: Path, encoding: str, error: UnicodeDecodeError) -> str:
    """Say where the text ends that can be decoded."""
    if encoding.startswith("utf-8"):
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    line.decode()
                except UnicodeDecodeError as here:
                    return f"line {number} is not UTF-8 (byte {line[here.start]:#04x})"
    return f"is damaged {encoding.upper()} ({error})"


def read_text(path: str | Path, what: str = "file", remedy: str | None = None) -> str:
    """Return the whole text of a file; arguments as of ``open_text``."""
    with open_text(path, what, remedy) as file:
        return file.read()


def read_lines(path: str | Path, what: str = "file", remedy: str | None = None) -> list[str]:
    """Return the lines of a file without their ends; line n is entry n - 1."""
    lines = read_text(path, what, remedy).replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def read_json(path: str | Path, what: str = "json file") -> Any:
    """Return what a json file holds.

    Raises:
        UserError: it is no json, or an object in it has a name twice, of which json would keep the last alone.
    """
    text = read_text(path, what)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        check_names([name for name, _ in pairs], path, "name")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not json: {error}", path) from None


def read_rows(
    path: str | Path, what: str, columns: str, widths: Collection[int], remedy: str | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a csv that are not empty, with the numbers of their lines; cells without spaces around them.

    Args:
        path: the file.
        what: what it is called where it is missing.
        columns: how a row should be, for messages.
        widths: numbers of columns that a row may have. Rows of other widths are yielded too, unless they show that
            the columns of the whole file are separated by something other than commas.
        remedy: the way out where the file is missing.

    Raises:
        UserError: as ``open_text``, and where columns are not separated by commas or a quotation mark is never closed.
    """
    with open_text(path, what, remedy) as file:
        head = list(islice(file, LINES_TO_JUDGE_BY))
        check_separator(path, head, columns, widths)
        reader = csv.reader(chain(head, file))
        try:
            for row in reader:
                if any("\n" in cell or "\r" in cell for cell in row):
                    raise UserError(f"line {reader.line_num}: a cell goes over several lines", path, CLOSE_QUOTES)
                cells = [cell.strip() for cell in row]
                if any(cells):
                    yield reader.line_num, cells
        except csv.Error as error:
            raise UserError(f"line {reader.line_num}: {error}", path, CLOSE_QUOTES) from None


def check_separator(path: str | Path, lines: Iterable[str], columns: str, widths: Collection[int]) -> None:
    """Refuse a csv whose columns are separated by something other than commas, as Excel's are in many countries."""
    for number, line in enumerate(lines, start=1):
        by_commas = line.count(",") + 1 in widths
        for separator, called in OTHER_SEPARATORS.items():
            cells = line.strip("\r\n").split(separator)
            # A name may hold a semicolon; of "cam;0,5" the comma is that of a number.
            if len(cells) in widths and (not by_commas or all(map(NUMBER.fullmatch, cells[1:]))):
                raise UserError(
                    f"line {number}: columns are separated by {called}",
                    path,
                    f"save it with commas between columns and points in numbers: {columns}",
                )


def read_class_list(path: str | Path) -> tuple[str, ...]:
    """Return the class names of a text file with one per line; line n names action id n.

    Raises:
        UserError: the file is missing or empty, a line is empty, or two classes have one name.
    """
    lines = [line.strip() for line in read_lines(path, "list of classes", "name a text file with one class per line")]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise UserError("is empty", path, "write one class name per line")
    if "" in lines:
        raise UserError(f"line {lines.index('') + 1} is empty", path, "line n names action id n")
    for number, name in enumerate(lines, start=1):
        check_one_line(name, f"line {number}", path)
    check_names(lines, path, "class")
    return tuple(lines)


def check_one_line(name: str, place: str, where: object) -> None:
    """Refuse a name that some program would take for several: it holds what ends a line there."""
    if len(name.splitlines()) > 1:
        raise UserError(f"{place} holds the line break {_line_break(name)!r} within the name {name!r}", where, RENAME)


def _line_break(name: str) -> str:
    first = name.splitlines()[0]
    return name[len(first) : len(first) + 1]


def check_names(names: Sequence[str], where: object, kind: str) -> None:
    """Refuse names that serve as keys and of which some are equal: one of the two would be lost without a word."""
    if len(set(names)) == len(names):
        return
    places: dict[str, list[int]] = {}
    for number, name in enumerate(names, start=1):
        places.setdefault(name, []).append(number)
    name, numbers = next((name, numbers) for name, numbers in places.items() if len(numbers) > 1)
    shown = ", ".join(map(str, numbers[:NAMES_SHOWN])) + (", ..." if len(numbers) > NAMES_SHOWN else "")
    raise UserError(f"the {kind} {name!r} is there {len(numbers)} times (number {shown})", where, "rename all but one")
