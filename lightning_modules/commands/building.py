"""What constructors refuse while objects are built from a config, told with the key that the config has it under."""

from __future__ import annotations

import dis
import inspect
import pydoc
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from datamodules.errors import UserError

from .settings import OBJECT_KEYS, Settings

ROOMS = ("lightning_modules", "datamodules", "callbacks")
BUILDERS = ("jsonargparse", "lightning.pytorch.cli")
"""Modules that call constructors with what a config says."""
ALSO_CALLED = {"duration": "max_time"}
"""How Lightning's messages name arguments of the Trainer, where not by their own name."""

Key = tuple[str, ...]


@contextmanager
def built_from(config: Namespace, settings: Settings) -> Iterator[None]:
    """Turn what a constructor of ours refuses on purpose into a ``UserError``; a bug stays what it is.

    Args:
        config: what is built, with ``class_path`` and ``init_args``.
        settings: where its keys stand.
    """
    try:
        yield
    except Exception as error:
        refused = unwrapped(error)
        if isinstance(refused, UserError) or not is_refusal(refused):
            raise refused from None
        key = _key_of(refused, config)
        raise UserError(str(refused), settings.place(key) if key else None) from refused


@contextmanager
def trainer_built(settings: Settings) -> Iterator[None]:
    """Turn what Lightning's Trainer refuses into a ``UserError`` with the key, if the message names an argument."""
    try:
        yield
    except (ValueError, TypeError, MisconfigurationException) as error:
        if isinstance(error, UserError) or not _module(error).startswith("lightning"):
            raise
        arguments = inspect.signature(Trainer).parameters
        words = (ALSO_CALLED.get(word, word) for word in re.findall(r"[a-z]\w*", str(error)))
        named = next((word for word in words if word in arguments), None)
        raise UserError(str(error), settings.place(("trainer", named)) if named else "trainer") from error


def unwrapped(error: Exception) -> Exception:
    """Return what a constructor raised, without the errors that the parser wraps around it: they list every argument."""
    while isinstance(error.__cause__, Exception) and _module(error).startswith("jsonargparse"):
        error = error.__cause__
    return error


def is_refusal(error: Exception) -> bool:
    """Whether code of ours raised it by a ``raise`` of its own; what the interpreter raises there is a bug."""
    last = _last(error)
    if last is None or not isinstance(error, ValueError | TypeError) or not _module(error).startswith(ROOMS):
        return False
    return dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] == "RAISE_VARARGS"


def _last(error: Exception) -> TracebackType | None:
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last


def _module(error: Exception) -> str:
    """The module whose code raised an exception."""
    last = _last(error)
    return "" if last is None else last.tb_frame.f_globals.get("__name__", "")


def _key_of(error: Exception, config: Namespace) -> Key | None:
    """The key of the object whose constructor raised, and of its argument if the message begins with one."""
    frame = _constructor(error)
    if frame is None:
        return None
    built = type(frame.f_locals.get("self"))
    objects = [(key, init_args) for key, path, init_args in objects_in(config) if pydoc.locate(path) is built]
    if not objects:
        return None
    # Of several objects of one class, the one whose arguments the constructor has.
    key, init_args = max(objects, key=lambda each: _alike(each[1], frame.f_locals))
    named = next((word for word in re.findall(r"[a-z]\w*", str(error)) if word in init_args), None)
    return key if named is None else (*key, OBJECT_KEYS[1], named)


def _constructor(error: Exception) -> FrameType | None:
    """The frame of what was called with the arguments of a config."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    callers = [n for n, frame in enumerate(frames) if frame.f_globals.get("__name__", "").startswith(BUILDERS)]
    return frames[callers[-1] + 1] if callers and callers[-1] + 1 < len(frames) else None


def _alike(init_args: Namespace, local: dict[str, Any]) -> int:
    plain = {name: value for name, value in vars(init_args).items() if isinstance(value, int | float | str)}
    return sum(name in local and type(local[name]) is type(value) and local[name] == value for name, value in plain.items())


def objects_in(config: object, key: Key = ()) -> Iterator[tuple[Key, str, Namespace]]:
    """Yield every object of a config, the outer before the inner: its key, its class and its arguments."""
    if isinstance(config, Namespace):
        if isinstance(path := config.get(OBJECT_KEYS[0]), str):
            yield key, path, config.get(OBJECT_KEYS[1]) or Namespace()
        for name, value in vars(config).items():
            yield from objects_in(value, (*key, name))
    elif isinstance(config, Sequence) and not isinstance(config, str):
        for number, value in enumerate(config):
            yield from objects_in(value, (*key, str(number)))
