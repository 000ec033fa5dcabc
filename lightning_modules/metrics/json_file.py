"""Results in json files: written whole or not at all, and read with the name of what is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.errors import UserError
from datamodules.files import write_whole


def write_json(path: str | Path, record: Mapping[str, Any]) -> None:
    """Numbers as they are, so that scores survive; folders on the way to the file are made."""
    write_whole(path, json.dumps(record, allow_nan=False))


def read_json(path: str | Path, key: str, form: str) -> dict[str, Any]:
    """The record in a file of any program; it must have a dict under ``key``, whose ``form`` the error shows."""
    path = Path(path)
    if not path.is_file():
        raise UserError("no such file of detections", where=path)
    try:
        record = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not json: {error}") from None
    if not isinstance(record, dict) or not isinstance(record.get(key), dict):
        raise UserError(f'{path} has no "{key}"; expected {{"{key}": {{video: [{form}]}}}}')
    return record
