"""Results in json files: written whole or not at all, and read with the name of what is wrong."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.errors import UserError
from datamodules.files import write_whole
from datamodules.text_files import read_json as read_any_json

NAMES_SHOWN = 5


def write_json(path: str | Path, record: Mapping[str, Any]) -> None:
    """Write numbers as they are, so that scores survive; folders on the way to the file are made."""
    write_whole(path, json.dumps(record, allow_nan=False))


def read_json(path: str | Path, key: str, form: str) -> dict[str, Any]:
    """Return the record in a file of any program; it must have a dict under ``key``, whose ``form`` the error shows.

    Raises:
        UserError: there is no such file, it is no json, a video is there twice, or ``key`` is missing.
    """
    record = read_any_json(path, "file of detections")
    if not isinstance(record, dict) or not isinstance(record.get(key), dict):
        raise UserError(f'has no "{key}"; expected {{"{key}": {{video: [{form}]}}}}', path)
    return record


def report_unknown_classes(path: str | Path, labels: Sequence[str], class_names: Sequence[str]) -> None:
    """Warn of the detections that are left out because their class is not among the names.

    Args:
        path: the file.
        labels: the class of each of its detections.

    Raises:
        UserError: no class is known.
    """
    known = set(class_names)
    unknown = [label for label in labels if label not in known]
    if not unknown:
        return
    names = sorted(set(unknown))
    if len(unknown) == len(labels):
        ours, theirs = (", ".join(few[:3]) for few in (class_names, names))
        raise UserError(f"names none of the {len(class_names)} classes ({ours} ...) but {theirs}", path)
    warnings.warn(
        f"{path}: {len(unknown)} of {len(labels)} detections are left out: {len(names)} class names are not among the "
        f"data's ({_some(names)})",
        stacklevel=3,
    )


def report_absent_videos(path: str | Path | None, absent: Sequence[str], truth: Collection[str]) -> None:
    """Warn of the videos of the ground truth that a file says nothing about."""
    if absent:
        place = "" if path is None else f"{path}: "
        warnings.warn(
            f"{place}{len(absent)} of {len(truth)} videos of the ground truth are not in the file and count as missed: "
            f"{_some(absent)}",
            stacklevel=3,
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
