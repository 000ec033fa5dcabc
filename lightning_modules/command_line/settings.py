"""Places of all settings of a command line: an argument, or a file and its line."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from datamodules.errors import UsageError

CONFIG = ("--config", "-c")
FILE_ENDINGS = (".yaml", ".yml")
OBJECT_KEYS = ("class_path", "init_args", "dict_kwargs")
"""Keys of the mapping that describes an object."""
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DEEPEST = 16
"""Files within files; more is a file that names itself."""


class Setting(NamedTuple):
    """One key where it is set."""

    key: tuple[str, ...]
    """Parts from the outermost: ``("model", "init_args", "network")``."""
    value: str | None
    """The text of a scalar, None for a mapping or a list."""
    file: str = ""
    """File as it is shown; empty for the command line."""
    line: int = 0

    def __str__(self) -> str:
        dotted = ".".join(self.key)
        return f"{self.file}:{self.line}: {dotted}" if self.file else f"--{dotted}"


class Settings:
    """All settings of a command line, in the order in which they count: the last of a key holds.

    Raises:
        UsageError: a config is absent, cannot be read, is no YAML, has a key twice, or an unknown key beside
            ``class_path``; or an argument precedes the config that sets it too.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._settings = list(_read_arguments(arguments))
        self._check_order()

    def _check_order(self) -> None:
        """Refuse an argument that a file after it sets again: the file would hold."""
        given: dict[tuple[str, ...], Setting] = {}
        for setting in self._settings:
            key = without_init_args(setting.key)
            if not setting.file:
                given[key] = setting
            elif key in given and setting.value is not None:
                place = f"{setting.file}:{setting.line}"
                raise UsageError(f"{place}, which comes after it, sets it again", given[key], "put --config first")

    def find(self, key: Sequence[str], value: str | None = None) -> Setting | None:
        """Return the setting of a key, with or without ``init_args`` between, preferably one with this value."""
        short = without_init_args(key)
        found = [
            setting
            for setting in self._settings
            if without_init_args(setting.key) == short and setting.key[-1] not in OBJECT_KEYS[1:]
        ]
        of_value = [setting for setting in found if value is not None and setting.value == value]
        return (of_value or found or [None])[-1]

    @property
    def last_without_value(self) -> Setting | None:
        """The last key of the command line that stands there alone."""
        alone = [setting for setting in self._settings if not setting.file and setting.value is None]
        return alone[-1] if alone else None

    def place(self, key: Sequence[str], value: str | None = None) -> str:
        """Return where a key stands; where it does not, the key after the place of what it belongs to."""
        for length in range(len(key), 0, -1):
            if setting := self.find(key[:length], value if length == len(key) else None):
                rest = "".join(f".{part}" for part in key[length:])
                return f"{setting}{rest}"
        return ".".join(key)


def without_init_args(key: Sequence[str]) -> tuple[str, ...]:
    """Return the key in its short form: no ``init_args``, no numbers of list entries, no ``+``.

    >>> without_init_args(("trainer", "callbacks", "0", "init_args", "folder"))
    ('trainer', 'callbacks', 'folder')
    """
    return tuple(part.rstrip("+") for part in key if part not in OBJECT_KEYS[1:] and not part.isdigit())


def shown(file: Path) -> str:
    """Return a path as it is shortest to read: relative where it lies below the working directory."""
    relative = os.path.relpath(file)
    return str(file) if relative.startswith("..") else relative


def _read_arguments(arguments: Sequence[str]) -> Iterator[Setting]:
    waiting = ""
    for argument in arguments:
        if argument.startswith("--") or argument in CONFIG:
            if waiting:
                yield Setting(tuple(waiting[2:].split(".")), None)
            name, sign, value = argument.partition("=")
            waiting = "" if sign else name
            if not sign:
                continue
        else:
            name, value, waiting = waiting, argument, ""
        if name in CONFIG:
            if not value.lstrip().startswith("{"):  # JSON instead of a file
                yield from _read_config(Path(value))
        elif name:
            yield from _read_value(tuple(name[2:].rstrip("+").split(".")), value, "", 0, Path(), 0)
    if waiting.startswith("--"):
        yield Setting(tuple(waiting[2:].split(".")), None)


