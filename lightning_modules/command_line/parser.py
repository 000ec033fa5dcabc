"""A parser whose complaints are one line: the key, where it stands, what is wrong, and the nearest that is right."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from datamodules.errors import UsageError

from .causes import causes
from .classes import known_classes
from .command_help import HELP, beginning, most_used_first
from .settings import FILE_ENDINGS, OBJECT_KEYS, Settings

CLOSE = 0.6
SHOWN = 12
"""Number of keys or choices that are listed where none is close."""
NO_SETTINGS = ("help", "print_config", "print_shtab")
NO_OBJECT = "name a class or a YAML file; to predict on a video leave --config out and give --weights FILE"
UNKNOWN_KEY = re.compile(r"(?:Group '(?P<group>[^']+)'|.*?)(?: does not accept option|Option) ?'(?P<key>[^']+)'")


class OnlookerParser(LightningArgumentParser):
    """Lightning's parser, without usage text and without abbreviated keys, which hide misspelt ones."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, allow_abbrev=False)
        self.settings = Settings(())
        """Settings of the command line that is being read."""

    def parse_args(self, args: Sequence[str] | None = None, *others: Any, **settings: Any) -> Namespace:  # type: ignore[override]
        """Parse as jsonargparse does; a ``null`` within an object's settings stays one.

        It hands ``--data.frames.cache null`` on to the object's parser as the text ``--frames.cache=None``.
        """
        if args is not None and not self.exit_on_error:  # the parser of an object
            args = [re.sub(r"=None$", "=null", argument) for argument in args]
        return super().parse_args(args, *others, **settings)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what is wrong as a ``UsageError``.

        Parsers of nested objects raise what their parents expect, with themselves on it: they know the right keys.
        """
        if self.exit_on_error:
            raise Complaint(self, message, ex).as_usage_error() from ex
        try:
            super().error(message, ex)
        except argparse.ArgumentError as error:
            error.parser = self  # type: ignore[attr-defined]
            raise

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """Begin with the purpose and an example; list the most used arguments first."""
        about = HELP.get("" if self._subcommands_action else self.prog.rpartition(" ")[2])
        if about is None:  # of an object, such as --model.help
            return super().format_help(formatter)
        for command in self._subcommands_action._choices_actions if self._subcommands_action else ():
            command.help = HELP[command.dest].purpose.partition("\n")[0]
        with most_used_first(self, about, getattr(self, "_default_config_files_group", None)):
            return f"{beginning(about)}\n{super().format_help(formatter)}"

    @property
    def commands(self) -> list[str]:
        return list(self._subcommands_action.choices) if self._subcommands_action else []

    @property
    def keys(self) -> list[str]:
        """Return all keys that this parser accepts, objects as a whole."""
        return [action.dest for action in self._actions if action.dest.rpartition(".")[2] not in NO_SETTINGS]


class Complaint:
    """Complaint of jsonargparse, taken from its chain of exceptions, from the whole to the part.

    Args:
        parser: the one that complains. message, error: its message and what raised it.
    """

    def __init__(self, parser: OnlookerParser, message: str, error: Exception | None) -> None:
        self.settings = parser.settings
        self.parser: OnlookerParser = getattr(error, "subcommand_parser", None) or parser
        self.message, self.chain = message, list(causes(error))
        self.key: tuple[str, ...] = ()
        for link in self.chain:
            self.parser = getattr(link, "parser", self.parser)
            if not isinstance(link, argparse.ArgumentError) and (key := re.match(r'Parser key "([^"]+)"', str(link))):
                self.key += tuple(key[1].split("."))
        self.last: Exception | None = self.chain[-1] if self.chain else None
        union = [link for link in self.chain if str(link).startswith("Does not validate against any of the Union")]
        # The last union is the expected type, unless the error lies inside an object that the value may be.
        inside = self.chain[self.chain.index(union[-1]) :] if union else []
        is_inside = any(re.match(r"Problem with|Parser key", str(link)) for link in inside)
        self.union = None if is_inside or not union else str(union[-1])

    def as_usage_error(self) -> UsageError:
        """Say it in one line."""
        text = str(self.last if self.last is not None else self.message)
        if missing := re.match(r"the following arguments are required: (.*)", text):
            return self._missing(missing[1].split(", "))
        if unknown := re.match(r"unrecognized arguments: (\S+)", text):
            return self._unrecognised(unknown[1])
        if "is not accepted before subcommand" in text:
            return UsageError("settings stand before the command", remedy="write main.py COMMAND --config FILE ...")
        if text.startswith('expected "subcommand" to be one of') and "not provided" in text:
            commands = ", ".join(self.parser.commands)
            return UsageError(f"no command is given, one of {commands}", remedy="main.py --help explains them")
        if isinstance(self.last, KeyError) and (unknown := UNKNOWN_KEY.match(text)):
            full = ".".join(filter(None, (unknown["group"], unknown["key"])))
            return self._unknown_key((*self.key, *full.split(".")))
        if choice := re.match(r"argument (\S+): invalid choice: '([^']*)' \(choose from (.*)\)", text):
            return self._choice(choice[1], choice[2], re.findall(r"'([^']*)'", choice[3]))
        if "expected one argument" in text:
            return UsageError("has no value", where=self._last_without_value(), remedy="write --key value")
        return self._value(text)

    def _missing(self, keys: Sequence[str]) -> UsageError:
        commands = self.parser.commands
        names = [key.partition(".")[2] if key.partition(".")[0] in commands else key for key in keys]
        if {"model", "data"} & set(names) and not self.key:
            return UsageError("there are no model and no data", remedy="give --config with one of the files in configs")
        owner = self._class_name()
        place = f"{self.settings.place(self.key)}." if self.key else "--"
        return UsageError(f"must be given{f' to {owner}' if owner else ''}", where=place + ", ".join(names))

    def _unrecognised(self, argument: str) -> UsageError:
        name = argument.partition("=")[0]
        if not name.startswith("--"):
            return UsageError(f"{name} stands alone", remedy="write settings as --key value")
        return self._unknown_key((*self.key, *name[2:].split(".")))

    def _unknown_key(self, key: tuple[str, ...]) -> UsageError:
        owner = self._class_name()
        known = self.parser.keys
        setting = self.settings.find(key)
        if close := nearest(key[len(self.key) :], known):
            dashes = "--" if setting and not setting.file and not self.key else ""
            remedy = f"did you mean {dashes}{close}?"
        else:
            own = [name for name in known if "." not in name]
            remedy = f"there are {', '.join(own[:SHOWN])}{', ...' if len(own) > SHOWN else ''}"
        owner = owner or self.parser.prog.rpartition(" ")[2]
        return UsageError(f"{owner} has no such key", self.settings.place(key), remedy)

    def _class_path(self) -> str:
        """The class of the innermost object that the complaint is about."""
        form = r"(?:Problem with given class_path |Type typing\.Callable.*class_path=)'([^']+)'"
        found = [re.match(form, str(link), flags=re.DOTALL) for link in self.chain]
        paths = [match[1] for match in found if match]
        return paths[-1] if paths else ""

    def _class_name(self) -> str:
        return self._class_path().rpartition(".")[2]

    def _choice(self, where: str, value: str, choices: Sequence[str]) -> UsageError:
        where = "command" if where == "subcommand" else where
        return UsageError(f"{value!r} is none of {', '.join(choices)}", where, close_to(value, choices))

    def _last_without_value(self) -> str | None:
        return str(setting) if (setting := self.settings.last_without_value) else None

    def _value(self, text: str) -> UsageError:
        """A value of the wrong type, or a class that is not there."""
        got = re.search(r"(?:Got value|Given value): (.*)", self.union or text, flags=re.DOTALL)
        value = got[1].strip() if got else None
        if nested := re.match(r"NestedArg\(key='[^']*', val=(.*)\)$", value or "", flags=re.DOTALL):
            value = nested[1].strip("'")
        if isinstance(self.last, AttributeError | ImportError):
            value = self._class_path()
        of_class = self.settings.find((*self.key, OBJECT_KEYS[0]), value)
        setting = of_class if of_class and of_class.value == value else self.settings.find(self.key, value)
        where = str(setting) if setting else self.settings.place(self.key, value) or None
        given = value if value == self._class_path() else (setting.value if setting else None) or value
        if given and given.endswith(FILE_ENDINGS) and "class_path" in self.message + text:
            return UsageError(f"there is no file {given} that describes an object", where)
        if isinstance(self.last, UnicodeDecodeError):  # a film, where an object is wanted
            return UsageError(f"{given or 'the file'} is no text, so it describes no object", where, NO_OBJECT)
        if problem := self._class_problem(text, given):
            return UsageError(problem[0], where, problem[1])
        if self.union or "Expected a " in text:
            of_union = re.search(r"Subtypes: \[(.*)\]\n", self.union or "")
            types = of_union or re.search(r"Expected an? (.*?)(?:\. Got|$)", text)
            names, choices = wanted(types[1] if types else "")
            if choices and given:
                names = [*(name for name in names if name != "null"), *choices]
                return UsageError(f"is {given!r}, none of {', '.join(names)}", where, close_to(given, choices))
            return UsageError(f"must be {' or '.join(names)}" + (f", got {shortened(given)}" if given else ""), where)
        line = " ".join(text.split())
        return UsageError(line, where if where and where not in line else None)

    def _class_problem(self, text: str, given: str | None) -> tuple[str, str | None] | None:
        """Return the fault in the name of a class, and the way out."""
        if isinstance(self.last, AttributeError) and self.last.name:
            there = [name for name in dir(self.last.obj) if not name.startswith("_")]
            module = getattr(self.last.obj, "__name__", "")
            return f"{module} has no {self.last.name}", close_to(self.last.name, there)
        if isinstance(self.last, ModuleNotFoundError) and self.last.name:
            package = self.last.name.partition(".")[0]
            if package in sys.modules:
                return f"there is no module {self.last.name}", close_to(self.last.name, list(sys.modules))
            return f"{package} is not installed", f"pip install {package}"
        if name := re.search(r"(?:Expected a dot import path string|Unexpected import path format): (.*)", text):
            close = close_to(name[1], sorted(known_classes()))
            return f"there is no class {shortened(name[1])}", close or "write it as module.Class"
        if wrong := re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", text):
            return f"{wrong[1]} is no {wrong[2]}", None
        return None


def nearest(key: Sequence[str], known: Iterable[str]) -> str | None:
    """Return the known key that a dotted one is most like, part by part; what lies below an object is kept."""
    known = [tuple(name.split(".")) for name in known]
    if len(key) == 1 and not difflib.get_close_matches(key[0], [name[0] for name in known], 1, CLOSE):
        # The name of a nested key, without its parents.
        return next((".".join(name) for name in known if name[-1] == key[0]), None)
    result: list[str] = []
    for depth, part in enumerate(key):
        here = sorted({name[depth] for name in known if len(name) > depth and list(name[:depth]) == result})
        if not here:
            break
        match = [part] if part in here else difflib.get_close_matches(part, [*here, *OBJECT_KEYS[:2]], 1, CLOSE)
        if not match:
            return None
        result.append(match[0])
    return ".".join([*result, *key[len(result) :]])


def close_to(name: str, choices: Sequence[str]) -> str | None:
    """Return a question with the choice that a name is most like."""
    close = difflib.get_close_matches(name, choices, 1, CLOSE)
    close += [choice for choice in choices if choice.lower().startswith(name.lower())]
    return f"did you mean {close[0]}?" if close else None


def shortened(value: str, most: int = 60) -> str:
    """Return a value on one line, as it is quoted."""
    value = " ".join(value.split())
    return repr(value if len(value) <= most else f"{value[: most - 3]}...")


PLAIN = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "Amount": "a whole number of batches or a share of them",
}


def wanted(types: str) -> tuple[list[str], list[str]]:
    """Return what jsonargparse's list of types means: kinds of values, and the choices of literals.

    >>> wanted("<class 'int'>, typing.Literal['a', 'b'], dict[int, float], <class 'NoneType'>")
    (['a whole number', 'a mapping (dict[int, float])', 'null'], ['a', 'b'])
    """
    kinds, choices = [], []
    for part in re.findall(r"(?:<class '[^']+'>|[\w.]+(?:\[(?:[^\[\]]|\[[^\]]*\])*\])?)", types):
        name = re.sub(r"<class '([^']+)'>", r"\1", part)
        if name.startswith("typing.Literal"):
            choices += [choice.strip("' ") for choice in name.partition("[")[2].rstrip("]").split(",")]
            continue
        base = name.partition("[")[0].rpartition(".")[2] if "[" in name else name.rpartition(".")[2]
        plain = PLAIN.get(base)
        short = re.sub(r"[a-zA-Z_][\w]*\.", "", name)
        kinds.append(f"{plain} ({short})" if plain and "[" in name else plain or f"a {short}")
    if PLAIN["float"] in kinds:
        kinds = [kind for kind in kinds if kind != PLAIN["int"]]
    return list(dict.fromkeys(kinds)), list(dict.fromkeys(choices))
