"""Train and test a list of experiments, and make the table and the picture of what they measured.

    python -m results.experiments results/<list>.yaml

It runs each row with each seed, ``python main.py fit`` and then ``test``, every row once before any has its second
seed. A run that is done is skipped. After a stop (Ctrl-C, kill, power) the same command takes up what was left: a run
that has a checkpoint goes on from it. A run that fails is told with the end of its log, and the others go on; the exit
status is then 1. What a row was trained or tested with is remembered: where its configs or overrides have changed
(values, not comments) it runs again, and so do the rows that need it; what it gave before is kept in
``runs/experiments/<list>/superseded``. ``--dry-run`` says beforehand what would run and why. A change that does not
matter, such as the new name of a class, is passed over with ``--accept-changes``.

Beside the list are written ``<list>.jsonl`` (a line a run), ``<list>.md`` (a row an experiment: mean and standard
deviation over seeds, and the commands) and ``<list>.png``; logs, checkpoints, metrics and config.yaml of each run stay
in ``runs/experiments/<list>/<row>-seed<seed>``. Two runners may work on one list at the same time.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from datamodules.errors import UserError, shown_in_one_line

from . import experiment_list
from .experiment_files import write_text
from .experiment_job import Job
from .experiment_list import ExperimentList, read_list
from .experiment_queue import plan, work
from .experiment_run import Run, runs_of
from .experiment_table import collect, table_page, unknown_metrics


def main(args: list[str] | None = None) -> int:
    """The exit status: 0, or 1 where a run failed."""
    arguments = parser().parse_args(args)
    listing, file = read_list(arguments.list), arguments.list
    runs = runs_of(listing, file.stem)
    if arguments.table_only:
        publish(file, listing, runs, picture=True)
        return 0

    selected = select(runs, arguments.rows, arguments.seeds)
    if arguments.accept_changes:
        for run in selected:
            for change in run.accept_changes():
                print(f"{run}: accepted {change}")
        publish(file, listing, runs, picture=True)
        return 0

    states = plan(selected)
    if arguments.dry_run:
        for run, state in states.items():
            print(f"{run}: {state.todo} ({state.why})")
        return 0

    jobs, cores = arguments.jobs, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = arguments.threads or max(1, cores // jobs)
    signal.signal(signal.SIGTERM, interrupt)
    failures = work(
        states,
        begin=lambda run: Job(run, shlex.split(arguments.command), threads, lambda: facts(threads, jobs), tqdm.write),
        jobs=jobs,
        finished=lambda run: publish(file, listing, runs, picture=False),
    )
    publish(file, listing, runs, picture=True)
    if failures:
        print(f"{len(failures)} of {len(states)} runs failed: {'; '.join(map(str, failures))}", file=sys.stderr)
    return 1 if failures else 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m results.experiments",
        description=__doc__,
        epilog=experiment_list.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("list", type=Path, help="the list, results/<list>.yaml")
    made.add_argument("--rows", nargs="+", help="only these, and the rows whose checkpoints they lack")
    made.add_argument("--seeds", nargs="+", type=int, help="only these")
    made.add_argument("--jobs", type=positive, default=1, help="runs at a time")
    made.add_argument("--threads", type=positive, help="of each run; by default the cores over the jobs")
    made.add_argument("--dry-run", action="store_true", help="say what would run and why, and end")
    made.add_argument(
        "--accept-changes",
        action="store_true",
        help="keep what the rows have measured although their settings have changed since, as after the renaming of a "
        "class; say what is accepted, and end",
    )
    made.add_argument("--table-only", action="store_true", help="only make table and picture anew")
    made.add_argument(
        "--command",
        default=shlex.join([sys.executable, "main.py"]),
        help="what stands before the arguments of a run, such as 'nice python main.py' (default: %(default)s)",
    )
    return made


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def select(runs: list[Run], rows: list[str] | None, seeds: list[int] | None) -> list[Run]:
    """Those of the named rows and seeds."""
    there = list(dict.fromkeys(run.row.name for run in runs))
    if unknown := [name for name in rows or () if name not in there]:
        raise UserError(f"no row {', '.join(unknown)}; there are {', '.join(there)}")
    selected = [run for run in runs if (not rows or run.row.name in rows) and (not seeds or run.seed in seeds)]
    if not selected:
        raise UserError(f"no run has a seed of {seeds}; there are {', '.join(map(str, runs))}")
    return selected


def facts(threads: int, jobs: int) -> dict[str, Any]:
    """What is recorded of where and how a process runs that begins now."""
    # Here, since they take seconds to import, and a list with nothing to do has no need of them.
    import torch

    from callbacks.benchmark import commit, device_name

    machine = device_name(torch.device("cpu"))
    if torch.cuda.is_available():
        machine = f"{device_name(torch.device('cuda'))}, {machine}"
    return {"machine": machine, "threads": threads, "jobs": jobs, "commit": commit(Path(__file__).parent)}


def publish(file: Path, listing: ExperimentList, runs: list[Run], *, picture: bool) -> None:
    """Write the table of all results, and the picture, beside the list."""
    lines = collect(file.with_suffix(".jsonl"), runs)
    if not lines:
        return
    write_text(file.with_suffix(".md"), table_page(file, listing, runs, lines))
    if not picture:
        return
    for message in unknown_metrics(listing, lines):
        print(message, file=sys.stderr)
    from .experiment_picture import draw

    try:
        draw(listing, lines, file.with_suffix(".png"))
    except ModuleNotFoundError:
        print("no picture without matplotlib; pip install -e '.[dev]' brings it", file=sys.stderr)
    print(f"written to {file.with_suffix('.md')}")


def interrupt(number: int, frame: Any) -> None:
    """A request to end is treated as Ctrl-C is."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    with shown_in_one_line():
        try:
            sys.exit(main())
        except KeyboardInterrupt:
            sys.exit("stopped; the same command goes on from here")
