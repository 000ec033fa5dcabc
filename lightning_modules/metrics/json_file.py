"""Results in json files: written whole or not at all, and read with the name of what is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.errors import UserError
from datamodules.files import write_whole
from datamodules.text_files import read_json as read_any_json


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
