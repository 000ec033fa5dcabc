"""Train or test one run: what a rule of ``results/Snakefile`` calls.

    python -m results.experiments.stage fit results/lists/students.yaml students/distill_dsta-seed0

An interrupted training resumes from its newest whole checkpoint, as long as its settings (configs, overrides, the
trainings it starts from) are the same. With others it begins anew, and what was there is kept in
``runs/experiments/<list>/superseded``. A training that has come to its end is never repeated with the same settings;
delete its folder for that.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from datamodules.errors import UserError, shown_in_one_line
from datamodules.program_help import ProgramParser

from .files import is_readable, last_values, read_json, read_yaml, versions, write_json
from .lists import read_list
from .provenance import commit, machine, refuse_uncommitted
from .runs import Kind, Run, runs_of

TAIL_LINES = 20
PATIENCE_SECONDS = 10.0
"""Time that a program has to end after it was asked to."""
ANEW = "to begin anew delete its folder"

Facts = dict[str, Any]
"""Circumstances of a command: commit, machine, threads, runs at a time."""


def fit(run: Run, command: Sequence[str], facts: Facts) -> None:
    """Train a run and record it, or go on with a training that was interrupted.

    Args:
        command: what stands before the arguments: ``["python", "main.py"]``.
    """
    settings, known = settings_of(run, "fit"), attempts_of(run)
    if known and as_text(known["settings"]) != as_text(settings):
        print(f"{run}: its settings have changed; what was there is kept in {set_aside(run)}")
        known = None
    if known and (ended := known.get("ended")) and is_readable(Path(ended["checkpoint"])):
        print(f"{run}: trained already with the same settings; {ANEW} ({run.folder})")
        write_json(run.trained, ended)
        return

    checkpoint = run.newest_checkpoint() if known else None
    attempt = {"began": time.time(), "from": checkpoint and str(checkpoint), "commit": facts["commit"]}
    attempt["from_time"] = checkpoint and checkpoint.stat().st_mtime
    attempts = [*(known or {"attempts": []})["attempts"], attempt]
    write_json(run.folder / "attempts.json", {"settings": settings, "attempts": attempts})
    call(run, "fit", command, run.arguments("fit", checkpoint, needed(run, "fit")))

    if (last := run.last_checkpoint()) is None:
        raise UserError(f"training left no last.ckpt below {run.folder / 'fit'}", remedy="ModelCheckpoint writes it")
    ended = {
        "checkpoint": str(last),
        "seconds": useful_seconds(attempts, time.time()),
        "attempts": len(attempts),
        "precision": trainer_precision(last.parent.parent),
        **facts,
        "commit": commits_of(attempts),
    }
    write_json(run.folder / "attempts.json", {"settings": settings, "attempts": attempts, "ended": ended})
    write_json(run.trained, ended)


def test(run: Run, command: Sequence[str], facts: Facts) -> None:
    """Test a run and record what was measured."""
    trained = read_json(run.trained) if run.row.fit else None
    table = run.folder / "test" / "benchmark.jsonl"
    table.unlink(missing_ok=True)  # otherwise the row of an earlier test would be taken for this one
    before, began = versions(run.folder / "test"), time.monotonic()
    checkpoint = whole_checkpoint(run) if run.row.fit else None
    call(run, "test", command, run.arguments("test", checkpoint, needed(run, "test")))

    made = [folder for folder in versions(run.folder / "test") if folder not in before]
    made = [folder for folder in made if (folder / "metrics.csv").is_file()]
    if not made:
        raise UserError(f"the test logged no metrics.csv below {run.folder / 'test'}")
    record = {
        "experiment": run.row.name,
        "seed": run.seed,
        "config": run.stage("fit" if run.row.fit else "test").config,
        "metrics": last_values(made[0] / "metrics.csv"),
        "benchmark": json.loads(table.read_text()) if table.is_file() else None,
        **{
            f"fit_{key}": (trained or {}).get(key)
            for key in ("seconds", "attempts", "precision", "threads", "jobs", "commit")
        },
        "test_seconds": time.monotonic() - began,
        "test_precision": trainer_precision(made[0]),
        **facts,
        "folder": str(run.folder),
        "commands": run.commands(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(run.tested, record)


def settings_of(run: Run, kind: Kind) -> dict[str, Any]:
    """Return everything that a list says about a command, as JSON keeps it."""
    needs = {argument: read_json(needed.trained) for argument, needed in run.needs[kind].items()}
    settings = {"command": run.command(kind), "configs": run.configs(kind), "needs": needs}
    return json.loads(json.dumps(settings, sort_keys=True, default=str))


def as_text(settings: dict[str, Any]) -> str:
    """Return settings as text, in which 1, 1.0 and true differ: a Trainer takes 1 for a batch and 1.0 for all."""
    return json.dumps(settings, sort_keys=True)


def attempts_of(run: Run) -> dict[str, Any] | None:
    """Return what is recorded of its training so far."""
    return read_json(run.folder / "attempts.json")


def set_aside(run: Run) -> Path:
    """Move what earlier settings gave out of the way; nothing is deleted."""
    parent = run.folder.parent / "superseded"
    parent.mkdir(exist_ok=True)
    place = next(place for n in range(10**6) if not (place := parent / f"{run.folder.name}-{n}").exists())
    run.folder.rename(place)
    return place


def whole_checkpoint(run: Run) -> Path:
    """Return the checkpoint of a training that has come to its end."""
    record = read_json(run.trained)
    if record is None:
        raise UserError(f"{run} is not trained: there is no {run.trained}")
    checkpoint = Path(record["checkpoint"])
    if not is_readable(checkpoint):
        remedy = f"delete {run.trained}, and {run} is trained again"
        raise UserError("the checkpoint is gone or cut off", where=checkpoint, remedy=remedy)
    return checkpoint


def needed(run: Run, kind: Kind) -> dict[str, Path]:
    """Return the checkpoints that a command starts from, by argument."""
    return {argument: whole_checkpoint(other) for argument, other in run.needs[kind].items()}


def call(run: Run, kind: Kind, command: Sequence[str], arguments: list[str]) -> None:
    """Run one command to its end, its output appended to a log.

    It ends with us: with Ctrl-C, with SIGTERM, and where the program that called us is gone.
    """
    log = run.folder / f"{kind}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    parent = os.getppid()
    with log.open("ab") as output:
        output.write(f"$ {shlex.join(['python', 'main.py', *arguments])}\n".encode())
        output.flush()
        beginning = output.tell()
        # Its own session, so that a stop reaches its workers too.
        process = subprocess.Popen(
            [*command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while (status := process.poll()) is None:
                if os.getppid() != parent:
                    raise UserError("what started it has ended")
                time.sleep(0.1)
        finally:
            stop(process)
    if status != 0:
        resumed = kind == "fit" and any(argument.startswith("--ckpt_path=") for argument in arguments)
        anew = f"; it went on from a checkpoint, {ANEW} ({run.folder})" if resumed else ""
        print(tail(log.read_bytes()[beginning:]), file=sys.stderr)
        raise UserError(f"{kind} ended with status {status}, {log}{anew}", where=str(run))


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a process and its workers to end, and end them where they do not."""
    try:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def tail(output: bytes) -> str:
    """Return the last lines, indented; of a progress bar what was last seen of it."""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in output.decode(errors="replace").split("\n")]
    return "\n".join(f"    {line}" for line in [line for line in lines if line.strip()][-TAIL_LINES:])


