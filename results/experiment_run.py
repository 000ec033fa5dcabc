"""One run, a row of a list with one seed: its folder, what is done of it, its commands, and what it measured."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .experiment_files import last_values, read_json, read_yaml, versions, write_json
from .experiment_list import ExperimentList, Row, Stage
from .experiment_settings import as_json, changes, fingerprint, stage_settings

Todo = Literal["nothing", "test", "resume", "fit"]
RUNS = Path("runs")
"""Where main.py keeps runs, each in a folder of its name."""


class RunFailed(Exception):
    """What went wrong with one run; the others go on."""


class State(NamedTuple):
    todo: Todo
    why: str


class Run:
    """One row of a list with one seed.

    Its folder, ``runs/experiments/<list>/<row>-seed<seed>``, has

        attempts.json   what its training depends on, and when each attempt began and from which checkpoint
        fit/, test/     what Lightning records: ``version_N`` with config.yaml, metrics.csv, checkpoints
        fit.json        written once training has come to its end
        result.json     written once it was tested; a run that has one is done, until what it depends on changes
        fit.log, test.log, test/benchmark.jsonl

    and beside it is ``<row>-seed<seed>.lock``, held by every process that works on it.

    Args:
        needs: argument of ``fit`` and of ``test`` to the run whose checkpoint it is given.
    """

    def __init__(self, listed_in: str, row: Row, seed: int, needs: Mapping[str, Mapping[str, Run]]) -> None:
        self.row, self.seed, self.needs = row, seed, needs
        self.name = f"experiments/{listed_in}/{row.name}-seed{seed}"
        self.folder = RUNS / self.name

    def __str__(self) -> str:
        return f"{self.row.name}, seed {self.seed}"

    @property
    def needed_runs(self) -> list[Run]:
        return list({id(run): run for stage in self.needs.values() for run in stage.values()}.values())

    # What it depends on ------------------------------------------------------------------------------------------

    def _settings(self, kind: str, stage: Stage) -> dict[str, Any]:
        needs = {argument: run.fit_fingerprint for argument, run in self.needs[kind].items()}
        return stage_settings(stage, self.seed, needs)

    @cached_property
    def fit_settings(self) -> dict[str, Any] | None:
        return self.row.fit and as_json(self._settings("fit", self.row.fit))

    @cached_property
    def fit_fingerprint(self) -> str:
        return fingerprint(self.fit_settings)

    @cached_property
    def settings(self) -> dict[str, Any]:
        return {"fit": self.fit_settings, "test": as_json(self._settings("test", self.row.test))}

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.settings)

    # What is done ------------------------------------------------------------------------------------------------

    def state(self, *, checkpoint_needed: bool = False) -> State:
        """What is to be done, and why.

        Args:
            checkpoint_needed: whether a measured result is not enough because another run starts from the checkpoint.
        """
        result = read_json(self.folder / "result.json")
        attempts = self._attempts()
        if result and result["fingerprint"] == self.fingerprint:
            if not checkpoint_needed or self.row.fit is None or self.checkpoint():
                return State("nothing", "done")
            return State("fit", "its checkpoint is gone, and another run needs it")
        if self.row.fit is None:
            return State("test", "changed: " + self._changes(result) if result else "new")
        if self.is_superseded():
            return State("fit", "changed: " + "; ".join(changes(attempts["settings"], self.fit_settings)))
        if self.fitted():
            why = "changed: " + self._changes(result) if result else "trained already"
            return State("test", why)
        if found := self.newest_checkpoint():
            return State("resume", f"goes on from {found}")
        return State("fit", "starts again, it had no checkpoint yet" if attempts else "new")

    def _changes(self, result: dict[str, Any]) -> str:
        return "; ".join(changes(result["settings"], self.settings))

    def read_again(self) -> None:
        """Take configs as they are now. The runs it needs are left as they were trained."""
        for name in ("fit_settings", "fit_fingerprint", "settings", "fingerprint"):
            vars(self).pop(name, None)

    def accept_changes(self) -> list[str]:
        """Take what is recorded as if it had been made with the list's settings of now; what has changed since."""
        attempts, result = self._attempts(), read_json(self.folder / "result.json")
        accepted = []
        if attempts and self.row.fit:
            accepted += changes({"fit": attempts["settings"]}, {"fit": self.fit_settings})
            write_json(self.folder / "attempts.json", attempts | {"settings": self.fit_settings})
        if result:
            accepted += changes(result["settings"], self.settings)
            known = {"settings": self.settings, "fingerprint": self.fingerprint}
            write_json(self.folder / "result.json", result | known | {"time": utc_now()})
        return list(dict.fromkeys(accepted))

    def is_superseded(self) -> bool:
        """Whether what is in the folder was trained with other settings than the list's now."""
        attempts = self._attempts()
        return attempts is not None and fingerprint(attempts["settings"]) != self.fit_fingerprint

    def fitted(self) -> dict[str, Any] | None:
        """The record of training that has come to its end, if its checkpoint is there."""
        record = None if self.is_superseded() else read_json(self.folder / "fit.json")
        return record if record and Path(record["checkpoint"]).is_file() else None

    def checkpoint(self) -> Path | None:
        """That of training at its end."""
        record = self.fitted()
        return record and Path(record["checkpoint"])

    def newest_checkpoint(self) -> Path | None:
        """That of the newest attempt that has one."""
        found = (folder / "checkpoints" / "last.ckpt" for folder in versions(self.folder / "fit"))
        return max((file for file in found if file.is_file()), key=lambda file: file.stat().st_mtime, default=None)

    def _attempts(self) -> dict[str, Any] | None:
        return read_json(self.folder / "attempts.json")

    # Its commands ------------------------------------------------------------------------------------------------

    def arguments(self, kind: Literal["fit", "test"], checkpoint: Path | None, needed: Mapping[str, Path]) -> list[str]:
        """What ``main.py`` is called with.

        Args:
            checkpoint: what training goes on from, or what is tested.
            needed: argument to the checkpoint of another run.
        """
        stage = self.row.fit if kind == "fit" else self.row.test
        given = {"seed_everything": self.seed, "name": f"{self.name}/{kind}", **stage.overrides, **needed}
        if checkpoint is not None:
            given["ckpt_path"] = checkpoint
        if kind == "test":
            given["table_folder"] = self.folder / "test"
        return [kind, f"--config={stage.config}", *(f"--{name}={text(value)}" for name, value in given.items())]

    def commands(self) -> list[list[str]]:
        """The arguments of its commands when nothing interrupts them."""
        usual = Path("fit/latest/checkpoints/last.ckpt")
        needed = {
            kind: {argument: run.folder / usual for argument, run in needs.items()}
            for kind, needs in self.needs.items()
        }
        fit = [self.arguments("fit", None, needed["fit"])] if self.row.fit else []
        return [*fit, self.arguments("test", self.folder / usual if self.row.fit else None, needed["test"])]

    # Doing it ----------------------------------------------------------------------------------------------------

    def set_aside(self) -> Path:
        """Move what earlier settings gave out of the way; nothing is ever deleted."""
        parent = self.folder.parent / "superseded"
        parent.mkdir(exist_ok=True)
        place = next(place for n in range(10**6) if not (place := parent / f"{self.folder.name}-{n}").exists())
        self.folder.rename(place)
        return place

    def begin_fit(self) -> list[str]:
        """Note that training begins; the arguments of its command."""
        (self.folder / "result.json").unlink(missing_ok=True)
        checkpoint = self.newest_checkpoint()
        attempt = {"began": time.time(), "from": checkpoint and str(checkpoint)}
        attempt["from_time"] = checkpoint and checkpoint.stat().st_mtime
        earlier = (self._attempts() or {"attempts": []})["attempts"]
        write_json(self.folder / "attempts.json", {"settings": self.fit_settings, "attempts": [*earlier, attempt]})
        return self.arguments("fit", checkpoint, self._needed("fit"))

    def end_fit(self, facts: Mapping[str, Any]) -> None:
        """Record that training has come to its end.

        Args:
            facts: commit, threads and the like.
        """
        checkpoint = self.newest_checkpoint()
        if checkpoint is None:
            raise RunFailed(f"training left no last.ckpt below {self.folder / 'fit'}; ModelCheckpoint writes it")
        attempts = self._attempts()["attempts"]
        record = {
            "checkpoint": str(checkpoint),
            "seconds": useful_seconds(attempts, time.time()),
            "attempts": len(attempts),
            "precision": trainer_precision(checkpoint.parent.parent),
        }
        write_json(self.folder / "fit.json", record | facts)

    def begin_test(self) -> list[str]:
        """The arguments of its command."""
        # The row of an earlier test would be taken for this one's, should this one enter none.
        self._table.unlink(missing_ok=True)
        self._tested_before = versions(self.folder / "test")
        return self.arguments("test", self.checkpoint(), self._needed("test"))

    def end_test(self, seconds: float, facts: Mapping[str, Any]) -> None:
        """Record what was measured since ``begin_test``; the run is done."""
        made = [folder for folder in versions(self.folder / "test") if folder not in self._tested_before]
        made = [folder for folder in made if (folder / "metrics.csv").is_file()]
        if not made:
            raise RunFailed(f"the test logged no metrics.csv below {self.folder / 'test'}")
        fit = self.fitted() or {}
        record = {
            "experiment": self.row.name,
            "seed": self.seed,
            "config": (self.row.fit or self.row.test).config,
            "metrics": last_values(made[0] / "metrics.csv"),
            "benchmark": json.loads(self._table.read_text()) if self._table.is_file() else None,
            **{f"fit_{key}": fit.get(key) for key in ("seconds", "attempts", "precision", "threads", "jobs", "commit")},
            "test_seconds": seconds,
            "test_precision": trainer_precision(made[0]),
            **facts,
            "folder": str(self.folder),
            "commands": self.commands(),
            "fingerprint": self.fingerprint,
            "time": utc_now(),
            "settings": self.settings,
        }
        write_json(self.folder / "result.json", record)

    @property
    def _table(self) -> Path:
        return self.folder / "test" / "benchmark.jsonl"

    def _needed(self, kind: str) -> dict[str, Path]:
        return {argument: run.checkpoint() for argument, run in self.needs[kind].items()}


