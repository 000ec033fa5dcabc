"""Rules of events as users write them: which action, how sure, how long, where, and how often."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args

import yaml

from callbacks.events.zones import PlacedBy, Polygon, polygon_of
from datamodules.errors import UserError
from datamodules.text_files import open_text

PARTS = ("zones", "rules")
"""Keys of a file of rules."""
GivenRules = str | dict[str, Any] | list[dict[str, Any]]
"""A file, the content of one, or its rules alone."""


@dataclass(frozen=True)
class Rule:
    """Condition under which one person's action is an event.

    It begins with a frame in which the action scores at least ``start_score``, and goes on while it scores at least
    ``end_score``, in the zone. It is an event from when it has lasted ``shortest_seconds``, and ends with the last
    frame in which it went on.

    Args:
        action: name of a class.
        name: name of the rule in reports; the action by default.
        start_score: least score with which it begins.
        end_score: least score with which it goes on; ``start_score`` by default. A lower one bridges single doubts.
        shortest_seconds: least duration of an event. With 0 a single frame is one.
        zone: polygon in fractions of the frame, in which the person must be; None is everywhere.
        zone_name: name of the zone.
        placed_by: the point of the person's box that must lie in the zone, ``foot`` or ``centre``.
        dead_seconds: time after an event in which this rule begins no other in the same source, for any person.
        lost_seconds: a person not found for longer has stopped. It must exceed the time between two sampled frames.
        sources: names of the sources that the rule applies to, ``*`` and ``?`` as in file names; None is all.
    """

    action: str
    name: str
    start_score: float = 0.5
    end_score: float = 0.5
    shortest_seconds: float = 0.0
    zone: Polygon | None = None
    zone_name: str | None = None
    placed_by: PlacedBy = "foot"
    dead_seconds: float = 0.0
    lost_seconds: float = 2.0
    sources: tuple[str, ...] | None = None

    def holds_for(self, source: str) -> bool:
        """Return whether the rule applies to a source."""
        return self.sources is None or any(fnmatchcase(source, pattern) for pattern in self.sources)


KEYS = tuple(field.name for field in fields(Rule) if field.name != "zone_name")


def read_rules(given: GivenRules) -> tuple[Rule, ...]:
    """Return the rules of a file or of a config.

    Raises:
        UserError: no such file, no YAML, a key that there is not, or a value that a rule cannot have.
    """
    where = "rules"
    if isinstance(given, str):
        where = "rules" if "\n" in given or given.lstrip().startswith(("{", "[")) else given
        given = _read_yaml(given if where == "rules" else Path(given))
    content = {"rules": given} if isinstance(given, Sequence) else given
    if not isinstance(content, Mapping) or not content:
        raise UserError("holds no rules", where, "write rules: and a list below it")
    _check_keys(content, PARTS, where)
    zones = _zones(content.get("zones") or {}, where)
    rows = content.get("rules")
    if not isinstance(rows, Sequence) or isinstance(rows, str) or not rows:
        raise UserError("holds no rules", where, "write rules: and a list below it")
    rules = [_rule(row, zones, f"{where}: rule {number}") for number, row in enumerate(rows, start=1)]
    names = [rule.name for rule in rules]
    if doubled := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two rules are called {doubled[0]!r}", where, "give each its own name")
    return tuple(rules)


def check_actions(rules: Sequence[Rule], class_names: Sequence[str]) -> None:
    """Refuse rules about actions that a network does not know.

    Raises:
        UserError: with the action that was perhaps meant.
    """
    for rule in rules:
        if rule.action not in class_names:
            raise UserError(
                f"the network knows no action {rule.action!r}",
                f"rule {rule.name!r}",
                _nearest(rule.action, class_names),
            )


def _read_yaml(given: str | Path) -> Any:
    try:
        if isinstance(given, str):
            return yaml.safe_load(given)
        with open_text(given, "file of rules") as file:
            return yaml.safe_load(file)
    except yaml.YAMLError as error:
        raise UserError(f"is no YAML: {error}", "rules" if isinstance(given, str) else given) from error


def _zones(given: Any, where: str) -> dict[str, Polygon]:
    if not isinstance(given, Mapping):
        raise UserError("zones are names with a polygon each", f"{where}: zones", "write name: [[x, y], ...]")
    return {str(name): _polygon(corners, f"{where}: zones.{name}") for name, corners in given.items()}


def _polygon(corners: Any, where: str) -> Polygon:
    try:
        return polygon_of(corners)
    except ValueError as error:
        raise UserError(str(error), where) from error


def _rule(row: Any, zones: Mapping[str, Polygon], where: str) -> Rule:
    if not isinstance(row, Mapping):
        raise UserError(f"must be keys and values, got {row!r}", where, f"there are {', '.join(KEYS)}")
    _check_keys(row, KEYS, where)
    action = row.get("action")
    if not isinstance(action, str) or not action:
        raise UserError("must name an action", f"{where}: action")
    values: dict[str, Any] = {"action": action, "name": str(row.get("name", action))}
    for name, top in (("start_score", 1), ("end_score", 1), *dict.fromkeys(_seconds(), None).items()):
        if row.get(name) is not None:
            values[name] = _number(row[name], top, f"{where}: {name}")
    start = values.get("start_score", Rule.start_score)
    if values.setdefault("end_score", start) > start:
        raise UserError(f"is {values['end_score']}, above start_score {start}", f"{where}: end_score", "lower it")
    zone = row.get("zone")
    if isinstance(zone, str):
        if zone not in zones:
            raise UserError(f"there is no zone {zone!r}", f"{where}: zone", _nearest(zone, zones))
        values |= {"zone": zones[zone], "zone_name": zone}
    elif zone is not None:
        values["zone"] = _polygon(zone, f"{where}: zone")
    if "placed_by" in row:
        values["placed_by"] = _choice(row["placed_by"], get_args(PlacedBy), f"{where}: placed_by")
    sources = row.get("sources")
    if sources is not None:
        names = [sources] if isinstance(sources, str) else sources
        if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
            raise UserError(f"must be a list of names, got {sources!r}", f"{where}: sources")
        values["sources"] = tuple(names)
    return Rule(**values)


def _seconds() -> list[str]:
    return [name for name in KEYS if name.endswith("_seconds")]


def _number(value: Any, top: float | None, where: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < float("inf") or (top is not None and value > top):
        raise UserError(f"must be {'a number from 0 to 1' if top else 'seconds, 0 or more'}, got {value!r}", where)
    return float(value)


def _choice(value: Any, choices: Sequence[str], where: str) -> Any:
    if value not in choices:
        close = difflib.get_close_matches(str(value), choices, 1)
        remedy = f"did you mean {close[0]}?" if close else None
        raise UserError(f"is {value!r}, none of {', '.join(choices)}", where, remedy)
    return value


def _check_keys(given: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise UserError(f"there is no key {str(key)!r}", where, _nearest(str(key), known))


def _nearest(name: str, choices: Collection[str]) -> str:
    close = difflib.get_close_matches(name, list(choices), 1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(choices) or 'none'}"