def useful_seconds(attempts: Sequence[dict[str, Any]], ended: float) -> float:
    """Add up the time that went into the weights: of an interrupted attempt, until the checkpoint that was used."""
    total = 0.0
    for attempt in useful_attempts(attempts):
        total += ended - attempt["began"]
        ended = attempt["from_time"]
    return total


def useful_attempts(attempts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the attempts that went into the weights, the last first."""
    useful = [attempts[-1]]
    while (ended := useful[-1]["from_time"]) is not None:
        useful.append([earlier for earlier in attempts if earlier["began"] <= ended][-1])
    return useful


def commits_of(attempts: Sequence[dict[str, Any]]) -> str:
    """Name the commits of the code that made the weights, in their order."""
    commits = [attempt.get("commit", "unknown") for attempt in reversed(useful_attempts(attempts))]
    return ", ".join(dict.fromkeys(commits))


def trainer_precision(folder: Path) -> str | None:
    """Return what the config.yaml of a run says."""
    return ((read_yaml(folder / "config.yaml") or {}).get("trainer") or {}).get("precision")


def main(args: Sequence[str] | None = None) -> None:
    made = ProgramParser(__doc__, "python -m results.experiments.stage")
    made.add_argument("kind", choices=("fit", "test"))
    made.add_argument("list", type=Path)
    made.add_argument("run", help="<list>/<row>-seed<seed>")
    made.add_argument("--threads", type=int, default=None, help="of the command, as recorded")
    made.add_argument("--jobs", type=int, default=None, help="runs at a time, as recorded")
    made.add_argument("--allow_dirty", type=int, default=0, help="1: also with changes that no commit has")
    made.add_argument(
        "--command",
        default=shlex.join([sys.executable, "main.py"]),
        help="what stands before the arguments of a run, such as 'nice python main.py'",
    )
    given = made.parse_args(args)
    runs = {run.key: run for run in runs_of(read_list(given.list), given.list.stem)}
    if given.run not in runs:
        raise UserError(f"no run {given.run}; there are {', '.join(runs)}", where=given.list)
    if not given.allow_dirty:
        refuse_uncommitted(Path())
    signal.signal(signal.SIGTERM, interrupt)
    facts = {"machine": machine(), "threads": given.threads, "jobs": given.jobs, "commit": commit(Path())}
    {"fit": fit, "test": test}[given.kind](runs[given.run], shlex.split(given.command), facts)


def interrupt(number: int, frame: object) -> NoReturn:
    """Treat a request to end as Ctrl-C is."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        with shown_in_one_line():
            main()
    except KeyboardInterrupt:
        sys.exit("stopped; the same call of snakemake goes on from here")
