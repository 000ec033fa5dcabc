"""Results of students and of their teacher: by class, by delay, and the weights they learned."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from datamodules.errors import UserError
from results.experiments.files import versions
from results.experiments.lists import ExperimentList, Row, read_list, stored_results
from results.experiments.runs import Run, runs_of

from .table import Line, collect, lines_of, other_commands

CLASS = "test/ap/"
DELAY = re.compile(r"test/map_delay_(\d+)(_actions)?")
WEIGHT = "train/weight/"

Curve = tuple[list[int], list[float]]
"""Training steps, and a value at each."""


class Results(NamedTuple):
    """A row of the list, its runs, and a line of results for each of them."""

    row: Row
    runs: list[Run]
    lines: list[Line]

    @property
    def title(self) -> str:
        return self.row.title

    def percent(self, key: str) -> list[float]:
        """A metric in percent, of every run that has it."""
        values = (line["metrics"].get(key) for line in self.lines)
        return [100 * value for value in values if value is not None]

    def classes(self) -> dict[str, list[float]]:
        """AP of each class in percent, of every run."""
        keys = sorted({key for line in self.lines for key in line["metrics"] if key.startswith(CLASS)})
        return {key.removeprefix(CLASS): values for key in keys if (values := self.percent(key))}

    def delays(self, *, actions_alone: bool) -> dict[int, list[float]]:
        """mAP in percent at each delay, of every run.

        Args:
            actions_alone: of the keyframe's boxes with later actions; else boxes are late too. Without a delay both are
                the same.
        """
        matches = (DELAY.fullmatch(key) for line in self.lines for key in line["metrics"])
        keys = {int(m[1]): m[0] for m in matches if m and (m[1] == "0" or bool(m[2]) == actions_alone)}
        return {delay: values for delay in sorted(keys) if (values := self.percent(keys[delay]))}

    def without_record(self) -> list[Run]:
        """The runs whose training left no metrics here: their lines are kept with the list, their folders are not."""
        return [run for run in self.runs if run.row.fit and not training_metrics(run)]

    def weights(self) -> dict[str, list[Curve]]:
        """The weight of each task over training steps, a curve a run; empty where the row's training has no tasks.

        Runs without a record are left out.
        """
        curves: dict[str, list[Curve]] = {}
        for run in self.runs:
            for task, weights in weights_of(run).items():
                steps = sorted(weights)
                curves.setdefault(task, []).append((steps, [weights[step] for step in steps]))
        return curves


class Comparison(NamedTuple):
    """A teacher and its students, all runs done."""

    listing: ExperimentList
    teacher: Results
    students: list[Results]
    other_commands: str
    """Sentence on the results that came from other commands than the list has now; empty where none did."""


def compare(file: Path, teacher: str, students: Sequence[str], seeds: Sequence[int] | None = None) -> Comparison:
    """Return the results of some rows of a list, of all their seeds or of some of them.

    Raises:
        UserError: a run is missing; the message says how to make it.
    """
    listing = read_list(file)
    rows = {row.name: row for row in listing.rows}
    names = [teacher, *students]
    if unknown := [name for name in names if name not in rows]:
        raise UserError(f"there is no row {', '.join(unknown)}", where=file, remedy=f"it has {', '.join(rows)}")
    every_run = runs_of(listing, file.stem)
    lines = collect(stored_results(file), every_run)
    if seeds is not None:
        every_run = [run for run in every_run if run.seed in seeds]
        lines = [line for line in lines if line["seed"] in seeds]
    runs = [run for run in every_run if run.row.name in names]
    known = {(line["experiment"], line["seed"]) for line in lines}
    if missing := [run for run in runs if (run.row.name, run.seed) not in known]:
        raise UserError(f"no result of {named(missing)}", remedy=f"run {command_for(missing)}")
    results = [
        Results(rows[name], [run for run in runs if run.row.name == name], lines_of(rows[name], lines))
        for name in names
    ]
    own = [line for result in results for line in result.lines]
    return Comparison(listing, results[0], results[1:], other_commands(runs, own))


def named(runs: Sequence[Run]) -> str:
    return "; ".join(map(str, runs))


def command_for(runs: Sequence[Run]) -> str:
    """Return the command that trains and tests some runs."""
    return f"snakemake -s results/Snakefile --cores 2 {' '.join(str(run.tested) for run in runs)}"


def training_metrics(run: Run) -> list[Path]:
    """Return the files that training has logged to, one attempt after the other."""
    attempts = sorted(versions(run.folder / "fit"), key=lambda folder: int(folder.name.rpartition("_")[2]))
    return [file for folder in attempts if (file := folder / "metrics.csv").is_file()]


def weights_of(run: Run) -> dict[str, dict[int, float]]:
    """Task -> step -> weight. An attempt that went on from a checkpoint overrides what was logged beyond it before."""
    weights: dict[str, dict[int, float]] = {}
    for file in training_metrics(run):
        with file.open(newline="") as lines:
            for line in csv.DictReader(lines):
                for key, value in line.items():
                    if key.startswith(WEIGHT) and value:
                        weights.setdefault(key.removeprefix(WEIGHT), {})[int(line["step"])] = float(value)
    return weights
