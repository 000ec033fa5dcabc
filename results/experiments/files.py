"""Files of a run: what Lightning leaves in them."""

from __future__ import annotations

import csv
import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from datamodules.errors import UserError
from datamodules.files import write_whole

MERGE = "tag:yaml.org,2002:merge"


def last_values(metrics: Path) -> dict[str, float | None]:
    """Return the last number of each column of a metrics.csv; None where it is not finite."""
    values: dict[str, float] = {}
    with metrics.open(newline="") as file:
        for line in csv.DictReader(file):
            values |= {key: float(value) for key, value in line.items() if value and key not in ("epoch", "step")}
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def versions(folder: Path) -> list[Path]:
    """Lightning's folders of the runs of one name, a new one each time."""
    return list(folder.glob("version_*"))


def newest_first(files: Iterator[Path]) -> list[Path]:
    """Sort files by their time; of two of the same time ``last.ckpt`` comes first."""
    return sorted(files, key=lambda file: (file.stat().st_mtime, file.name == "last.ckpt"), reverse=True)


def is_readable(checkpoint: Path) -> bool:
    """Return whether a checkpoint is whole: torch.save writes a zip file, whose parts carry checksums."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def read_json(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.is_file() else None


def read_yaml(file: Path) -> Any:
    return yaml.safe_load(file.read_text()) if file.is_file() else None


class KeysOnce(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Loader that refuses a key that is written twice: YAML would keep the second and drop the first."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        known = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                if key.value in known:
                    line = f"{self.name}:{key.start_mark.line + 1}"
                    raise UserError(f"{key.value} is written twice", where=line, remedy="leave one of them out")
                known.add(key.value)
        return node


def read_listing(file: Path) -> Any:
    """Read a YAML file that a person writes.

    Raises:
        UserError: a key is written twice; the message has its line.
    """
    with file.open() as text:
        return yaml.load(text, KeysOnce)


def write_json(file: Path, value: object) -> None:
    write_whole(file, json.dumps(value, indent=1) + "\n")


def named_files(value: object, folder: Path) -> dict[str, Any]:
    """Return every YAML file that a setting names, directly or through another file, with its content.

    Args:
        folder: what names are relative to; if nothing is there, they are relative to the working directory.
    """
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return {file: content for part in value for file, content in named_files(part, folder).items()}
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        for file in (folder / value, Path(value)):
            if file.is_file():
                content = read_yaml(file)
                return {str(file): content} | named_files(content, file.parent)
    return {}
