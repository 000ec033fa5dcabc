"""Errors of constructors that are called with what a config says, reported with the key of the config."""

from __future__ import annotations

import dis
import inspect
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from datamodules.errors import UserError

from .causes import last_of, raised_by, unwrapped
from .classes import locate
from .settings import OBJECT_KEYS, Settings

ROOMS = ("lightning_modules", "datamodules", "callbacks")
BUILDERS = ("jsonargparse", "lightning.pytorch.cli")
"""Modules that call constructors with what a config says."""
PACKAGES = {"cv2": "opencv-contrib-python-headless", "yaml": "pyyaml", "PIL": "pillow"}
"""Packages that are imported by another name than pip has them under."""
ALSO_CALLED = {"duration": "max_time"}
"""Names in Lightning's messages of arguments that the Trainer calls otherwise."""

Key = tuple[str, ...]


@contextmanager
def built_from(config: Namespace, settings: Settings) -> Iterator[None]:
    """Turn an intended refusal by one of our constructors into a ``UserError``; a bug keeps its type.

    Args:
        config: what is built, with ``class_path`` and ``init_args``.
        settings: where its keys stand.
    """
    try:
        yield
    except Exception as error:
        refused = unwrapped(error)
        package = missing_package(refused)
        names_its_place = isinstance(refused, UserError) and refused.where is not None
        if names_its_place or not (package or is_refusal(refused)):
            raise refused from None
        key = _key_of(refused, config)
        where = settings.place(key) if key else None
        if isinstance(refused, UserError):
            raise type(refused)(refused.problem, where, refused.remedy) from refused
        if package:
            raise UserError(f"{package} is not installed", where, f"pip install {package}") from refused
        raise UserError(str(refused), where) from refused


@contextmanager
def trainer_built(settings: Settings) -> Iterator[None]:
    """Turn what Lightning's Trainer refuses while it is made into a ``UserError``."""
    try:
        yield
    except (ValueError, TypeError, MisconfigurationException) as error:
        if isinstance(error, UserError) or not raised_by(error).startswith("lightning"):
            raise
        raise _of_trainer(error, settings, r"[a-z]\w*") from error


@contextmanager
def trainer_running(settings: Settings) -> Iterator[None]:
    """Turn what Lightning refuses while it runs into a ``UserError``, if it says which of the Trainer's arguments."""
    try:
        yield
    except (ValueError, MisconfigurationException) as error:
        refused = None
        if not isinstance(error, UserError) and raised_by(error).startswith("lightning"):
            refused = _of_trainer(error, settings, r"(?<=`)[a-z]\w*|(?<=`Trainer\()[a-z]\w*")
        if refused is None or refused.where is None:
            raise
        raise refused from error


def _of_trainer(error: Exception, settings: Settings, form: str) -> UserError:
    """Return the error with the key of the first argument that its message names; ``form`` matches its words."""
    arguments = inspect.signature(Trainer).parameters
    words = (ALSO_CALLED.get(word, word) for word in re.findall(form, str(error)))
    named = next((word for word in words if word in arguments), None)
    said = re.sub(r"<(?:\w+\.)*(\w+) object at \w+>", r"\1", str(error))
    return UserError(said, settings.place(("trainer", named)) if named else None)


def is_refusal(error: Exception) -> bool:
    """Return whether our code, or any constructor itself, refuses something; or Lightning does."""
    if isinstance(error, MisconfigurationException):
        return True
    if not isinstance(error, ValueError | TypeError) or not was_raised(error):
        return False
    return raised_by(error).startswith(ROOMS) or last_of(error).tb_frame.f_code.co_name == "__init__"


def was_raised(error: Exception) -> bool:
    """Return whether a ``raise`` statement made it; what the interpreter raises by itself is a bug."""
    last = last_of(error)
    return last is not None and dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] == "RAISE_VARARGS"


def _key_of(error: Exception, config: Namespace) -> Key | None:
    """The key of the object whose constructor raised, and of its argument if the message names one or its file."""
    frame = _constructor(error)
    if frame is None:
        return None
    built = type(frame.f_locals.get("self"))
    arguments = inspect.signature(built).parameters.keys()
    objects = [
        (key, init_args)
        for key, path, init_args in objects_in(config)
        if (locate(path) is built if path else _names_in(init_args) == set(arguments))
    ]
    if not objects:
        return None
    # Of several objects of one class, the one whose arguments the constructor has.
    key, init_args = max(objects, key=lambda each: _alike(each[1], frame.f_locals))
    files = [name for name, value in vars(init_args).items() if isinstance(value, str) and "/" in value]
    words = [name for name in files if getattr(init_args, name) in str(error)] + re.findall(r"[a-z]\w*", str(error))
    named = next((word for word in words if word in init_args), None)
    return key if named is None else (*key, OBJECT_KEYS[1], named)


def _names_in(init_args: Namespace) -> set[str]:
    """Return the names of arguments, without what the parser keeps beside them of a file."""
    return {name for name in vars(init_args) if not name.startswith("__")}


def _constructor(error: Exception) -> FrameType | None:
    """The frame of what was called with the arguments of a config."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    callers = [n for n, frame in enumerate(frames) if frame.f_globals.get("__name__", "").startswith(BUILDERS)]
    return frames[callers[-1] + 1] if callers and callers[-1] + 1 < len(frames) else None


def _alike(init_args: Namespace, local: dict[str, Any]) -> int:
    """Return the number of plain arguments that have the same value in both."""
    plain = {name: value for name, value in vars(init_args).items() if isinstance(value, int | float | str)}
    return sum(type(local.get(name)) is type(value) and local[name] == value for name, value in plain.items())


def objects_in(config: object, key: Key = ()) -> Iterator[tuple[Key, str, Namespace]]:
    """Yield every object of a config, the outer before the inner: its key, its class and its arguments.

    Those whose class the config need not name have an empty one.
    """
    if isinstance(config, Namespace):
        path = config.get(OBJECT_KEYS[0]) or ""
        yield key, path, (config.get(OBJECT_KEYS[1]) or Namespace()) if path else config
        for name, value in vars(config).items():
            yield from objects_in(value, (*key, name))
    elif isinstance(config, Sequence) and not isinstance(config, str):
        for number, value in enumerate(config):
            yield from objects_in(value, (*key, str(number)))


def missing_package(error: Exception) -> str | None:
    """Return the package that pip must install, None where the error is another or a module of ours is meant."""
    if not isinstance(error, ImportError):
        return None
    if asked := re.search(r"pip install (?:-U )?'?\"?([\w.\-]+)", str(error)):
        return asked[1]
    name = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or not name or name in (*ROOMS, "main", "results"):
        return None
    return PACKAGES.get(name, name)
