"""Results in json files: written whole or not at all, and read with the name of what is wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(path: str | Path, record: Mapping[str, Any]) -> None:
    """Numbers as they are, so that scores survive; folders on the way to the file are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(record, allow_nan=False), encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: str | Path, key: str, form: str) -> dict[str, Any]:
    """The record in a file of any program; it must have a dict under ``key``, whose ``form`` the error shows."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of detections")
    try:
        record = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not json: {error}") from None
    if not isinstance(record, dict) or not isinstance(record.get(key), dict):
        raise ValueError(f'{path} has no "{key}"; expected {{"{key}": {{video: [{form}]}}}}')
    return record
