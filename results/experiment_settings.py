"""What a run depends on, so that a change of it is noticed.

That is what the configs and overrides of its command add up to: neither names of files, comments nor layout, and not
which of two layers says a value. One that moves from a config to an override, or is repeated there, changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from .experiment_list import Stage

DEFAULTS = Path("configs/trainer/defaults.yaml")
"""What main.py reads before any config."""


def stage_settings(stage: Stage, seed: int, needs: dict[str, str]) -> dict[str, Any]:
    """Everything that a list and its configs say about one command.

    Neither code nor the content of weights and videos is part of it; a table names the commits of its runs instead.

    Args:
        needs: argument to the fingerprint of the run whose checkpoint it is given.
    """
    settings = resolved(str(DEFAULTS), Path()) if DEFAULTS.is_file() else {}
    settings = merged(settings, resolved(stage.config, Path()))
    for argument, value in stage.overrides.items():
        settings = overridden(settings, argument.split("."), resolved(value, Path()), from_file=isinstance(value, str))
    return {"settings": settings, "needs": needs, "seed": seed}


def merged(below: Any, above: Any) -> Any:
    """The upper value; of two mappings, the keys of both."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: merged(below.get(key), value) for key, value in above.items()}
    return above


def overridden(settings: Any, place: list[str], value: Any, *, from_file: bool) -> Any:
    """Settings with a value at a place; an object from a file says all of it, as it does for main.py."""
    if not place:
        return value if from_file and isinstance(value, dict) and "class_path" in value else merged(settings, value)
    key, *rest = place
    known = settings if isinstance(settings, dict) else {}
    return known | {key: overridden(known.get(key), rest, value, from_file=from_file)}


def resolved(value: Any, folder: Path) -> Any:
    """A value with the content of every YAML file that it names, relative to ``folder`` or to the working directory."""
    if isinstance(value, dict):
        return {str(key): resolved(part, folder) for key, part in value.items()}
    if isinstance(value, list):
        return [resolved(part, folder) for part in value]
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        for file in (folder / value, Path(value)):
            if file.is_file():
                return resolved(yaml.safe_load(file.read_text()), file.parent)
    return value


def as_json(settings: Any) -> Any:
    """The same as it is when read from a file."""
    return json.loads(json.dumps(settings, sort_keys=True, default=str))


def fingerprint(settings: Any) -> str:
    return hashlib.sha256(json.dumps(as_json(settings), sort_keys=True).encode()).hexdigest()[:12]


def changes(old: Any, new: Any, place: str = "") -> list[str]:
    """One line for each value that differs: ``settings / trainer / max_steps: 600 -> 800``."""
    old, new = as_json(old), as_json(new)
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        inner = ((f"{place} / {key}" if place else key, old.get(key), new.get(key)) for key in keys)
        return [line for name, before, after in inner for line in changes(before, after, name)]
    return [] if old == new else [f"{place}: {brief(old)} -> {brief(new)}"]


def brief(value: Any, longest: int = 60) -> str:
    text = json.dumps(value)
    return text if len(text) <= longest else f"{text[:longest]} ..."