def runs_of(listing: ExperimentList, name: str) -> list[Run]:
    """Every run of a list, each row once before any row has its second seed, so that the table fills evenly."""
    made: dict[tuple[str, int], Run] = {}

    def needed(stage: Stage | None, seed: int) -> dict[str, Run]:
        rows = {row.name: row for row in listing.rows}
        own = {} if stage is None else stage.needs
        return {
            argument: made[row, seed if seed in rows[row].seeds else rows[row].seeds[0]]
            for argument, row in own.items()
        }

    for row in listing.rows:  # a row needs only rows above
        for seed in row.seeds:
            needs = {"fit": needed(row.fit, seed), "test": needed(row.test, seed)}
            made[row.name, seed] = Run(name, row, seed, needs)
    rounds = max(len(row.seeds) for row in listing.rows)
    turns = ((row, row.seeds[turn]) for turn in range(rounds) for row in listing.rows if turn < len(row.seeds))
    return [made[row.name, seed] for row, seed in turns]


def useful_seconds(attempts: list[dict[str, Any]], ended: float) -> float:
    """Time that went into the weights: of an attempt that was stopped, up to the checkpoint that was gone on from."""
    attempt, total = attempts[-1], 0.0
    while True:
        total += ended - attempt["began"]
        if attempt["from"] is None:
            return total
        ended = attempt["from_time"]
        attempt = [earlier for earlier in attempts if earlier["began"] <= ended][-1]


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def trainer_precision(folder: Path) -> str | None:
    """What the config.yaml of a run says."""
    return (read_yaml(folder / "config.yaml").get("trainer") or {}).get("precision")


def text(value: Any) -> str:
    """A value as the command line takes it."""
    return str(value) if isinstance(value, str | Path) else json.dumps(value)
