"""Origin of a run: the commit of the code, uncommitted changes, and the machine."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

from datamodules.errors import UserError

CODE = ("main.py", "lightning_modules", "datamodules", "callbacks", "configs", "results")
WRITTEN = ("results/pages", "results/*.jsonl", "results/benchmark.md", "results/weights")
"""Paths that runs themselves write below the folders of code."""


def commit(folder: Path) -> str:
    """Return the short hash of the code in a folder, ``-dirty`` where it has changes; "unknown" outside git."""
    head = output_of(["git", "rev-parse", "--short", "HEAD"], folder)
    if not head:
        return "unknown"
    return f"{head}-dirty" if uncommitted(folder) else head


def uncommitted(folder: Path) -> list[str]:
    """Return the files of code and configs that differ from the commit or are not in it."""
    paths = [f":(top){path}" for path in CODE] + [f":(top,exclude,glob){path}" for path in WRITTEN]
    status = output_of(["git", "status", "--porcelain", "--untracked-files=all", "--", *paths], folder)
    return [line[3:] for line in status.splitlines()]


def refuse_uncommitted(folder: Path) -> None:
    """Raise a UserError where the code is not that of a commit: what it measures could not be repeated."""
    if files := uncommitted(folder):
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        raise UserError(
            f"{', '.join(files[:3])}{more}: changes that no commit has",
            remedy="commit them, or pass --config allow_dirty=1, which the results then say",
        )


def machine() -> str:
    """Name the GPUs, if there are any, and the processor."""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    gpus = dict.fromkeys(output_of(query, Path()).splitlines())
    return ", ".join([*gpus, processor()])


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or "CPU"


def output_of(command: Sequence[str], folder: Path) -> str:
    """Return what a command prints, nothing where it fails or is not installed."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""
    return done.stdout.rstrip("\n")
