"""The folder of a run, ``runs/<name>/version_<n>``: nobody else's, and what ``runs/<name>/latest`` leads to."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor

from datamodules.errors import UserError
from datamodules.files import whole_file, whole_path, write_whole

VERSION = "version_"
LATEST = "latest"


class RunFolder:
    """A new folder of a run, made when it is first asked for; a run that fails before it has begun leaves none.

    Only the first process of a run makes one, the others are told of it by Lightning.

    Args:
        root: where all runs are.
        name: of the run.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name

    @cached_property
    def version(self) -> int | None:
        """The number of the folder; None on all processes but the first."""
        return _claim(self.root / self.name) if rank_zero_only.rank == 0 else None

    @property
    def path(self) -> Path:
        return self.root / self.name / f"{VERSION}{self.version}"

    def give_back(self) -> None:
        """Remove the folder if nothing is in it."""
        if "version" in vars(self) and self.version is not None:
            with suppress(OSError):
                self.path.rmdir()


def _claim(parent: Path) -> int:
    """Make the next ``version_<n>`` below ``parent``, one that no other process has made, however close in time."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        numbers = [folder.name.removeprefix(VERSION) for folder in parent.glob(f"{VERSION}*")]
        number = max((int(each) for each in numbers if each.isdecimal()), default=-1)
        while True:
            number += 1
            with suppress(FileExistsError):
                (parent / f"{VERSION}{number}").mkdir()
                return number
    except OSError as error:
        raise UserError(f"no folder for the run can be made: {error.strerror}", where=parent) from error


def point_latest_at(folder: Path) -> None:
    """Make ``latest`` beside a run's folder lead to it; at every moment it leads to one run or the other."""
    latest = folder.parent / LATEST
    try:
        with whole_path(latest) as unfinished:
            unfinished.symlink_to(folder.name, target_is_directory=True)
    except UserError as error:
        # No reason to end a training: some file systems have no links, and a folder of that name stays as it is.
        rank_zero_warn(f"{latest} does not lead to this run, {folder}: {error.problem}")


class RunBoard(TensorBoardLogger):
    """TensorBoard's files in the folder of a run."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder.root, name=folder.name, default_hp_metric=False)
        self.folder = folder

    @property
    def version(self) -> int | None:
        return self.folder.version


class RunMetrics(Logger):
    """``metrics.csv`` in the folder of a run: a row for each time something is logged, written at once.

    When the first checkpoint has been written, ``latest`` leads to the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.folder = folder
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def version(self) -> int | None:
        return self.folder.version

    @property
    def path(self) -> Path:
        return self.folder.path / "metrics.csv"

    @property
    def experiment(self) -> None:
        """What pictures could be given to, as every logger has it."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        row["step"] = step
        if row.keys() <= set(self._columns):
            self._append(row)
            return
        rows = []
        if self._columns:
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        self._columns = sorted({*self._columns, *row})
        with whole_file(self.path, newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows([*rows, row])

    def _append(self, row: Mapping[str, Any]) -> None:
        """Add a row, whole or not at all."""
        length = self.path.stat().st_size
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.path, length)
            raise UserError(f"cannot be written: {error.strerror}", where=self.path) from error

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """``config.yaml`` has them."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if status == "failed":
            self.folder.give_back()

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        # Of two checkpoints that are written one after the other, ``last.ckpt`` is the second.
        if checkpoint_callback.last_model_path or not checkpoint_callback.save_last:
            point_latest_at(self.folder.path)


class RunConfig(SaveConfigCallback):
    """``config.yaml`` in the folder of a run, whole or not there."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        folder = trainer.log_dir or trainer.default_root_dir  # all processes have to ask for it
        if trainer.is_global_zero and not self.already_saved:
            write_whole(Path(folder) / self.config_filename, self.parser.dump(self.config, skip_none=False))
        self.already_saved = True
