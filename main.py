"""Onlooker's command line: ``python main.py COMMAND --config configs/<experiment>.yaml``.

``fit``, ``validate``, ``test`` and ``predict`` are Lightning's. ``check`` looks through data, ``score`` scores saved
detections without a model, and ``analyse`` explains their errors. ``export`` writes a network for other runtimes,
``maps`` computes what a frozen stem makes of frames, and ``serve`` predicts and shows it in the browser.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Before anything imports them: the first looks up its newest version on the network, the second warns about Lightning.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import callbacks
import datamodules
import lightning_modules
from datamodules.errors import shown_in_one_line
from lightning_modules.command_line.building import built_from, trainer_built, trainer_running
from lightning_modules.command_line.checkpoint import has_hyper_parameters
from lightning_modules.command_line.config_files import with_whole_files
from lightning_modules.command_line.machine import faults_of_the_machine
from lightning_modules.command_line.monitors import watch_monitors
from lightning_modules.command_line.parser import OnlookerParser
from lightning_modules.command_line.precision import useful_precision
from lightning_modules.command_line.pretrained import with_card
from lightning_modules.command_line.processes import one_report
from lightning_modules.command_line.settings import Settings
from lightning_modules.command_line.switches import check_settings, possible_callbacks
from lightning_modules.commands.score import take_protocols
from lightning_modules.commands.trainer import OnlookerTrainer
from lightning_modules.runs.checkpoint_files import WholeCheckpoints
from lightning_modules.runs.interrupts import StopAtOnce, true_exit_status
from lightning_modules.runs.noise import quieten
from lightning_modules.runs.run_folder import RunBoard, RunConfig, RunFolder, RunMetrics, recorded_precision

for room in (callbacks, datamodules, lightning_modules):
    for name in room.__all__:
        getattr(room, name)  # loads what a config may name: class names are looked up among what is imported

DEFAULTS = Path(__file__).parent / "configs" / "trainer" / "defaults.yaml"
"""Read before any ``--config``."""
WITHOUT_MODEL = frozenset({"check", "score", "analyse"})
"""Commands that build no model, although the config they read names one."""


class OnlookerCLI(LightningCLI):
    """LightningCLI whose runs are named after their config and kept together in ``runs/<name>``."""

    def __init__(self, *classes: type, args: list[str] | None = None, **settings) -> None:
        self._called = self.called(sys.argv[1:] if args is None else args)
        super().__init__(*classes, args=args, **settings)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        names = ("check", "score", "analyse", "export", "maps", "serve")
        ours = {command: {"model", "datamodule"} for command in names}
        return LightningCLI.subcommands() | ours

    @classmethod
    def called(cls, arguments: Sequence[str]) -> set[str]:
        """Return the commands among some arguments, all where there is none."""
        return set(arguments) & set(cls.subcommands()) or set(cls.subcommands())

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **settings) -> LightningArgumentParser:
        """Make the arguments of what is called alone: those of all commands take half a second."""
        if subcommand in self._called:
            return super()._prepare_subcommand_parser(klass, subcommand, **settings)
        self._subcommand_method_arguments[subcommand] = []
        return self.init_parser()

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str] | None) -> None:
        arguments = with_card(sys.argv[1:] if args is None else args)
        self.settings = Settings([f"--config={DEFAULTS}", *arguments])
        for each in (parser, *self._subcommand_parsers.values()):
            each.settings = self.settings
        self.config = parser.parse_args(with_whole_files(arguments))
        check_settings(self.config[self.config.subcommand], self.settings)

    def _parse_ckpt_path(self) -> None:
        command = self.config.subcommand
        if command in LightningCLI.subcommands() and has_hyper_parameters(self.config[command], self.settings):
            super()._parse_ckpt_path()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add = parser.add_argument
        add("--name", type=str, help="name of the run and of its row in the table; the config's by default")
        add("--table_folder", type=Path, help="folder of the table that `test` adds a row to; results by default")
        of_network = "model.init_args.network.init_args.num_classes"
        parser.link_arguments("data.num_classes", of_network, apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if self.subcommand in {*WITHOUT_MODEL, "export"}:
            config.trainer.precision = None  # nothing is computed in it
        with built_from(config, self.settings):
            resumed = recorded_precision(config.ckpt_path) if self.subcommand == "fit" else None
            config.trainer.precision = useful_precision(config.trainer.precision, config.trainer.accelerator, resumed)
        if config.name is None:
            files = config.get("config") or []
            config.name = Path(str(files[0])).stem if files else "unnamed"

    def instantiate_classes(self) -> None:
        with built_from(self.config[self.subcommand], self.settings):
            if self.subcommand in WITHOUT_MODEL:
                self._instantiate_data_and_trainer()
            else:
                super().instantiate_classes()

    def _instantiate_data_and_trainer(self) -> None:
        config = self.config[self.subcommand].clone()
        if self.subcommand in ("score", "analyse"):
            take_protocols(config, self.settings)
        del config["model"]
        self.config_init = Namespace({self.subcommand: self._parser(self.subcommand).instantiate_classes(config)})
        self.datamodule, self.model = self.config_init[self.subcommand].get("data"), None
        self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **kwargs) -> Trainer:
        config = self.config_init[self.subcommand]
        if config.trainer.logger is None:
            folder = RunFolder(Path("runs"), config.name)
            kwargs["logger"] = [RunBoard(folder), RunMetrics(folder)]
        config.trainer.callbacks = possible_callbacks(config.trainer)
        if self.subcommand == "fit":
            watch_monitors(config.trainer)
        with trainer_built(self.settings):
            trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.insert(0, StopAtOnce(sys.argv))
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpoints()
        for callback in trainer.callbacks:
            if isinstance(callback, callbacks.BenchmarkTable):
                callback.experiment = callback.experiment or config.name
                callback.folder = config.table_folder or callback.folder
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        with one_report(self.trainer), trainer_running(self.settings):
            super()._run_subcommand(subcommand)


def main(args: list[str] | None = None) -> OnlookerCLI:
    """Run the command line with ``args`` (``sys.argv`` by default); what it ran is in the result."""
    quieten()
    torch.set_float32_matmul_precision("high")
    with faults_of_the_machine():
        return OnlookerCLI(
            LightningModule,
            LightningDataModule,
            trainer_class=OnlookerTrainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=RunConfig,
            parser_class=OnlookerParser,
            seed_everything_default=0,
            parser_kwargs={command: {"default_config_files": [str(DEFAULTS)]} for command in OnlookerCLI.subcommands()},
            args=args,
        )


if __name__ == "__main__":
    with true_exit_status(), shown_in_one_line():
        main()