def _read_config(file: Path) -> Iterator[Setting]:
    if not file.exists():
        raise UsageError("there is no such config", where=shown(file), remedy=_nearest_file(file))
    node = _compose(file)
    if not isinstance(node, yaml.MappingNode):
        what = "is empty" if node is None else "holds no settings"
        raise UsageError(what, where=shown(file), remedy="write key: value, as the files in configs do")
    yield from _read_node((), node, file, 0)


def _nearest_file(file: Path) -> str | None:
    beside = [path.name for path in file.parent.glob("*") if path.suffix in FILE_ENDINGS]
    close = difflib.get_close_matches(file.name, beside, n=1)
    return f"did you mean {shown(file.parent / close[0])}?" if close else None


def _compose(file: Path) -> yaml.Node | None:
    """Return the file's YAML as nodes, which know their lines."""
    try:
        return yaml.compose(file.read_text(encoding="utf-8"), LOADER)
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=shown(file)) from error
    except UnicodeDecodeError as error:
        raise UsageError("is not text in UTF-8", where=shown(file), remedy="save it in this encoding") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        problem = " ".join(filter(None, (error.context, error.problem)))
        raise UsageError(f"is no YAML: {problem}", where=f"{shown(file)}{line}") from error
    except yaml.YAMLError as error:
        raise UsageError(f"is no YAML: {error}", where=shown(file)) from error


def _read_node(key: tuple[str, ...], node: yaml.Node, file: Path, depth: int) -> Iterator[Setting]:
    """Yield what is below a node; a file named there is read in its place."""
    if isinstance(node, yaml.SequenceNode):
        for number, entry in enumerate(node.value):
            yield from _read_entry((*key, str(number)), entry, entry, file, depth)
    elif isinstance(node, yaml.MappingNode):
        _check_mapping(key, node, file)
        for name, entry in node.value:
            yield from _read_entry((*key, str(name.value)), name, entry, file, depth)


def _read_entry(key: tuple[str, ...], name: yaml.Node, value: yaml.Node, file: Path, depth: int) -> Iterator[Setting]:
    line = name.start_mark.line + 1
    if isinstance(value, yaml.ScalarNode):
        yield from _read_value(key, value.value, shown(file), line, file.parent, depth)
    else:
        yield Setting(key, None, shown(file), line)
        yield from _read_node(key, value, file, depth)


def _read_value(key: tuple[str, ...], value: str, file: str, line: int, folder: Path, depth: int) -> Iterator[Setting]:
    yield Setting(key, value, file, line)
    named = folder / value if value.endswith(FILE_ENDINGS) else None
    if named is not None and named.is_file() and depth < DEEPEST:
        node = _compose(named)
        if node is not None:
            yield from _read_node(key, node, named, depth + 1)


def _check_mapping(key: tuple[str, ...], node: yaml.MappingNode, file: Path) -> None:
    """Refuse a key that stands twice, of which YAML silently takes the last, and what no object has."""
    names: set[str] = set()
    for name, _ in node.value:
        place = Setting((*key, str(name.value)), None, shown(file), name.start_mark.line + 1)
        if name.value in names:
            raise UsageError("stands here a second time", where=place, remedy="delete one of them")
        names.add(name.value)
    for name, _ in node.value if OBJECT_KEYS[0] in names else ():
        if name.value not in OBJECT_KEYS:
            close = difflib.get_close_matches(str(name.value), OBJECT_KEYS, n=1)
            raise UsageError(
                "beside class_path only init_args may stand",
                where=Setting((*key, str(name.value)), None, shown(file), name.start_mark.line + 1),
                remedy=f"did you mean {close[0]}?" if close else "put it below init_args",
            )
