"""Onlooker's command line: ``python main.py COMMAND --config configs/<experiment>.yaml``.

``fit``, ``validate``, ``test`` and ``predict`` are Lightning's; ``check`` looks through data, ``score`` scores saved
detections without a model, ``export`` writes a network for other runtimes.
"""

# ruff: noqa: E402, F401  (settings come before imports; class names in configs are looked up among what is imported)

from __future__ import annotations

import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Literal

# Before anything imports them: the first looks up its newest version on the network, the second warns about Lightning.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
warnings.filterwarnings("ignore", message=".*LeafSpec.*")

import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

import callbacks.benchmark
import callbacks.prediction_writer
import callbacks.visualisation
import datamodules.annotations.ava
import datamodules.annotations.jhmdb
import datamodules.annotations.own_videos
import datamodules.annotations.ucf101_24
import datamodules.clip
import datamodules.puppets
import datamodules.stream
import lightning_modules.clip_detection
import lightning_modules.distillation
import lightning_modules.stream_detection

DEFAULTS = Path(__file__).parent / "configs" / "trainer" / "defaults.yaml"
"""Read before any ``--config``."""
WITHOUT_MODEL = frozenset({"check", "score"})
"""Commands that build no model, although the config they read names one."""
EXPECTED_ERRORS = (ValueError, FileNotFoundError)
"""What a user can cause: shown in one line. ONLOOKER_DEBUG=1 shows where it was raised."""


class OnlookerTrainer(Trainer):
    """Lightning's Trainer with the commands that run no loop. Their arguments are the command line's."""

    def check(
        self,
        model: None,
        datamodule: LightningDataModule,
        page: Path = Path("runs/check.png"),
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Look through the data that a config names, draw some of it, and say what is wrong.

        Args:
            page: where the picture of clips with their boxes goes.
            ckpt_path, weights_only: not used; a run's ``config.yaml``, which has them, can be given as it is.
        """
        raise NotImplementedError

    def score(
        self,
        model: None,
        datamodule: LightningDataModule,
        predictions: Path,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Score detections that were saved earlier, without a model.

        Args:
            predictions: what ``test`` saved, or another program in the same form.
            ckpt_path, weights_only: not used; a run's ``config.yaml``, which has them, can be given as it is.
        """
        raise NotImplementedError

    def export(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        format: Literal["onnx", "torch_export"] = "onnx",
        ckpt_path: str | None = None,
        weights_only: bool | None = True,
    ) -> None:
        """Write a network for other runtimes: a student's step with its state as inputs and outputs, a teacher's clip.

        Args:
            format: ``onnx`` for onnxruntime and others, ``torch_export`` for PyTorch alone.
            ckpt_path: checkpoint of a run; without it the weights that the config names.
            weights_only: refuse checkpoints that hold more than tensors and plain values.
        """
        raise NotImplementedError


class OnlookerCLI(LightningCLI):
    """LightningCLI whose runs are named after their config and kept together in ``runs/<name>``."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        ours = {command: {"model", "datamodule"} for command in ("check", "score", "export")}
        return LightningCLI.subcommands() | ours

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--name",
            type=str,
            default=None,
            help="name of the run and of its row in the table; the config's by default",
        )

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if config.trainer.precision in ("16-mixed", "16-true", 16, "16") and not torch.cuda.is_available():
            raise ValueError(
                f"precision {config.trainer.precision} is about a hundred times slower than 32 on a CPU; "
                "set --trainer.precision=bf16-mixed"
            )
        if config.name is None:
            files = config.get("config") or []
            config.name = Path(str(files[0])).stem if files else "unnamed"

        self._count_classes(config)

    def _count_classes(self, config: Namespace) -> None:
        """Let networks whose ``num_classes`` is 0 have as many as the data has."""
        init_args = config.model.get("init_args") or Namespace()
        networks = [value["init_args"] for value in vars(init_args).values() if isinstance(value, Namespace)]
        uncounted = [network for network in networks if network.get("num_classes") == 0]
        if uncounted and config.get("data") is not None:
            data = self._parser(self.subcommand).instantiate_classes(Namespace(data=config.data)).data
            for network in uncounted:
                network.num_classes = data.num_classes

    def instantiate_classes(self) -> None:
        try:
            if self.subcommand in WITHOUT_MODEL:
                self._instantiate_data_and_trainer()
            else:
                super().instantiate_classes()
        except ValueError as error:
            raise unwrapped(error) from None

    def _instantiate_data_and_trainer(self) -> None:
        config = self.config[self.subcommand].clone()
        del config["model"]
        self.config_init = Namespace({self.subcommand: self._parser(self.subcommand).instantiate_classes(config)})
        self.datamodule, self.model = self.config_init[self.subcommand].get("data"), None
        self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **kwargs) -> Trainer:
        config = self.config_init[self.subcommand]
        if config.trainer.logger is None:
            # `version` is left to Lightning: a new folder a run, nothing is ever overwritten.
            board = TensorBoardLogger("runs", name=config.name, default_hp_metric=False)
            kwargs["logger"] = [board, CSVLogger("runs", name=config.name, version=board.version)]
            if self.subcommand == "fit":
                point_latest_at(Path(board.log_dir))
        trainer = super().instantiate_trainer(**kwargs)
        for callback in trainer.callbacks:
            if isinstance(callback, callbacks.benchmark.BenchmarkTable) and callback.experiment is None:
                callback.experiment = config.name
        return trainer


def unwrapped(error: Exception) -> Exception:
    """What a constructor raised, without the errors that the parser wraps around it: they list every argument."""
    while error.__cause__ is not None:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if not frame.f_globals["__name__"].startswith("jsonargparse"):
            break
        error = error.__cause__
    return error


@rank_zero_only
def point_latest_at(folder: Path) -> None:
    """Make ``runs/<name>/latest`` lead to the newest run, so that commands can name its checkpoints."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    latest = folder.parent / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(folder.name, target_is_directory=True)


def main(args: list[str] | None = None) -> OnlookerCLI:
    """Run the command line with ``args`` (``sys.argv`` by default); what it ran is in the result."""
    torch.set_float32_matmul_precision("high")
    return OnlookerCLI(
        LightningModule,
        LightningDataModule,
        trainer_class=OnlookerTrainer,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_kwargs={"overwrite": True},  # every run has a new folder; without a logger there is one to reuse
        seed_everything_default=0,
        parser_kwargs={command: {"default_config_files": [str(DEFAULTS)]} for command in OnlookerCLI.subcommands()},
        args=args,
    )


if __name__ == "__main__":
    try:
        main()
    except EXPECTED_ERRORS as error:
        if os.environ.get("ONLOOKER_DEBUG"):
            raise
        sys.exit(f"error: {error}")
