"""Rows of the benchmark table and the file that keeps them all."""

from __future__ import annotations

import fcntl
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from callbacks.benchmark.provenance import commit, device_name, now, seed
from callbacks.benchmark.table import HEADER, MAIN, render_table
from callbacks.measures.latency import Latency
from datamodules.errors import UserError
from datamodules.files import write_whole


@dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """One measured experiment: accuracy, cost and origin.

    Accuracies are fractions; None where nothing was measured.
    """

    experiment: str
    """Name of the row; the newest row of a name is the one shown."""
    weights: str
    """File of the weights, or "as configured"."""
    protocol: str
    """Protocol of ``map``, with its stride and delay."""
    map: float | None
    video_protocol: str | None = None
    video_map_50: float | None = None
    parameters: int
    gflops: float | None
    gflops_published: float | None = None
    gflops_unit: str | None
    """The call that GFLOPs and latency are of: "clip", "frame", "window of 48 frames"."""
    frame: str | None = None
    """Height and width in pixels of a detector's frames in that call, padding included: "256 x 320"."""
    uncounted_operators: list[str]
    latency_p50_ms: float
    latency_p95_ms: float
    latency_p99_ms: float
    frames_per_second: float
    state_mib: float | None
    delay: int | None = None
    """Sampled frames that a prediction waits for."""
    device: str = field(default_factory=lambda: device_name(torch.device("cpu")))
    threads: int = field(default_factory=torch.get_num_threads)
    precision: str
    seed: int | None = field(default_factory=seed)
    commit: str = field(default_factory=lambda: commit(Path(__file__).parent))
    time: str = field(default_factory=now)
    speedup: float | None
    """Median latency of the reference over the row's own, timed in turn."""

    @classmethod
    def of_latency(cls, latency: Latency, new_frames: int = 1, **others: Any) -> BenchmarkRow:
        """Make a row whose times are those of ``latency``; a step of it adds ``new_frames``."""
        return cls(
            latency_p50_ms=latency.p50_ms,
            latency_p95_ms=latency.p95_ms,
            latency_p99_ms=latency.p99_ms,
            frames_per_second=new_frames * latency.frames_per_second,
            **others,
        )

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> BenchmarkRow:
        """Read a line of the file; rows of earlier versions lack columns with a default.

        Raises:
            TypeError: a column is missing that every version had.
        """
        known = {column.name for column in fields(cls)}
        return cls(**{key: value for key, value in record.items() if key in known})


def enter(folder: Path, row: BenchmarkRow) -> str:
    """Add a row to ``benchmark.jsonl`` and render ``benchmark.md`` anew; return its main columns.

    Runs that end together wait for each other, so that neither row nor page loses one. A row that cannot be rendered
    is not kept.
    """
    file = folder / "benchmark.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(file):
        rows = [*read_rows(file), row]
        page = f"{HEADER}\n{render_table(rows)}"
        _append(file, row)
        write_whole(folder / "benchmark.md", page)
    return f"{render_table(rows, MAIN)}all columns are in {folder / 'benchmark.md'}\n"


def read_rows(file: Path) -> list[BenchmarkRow]:
    """Read every row of the file, oldest first; lines that are no rows are reported and left out."""
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(BenchmarkRow.from_record(json.loads(line)))
        except (ValueError, TypeError, AttributeError) as error:
            warnings.warn(
                f"{file}:{number} is not a row and is left out ({error}); correct or delete that line", stacklevel=2
            )
    return rows


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold the file for this process alone; others that enter rows wait."""
    try:
        handle = file.open("ab")
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=file) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _append(file: Path, row: BenchmarkRow) -> None:
    """Add one line, whole or not at all.

    What a full disk left of an earlier line is cut back and reported.
    """
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    line = (json.dumps(asdict(row), allow_nan=False) + "\n").encode()
    with file.open("r+b", buffering=0) as handle:
        if whole < len(content):
            if _is_json(content[whole:]):  # an editor left the last line open
                whole, line = len(content), b"\n" + line
            else:
                warnings.warn(f"{file} ended in half a row, which is removed: {content[whole:]!r}", stacklevel=3)
                handle.truncate(whole)
        handle.seek(whole)
        try:
            rest = line
            while rest:  # a disk that is nearly full takes a part
                rest = rest[handle.write(rest) :]
            os.fsync(handle.fileno())
        except OSError as error:
            handle.truncate(whole)
            raise UserError(f"cannot be written: {error.strerror}; the row is {line.decode()}", where=file) from error


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
