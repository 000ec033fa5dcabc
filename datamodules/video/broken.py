"""Videos that could not be read and were passed over: which, why, and that it is said."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
import weakref
from pathlib import Path
from typing import Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import get_worker_info

from datamodules.video.picture_folder import Video

OnError = Literal["raise", "skip"]
"""Fate of a video that cannot be read: it stops the run, or is left out and reported."""
NAMES_SHOWN = 20


class BrokenVideos:
    """The broken videos that a process and the workers of its loaders met, each once.

    A worker writes a line to a file that all of them know. Unlike a queue it needs no thread, outlives the worker, and
    serves workers that are forked, spawned or kept alike. Send one to a worker only after ``prepare``.
    """

    def __init__(self) -> None:
        self._found: dict[str, str] = {}
        self._of_all: set[str] = set()
        self._reported = 0
        self._file: Path | None = None

    def prepare(self) -> None:
        """Make the file, before the first worker starts."""
        if self._file is None:
            descriptor, name = tempfile.mkstemp(prefix="onlooker_broken_", suffix=".jsonl")
            os.close(descriptor)
            self._file = Path(name)
            weakref.finalize(self, _remove, self._file, os.getpid())

    def add(self, video: Video, reason: Exception | str, of_all: bool = False) -> None:
        """Remember a video; a second reason for the same one is dropped.

        Args:
            video: what could not be read.
            reason: why.
            of_all: every process of a run meets it, so one of them reports it.
        """
        name = str(video)
        if name in self._found:
            return
        self._found[name] = str(reason)
        if of_all:
            self._of_all.add(name)
        if get_worker_info() is not None:
            line = json.dumps([name, str(reason)]) + "\n"
            # Appended in one piece, so that lines of several workers do not mix.
            descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)

    def found(self) -> dict[str, str]:
        """Path and reason of every broken video so far."""
        if self._file is not None and self._file.exists():
            for line in self._file.read_text().splitlines():
                name, reason = json.loads(line)
                self._found.setdefault(name, reason)
        return dict(self._found)

    def report(self, rank: int = 0) -> None:
        """Warn of all broken videos, once there are more of them than at the last report."""
        found = self.found()
        mine = [reason for name, reason in found.items() if rank == 0 or name not in self._of_all]
        if len(mine) == self._reported:
            return
        self._reported = len(mine)
        more = f" ... and {len(mine) - NAMES_SHOWN} more" if len(mine) > NAMES_SHOWN else ""
        process = f"process {rank}: " if rank else ""
        warnings.warn(
            f"{process}{len(mine)} broken videos were skipped: {'; '.join(mine[:NAMES_SHOWN])}{more}", stacklevel=2
        )


class ReportBrokenVideos(Callback):
    """Report the broken videos at the end of every epoch, which a DataModule is not called for."""

    def __init__(self, broken: BrokenVideos) -> None:
        self.broken = broken

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.broken.report(trainer.global_rank)

    on_validation_epoch_end = on_test_epoch_end = on_predict_epoch_end = on_train_epoch_end


def _remove(file: Path, process: int) -> None:
    if os.getpid() == process:  # not a forked copy
        file.unlink(missing_ok=True)
