"""A file given for an object on the command line says all of it, whatever a config has said of the object before."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from .classes import locate

SUFFIXES = (".yaml", ".yml")


def with_whole_files(arguments: Sequence[str]) -> list[str]:
    """Arguments with files of objects (``class_path``, ``init_args``) replaced by these objects, defaults included.

    jsonargparse lays ``--model.init_args.teacher other.yaml`` over the teacher of the config where both are of a class:
    what the file leaves out stays as the config has it. With the defaults written out nothing is left to stay. Single
    keys that come after the file still change it. Files for ``--config`` are overlays and stay as they are.
    """
    replaced, previous = [], ""
    for argument in arguments:
        key, sign, value = argument.partition("=") if argument.startswith("--") else (previous, "", argument)
        whole = None if key in ("", "--config") or key.endswith("+") else whole_file(value)
        replaced.append(argument if whole is None else f"{key}={whole}" if sign else whole)
        previous = "" if sign or not argument.startswith("--") else argument
    return replaced


def whole_file(value: str) -> str | None:
    """The object that a YAML file describes as JSON with its defaults, None for anything else."""
    file = Path(value)
    if file.suffix not in SUFFIXES or not file.is_file():
        return None
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    return json.dumps(completed(content, file.parent)) if is_object(content) else None


def is_object(content: Any) -> bool:
    """Whether it names a class that can be imported; the parser tells what is wrong with others."""
    return isinstance(content, dict) and locate(str(content.get("class_path"))) is not None


def completed(content: Any, folder: Path) -> Any:
    """With the defaults of what it leaves out, inside objects too; files, relative to ``folder``, are read."""
    if isinstance(content, str) and content.endswith(SUFFIXES) and (folder / content).is_file():
        file = folder / content
        inner = yaml.safe_load(file.read_text(encoding="utf-8"))
        return completed(inner, file.parent) if is_object(inner) else str(file.resolve())
    if isinstance(content, list):
        return [completed(part, folder) for part in content]
    if not isinstance(content, dict):
        return content
    parts = {key: completed(part, folder) for key, part in content.items()}
    if is_object(content):
        parts["init_args"] = defaults(content["class_path"]) | (parts.get("init_args") or {})
    return parts


def defaults(class_path: str) -> dict[str, Any]:
    """Of a class's arguments, those that JSON can hold; what has no default is not among them."""
    kind, parser = locate(class_path), ArgumentParser()
    parser.add_class_arguments(kind, "object", fail_untyped=False)
    found = (parser.get_defaults().get("object") or Namespace()).as_dict()
    parameters = inspect.signature(kind).parameters.items()
    required = {name for name, parameter in parameters if parameter.default is inspect.Parameter.empty}
    return {key: value for key, value in found.items() if key not in required and in_json(value)}


def in_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
