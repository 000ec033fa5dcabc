"""Origin of a figure: machine, commit, seed and time."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch


def device_name(device: torch.device) -> str:
    """Name of the hardware, as far as it says one."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.is_file() else []
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return next(names, "") or platform.processor() or "CPU"
    return str(device)


def seed() -> int | None:
    """The seed of the run; None where nothing was seeded."""
    return int(value) if (value := os.environ.get("PL_GLOBAL_SEED")) else None


def now() -> str:
    """The time of a figure, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def commit(folder: Path) -> str:
    """Short hash of the code in ``folder``, ``-dirty`` with changes other than to results; "unknown" outside git."""
    head = _git(folder, "rev-parse", "--short", "HEAD")
    if not head:
        return "unknown"
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":(top)", ":(top,exclude)results")
    return f"{head}-dirty" if changes else head


def _git(folder: Path, *arguments: str) -> str:
    """Output of a git command, empty where it fails or git is not installed."""
    try:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""
