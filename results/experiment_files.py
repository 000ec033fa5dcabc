"""Files of a run: what Lightning leaves in them, and JSON that is there whole or not at all."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path
from typing import Any

import yaml


def last_values(metrics: Path) -> dict[str, float | None]:
    """The last number of each column of a metrics.csv; None where it is not finite."""
    values: dict[str, float | None] = {}
    with metrics.open(newline="") as file:
        for line in csv.DictReader(file):
            values |= {key: float(value) for key, value in line.items() if value and key not in ("epoch", "step")}
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def versions(folder: Path) -> list[Path]:
    """Lightning's folders of the runs of one name, a new one each time."""
    return list(folder.glob("version_*"))


def read_json(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.is_file() else None


def read_yaml(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text()) or {} if file.is_file() else {}


def write_json(file: Path, value: Any) -> None:
    write_text(file, json.dumps(value, indent=1) + "\n")


def write_text(file: Path, content: str) -> None:
    """Write a file that readers see either before or after, never half."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_text(content)
    partial.replace(file)
