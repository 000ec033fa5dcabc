"""One run, a row of a list with one seed: its folder, commands, checkpoints and dependencies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from .files import is_readable, named_files, newest_first, read_yaml
from .lists import ExperimentList, Row, Stage

Kind = Literal["fit", "test"]
RUNS = Path("runs")
"""Folder in which main.py keeps runs, each under its name."""
DEFAULTS = Path("configs/trainer/defaults.yaml")
"""Config that main.py reads before any other."""


class Run:
    """One row of a list with one seed.

    Its folder, ``runs/experiments/<list>/<row>-seed<seed>``, has

        fit/, test/     what Lightning records: ``version_N`` with config.yaml, metrics.csv, checkpoints
        attempts.json   what its training depends on, and when each attempt began and from which checkpoint
        fit.json        written once training has come to its end
        result.json     written once it was tested
        fit.log, test.log, test/benchmark.jsonl

    Args:
        listed_in: name of the list.
        needs: argument of ``fit`` and of ``test`` to the run whose checkpoint it is given.
    """

    def __init__(self, listed_in: str, row: Row, seed: int, needs: Mapping[Kind, Mapping[str, Run]]) -> None:
        self.row, self.seed, self.needs = row, seed, needs
        self.key = f"{listed_in}/{row.name}-seed{seed}"
        self.name = f"experiments/{self.key}"
        self.folder = RUNS / self.name

    def __str__(self) -> str:
        return f"{self.row.name}, seed {self.seed}"

    @property
    def turn(self) -> int:
        """Place of its seed among those of its row."""
        return self.row.own_seeds.index(self.seed)

    @property
    def trained(self) -> Path:
        """The record of its training, written at the end."""
        return self.folder / "fit.json"

    @property
    def tested(self) -> Path:
        """The record of its test, written at the end."""
        return self.folder / "result.json"

    def stage(self, kind: Kind) -> Stage:
        """Return what the list says about one of its commands."""
        stage = self.row.fit if kind == "fit" else self.row.test
        if stage is None:
            raise KeyError(f"{self} has no {kind}")
        return stage

    # What a command depends on -----------------------------------------------------------------------------------

    def inputs(self, kind: Kind) -> list[Path]:
        """Return the files that a command reads: configs, and the records of the trainings it starts from."""
        own = [self.trained] if kind == "test" and self.row.fit else []
        needed = [run.trained for run in self.needs[kind].values()]
        return list(dict.fromkeys([*own, *needed, *map(Path, self.configs(kind))]))

    def configs(self, kind: Kind) -> dict[str, Any]:
        """Return every YAML file that a command reads, with its content."""
        stage = self.stage(kind)
        defaults = {str(DEFAULTS): read_yaml(DEFAULTS)} if DEFAULTS.is_file() else {}
        return defaults | named_files([stage.config, *stage.overrides.values()], Path())

    # Its commands ------------------------------------------------------------------------------------------------

    def arguments(self, kind: Kind, checkpoint: Path | None, needed: Mapping[str, Path]) -> list[str]:
        """Return what ``main.py`` is called with.

        Args:
            checkpoint: what training goes on from, or what is tested.
            needed: argument to the checkpoint of another run.
        """
        stage = self.stage(kind)
        # A file replaces a whole object, so it comes before the keys of that object.
        overrides = dict(sorted(stage.overrides.items(), key=lambda item: not str(item[1]).endswith(".yaml")))
        given = {"seed_everything": self.seed, "name": f"{self.name}/{kind}", **overrides, **needed}
        if checkpoint is not None:
            given["ckpt_path"] = checkpoint
        if kind == "test":
            given["table_folder"] = self.folder / "test"
        return [kind, f"--config={stage.config}", *(f"--{name}={text(value)}" for name, value in given.items())]

    def command(self, kind: Kind) -> list[str]:
        """Return the arguments of a command as a person would type them when nothing has interrupted the runs."""
        usual = Path("fit/latest/checkpoints/last.ckpt")
        needed = {argument: run.folder / usual for argument, run in self.needs[kind].items()}
        return self.arguments(kind, self.folder / usual if kind == "test" and self.row.fit else None, needed)

    def commands(self) -> list[list[str]]:
        """Return its commands in their order."""
        return [*([self.command("fit")] if self.row.fit else []), self.command("test")]

    # Its checkpoints ---------------------------------------------------------------------------------------------

    def newest_checkpoint(self) -> Path | None:
        """Find the newest whole checkpoint of its training; one that was cut off while being written is passed over."""
        checkpoints = newest_first((self.folder / "fit").glob("version_*/checkpoints/*.ckpt"))
        return next(filter(is_readable, checkpoints), None)

    def last_checkpoint(self) -> Path | None:
        """Find what ModelCheckpoint wrote last of a training that has come to its end."""
        return next(iter(newest_first((self.folder / "fit").glob("version_*/checkpoints/last.ckpt"))), None)


def runs_of(listing: ExperimentList, name: str) -> list[Run]:
    """Return every run of a list, each row once before any row has its second seed."""
    rows, made = {row.name: row for row in listing.rows}, dict[tuple[str, int], Run]()
    elsewhere: dict[tuple[str, int], Run] = {}
    for other_name, other in listing.others.items():
        rows |= {f"{other_name}/{row.name}": row for row in other.rows}
        elsewhere |= {(f"{other_name}/{run.row.name}", run.seed): run for run in runs_of(other, other_name)}

    def needed(stage: Stage | None, seed: int) -> dict[str, Run]:
        needs = {} if stage is None else stage.needs
        known = elsewhere | made
        return {
            argument: known[row, seed if seed in rows[row].own_seeds else rows[row].own_seeds[0]]
            for argument, row in needs.items()
        }

    for row in listing.rows:  # a row needs only rows above
        for seed in row.own_seeds:
            made[row.name, seed] = Run(name, row, seed, {"fit": needed(row.fit, seed), "test": needed(row.test, seed)})
    return sorted(made.values(), key=lambda run: run.turn)


def text(value: object) -> str:
    """Write a value as the command line takes it."""
    return str(value) if isinstance(value, str | Path) else json.dumps(value)
