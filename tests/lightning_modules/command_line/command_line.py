"""A command line that is read and built in this process, again and again, without the seconds that its parsers take."""

from __future__ import annotations

from pathlib import Path

import pytest

from main import OnlookerCLI, main

ROOT = Path(__file__).resolve().parents[3]
EVAD = f"--config={ROOT / 'configs' / 'evad.yaml'}"


class Stop(Exception):
    """Ends ``main`` once its parsers are there."""


class CommandLine:
    """Reads, or reads and builds, what a user types; runs nothing."""

    def __init__(self) -> None:
        made: list[OnlookerCLI] = []

        def stop(cli: OnlookerCLI) -> None:
            made.append(cli)
            raise Stop

        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
            patch.setattr(OnlookerCLI, "before_instantiate_classes", stop)
            patch.setattr(OnlookerCLI, "called", staticmethod(lambda arguments: set(OnlookerCLI.subcommands())))
            main(["fit", EVAD])
        (self.cli,) = made

    def read(self, *arguments: str) -> OnlookerCLI:
        """Parse the arguments of a command."""
        self.cli.parse_arguments(self.cli.parser, list(arguments))
        self.cli.subcommand = self.cli.config.subcommand
        return self.cli

    def build(self, *arguments: str) -> OnlookerCLI:
        """Make the objects too: data, model and Trainer."""
        self.read(*arguments)
        vars(self.cli).pop("config_dump", None)
        self.cli.before_instantiate_classes()
        self.cli.instantiate_classes()
        return self.cli
