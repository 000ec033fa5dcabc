"""A file given for an object on the command line replaces all that a config has set for it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from .classes import locate

SUFFIXES = (".yaml", ".yml")


def with_whole_files(arguments: Sequence[str]) -> list[str]:
    """Arguments with files of objects (``class_path``, ``init_args``) replaced by these objects, defaults included.

    jsonargparse merges ``--model.init_args.teacher other.yaml`` with the teacher of the config where both are of a
    class. Settings that the file leaves out would stay those of the config. With the defaults written out nothing is
    left to stay. Single keys that come after the file still change it. Files for ``--config`` are overlays and stay as
    they are.
    """
    replaced, previous = [], ""
    for argument in arguments:
        key, sign, value = argument.partition("=") if argument.startswith("--") else (previous, "", argument)
        whole = None if key in ("", "--config") or key.endswith("+") else whole_file(value)
        replaced.append(argument if whole is None else f"{key}={whole}" if sign else whole)
        previous = "" if sign or not argument.startswith("--") else argument
    return replaced


def whole_file(value: str) -> str | None:
    """Return the object that a YAML file describes as JSON with its defaults, None for anything else."""
    file = Path(value)
    if file.suffix not in SUFFIXES or not file.is_file():
        return None
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    return json.dumps(completed(content, file)) if is_object(content) else None


def is_object(content: Any) -> bool:
    """Return whether it names a class that can be imported; the parser tells what is wrong with others."""
    return isinstance(content, dict) and locate(str(content.get("class_path"))) is not None


def completed(content: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return the object of ``file`` with the defaults of what it leaves out, inside objects too.

    Files that it names, relative to its own folder, are read. What has no default and is not given is left out, for the
    parser to ask for, or for whoever calls the object to give.
    """
    kind, given = locate(content["class_path"]), content.get("init_args") or {}
    parameters = inspect.signature(kind).parameters.values()
    absent = {p.name for p in parameters if p.default is inspect.Parameter.empty and p.name not in given}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "object", fail_untyped=False, skip=absent, sub_configs=True)
    try:
        with chdir(file.parent):  # so that the parser finds the files that the object names
            arguments = parser.parse_object({"object": given}).object
            written = json.loads(parser.dump(Namespace(object=arguments), format="json", skip_unset=False))["object"]
    except (ArgumentError, TypeError, ValueError):
        return content  # the parser reports the error and its place
    return {"class_path": content["class_path"], "init_args": written}
