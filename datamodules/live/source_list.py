"""Lists of sources, given as such or in a file, and the name of each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.errors import UserError
from datamodules.live.sources import live_source
from datamodules.text_files import check_one_line, read_lines, read_text

LIST_ENDINGS = frozenset({".txt", ".yaml", ".yml"})
"""Endings of files that list sources."""
RESERVED = frozenset({"health"})
"""Names of which files lie beside the results."""
FORMS = (
    "write one source a line (.txt), or in YAML a list of them or 'name: source' pairs; a source is a video file, the "
    "number of a camera, or an address such as rtsp://..."
)


class NamedSource(NamedTuple):
    """One of several sources."""

    name: str
    """Name in files and messages, different from all others; holds no password."""
    text: str
    """A number, an address or a path."""


def listed_sources(source: str | Sequence[str | int]) -> tuple[NamedSource, ...] | None:
    """Return the sources of a list, or of a file that lists some; None of what is a single source.

    A text file holds one source per line; empty lines and those that begin with # are ignored. YAML holds a list, or
    names with their sources. Sources without a name are named after host and path, or after the file. Equal names are
    numbered in the order of the list. Paths are those of the command line.

    Raises:
        UserError: there is no such file, it lists no sources, or two sources are given the same name.
    """
    if not isinstance(source, str):
        return _named(_of_list(list(source), "data.source"))
    path = Path(source)
    if "://" in source or path.suffix.lower() not in LIST_ENDINGS or path.is_dir():
        return None
    if path.suffix.lower() == ".txt":
        lines = [line.strip() for line in read_lines(path, "list of sources", FORMS)]
        return _named(_of_list([line for line in lines if line and not line.startswith("#")], path))
    content = _parsed(path)
    return _named(_of_mapping(content, path) if isinstance(content, dict) else _of_list(content, path))


Given = list[tuple[str | None, str]]
"""Names, where they are given, and sources."""


def _parsed(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(read_text(path, "list of sources", FORMS))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f" (line {mark.line + 1})"
        raise UserError(f"is no YAML{place}", path, FORMS) from None  # its text could hold a password


def _of_list(items: Any, where: object) -> Given:
    if not isinstance(items, list) or not items:
        raise UserError("lists no sources", where, FORMS)
    return [(None, _text(item, f"source {number}", where)) for number, item in enumerate(items, start=1)]


def _of_mapping(items: dict[Any, Any], where: object) -> Given:
    if not items:
        raise UserError("lists no sources", where, FORMS)
    given = [(str(name).strip(), _text(item, f"the source of {name!r}", where)) for name, item in items.items()]
    for name, _ in given:
        check_one_line(name, "a source", where)
        if not name or name.casefold() in RESERVED:
            raise UserError(f"a source cannot be called {name!r}", where, "give it another name")
    names = [name.casefold() for name, _ in given]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"two sources are called {twice!r}", where, "upper and lower case count as equal; rename one")
    return given


def _text(item: Any, which: str, where: object) -> str:
    is_one = isinstance(item, str | int) and not isinstance(item, bool) and str(item).strip()
    if not is_one:
        raise UserError(f"{which} is neither a text nor a number", where, FORMS)
    return str(item).strip()


def _named(given: Given) -> tuple[NamedSource, ...]:
    taken = {name.casefold() for name, _ in given if name} | RESERVED
    named = []
    for name, text in given:
        if name is None:
            own = own_name(text)
            numbered = (own if number == 1 else f"{own}_{number}" for number in count(1))
            name = next(each for each in numbered if each.casefold() not in taken)
            taken.add(name.casefold())
        named.append(NamedSource(name, text))
    return tuple(named)


def own_name(text: str) -> str:
    """Return what a single source of this text is called in its files."""
    live = live_source(text, stall_seconds=1.0)
    if live is not None:
        return live.name
    path = Path(text)
    return (path.resolve().name if path.is_dir() else path.stem) or "source"
