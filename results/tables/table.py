"""The table of a list: its runs as lines of JSON, its experiments as rows of Markdown."""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodules.files import write_whole
from results.experiments.files import read_json
from results.experiments.lists import ExperimentList, Metric, Row
from results.experiments.runs import Run

from .markdown import markdown_table

Line = dict[str, Any]

NOTE = """\
± is the standard deviation over n seeds (of the sample, n - 1). Training is the wall time of `fit` in minutes, start-up
and validation included, on a machine that may have been busy with other runs.
"""


def collect(file: Path, runs: Sequence[Run]) -> list[Line]:
    """Return the newest result of each run, from the file and from its folder; the file then has all, in list order.

    Lines of rows or seeds that the list does not name (any more) stay, after the others.
    """
    lines = [json.loads(text) for text in file.read_text().splitlines() if text.strip()] if file.is_file() else []
    found = [line for run in runs if (line := read_json(run.tested))]
    newest: dict[tuple[str, int], Line] = {(run.row.name, run.seed): {} for run in runs}
    for line in sorted(lines + found, key=lambda line: line["time"]):
        newest[line["experiment"], line["seed"]] = line
    lines = [line for line in newest.values() if line]
    if lines:
        write_whole(file, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
    return lines


def value_of(line: Line, metric: Metric) -> float | None:
    """Return a run's measurement under the key of a column: percent as such, None where there is no number."""
    group, _, entry = metric.key.partition("/")
    value = (line["benchmark"] or {}).get(entry) if group == "benchmark" else line["metrics"].get(metric.key)
    if value is None or isinstance(value, str):
        return None
    return 100 * value if metric.percent else value


def lines_of(row: Row, lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if line["experiment"] == row.name and line["seed"] in row.own_seeds]


def values_of(row: Row, metric: Metric, lines: Sequence[Line]) -> list[float]:
    values = (value_of(line, metric) for line in lines_of(row, lines))
    return [value for value in values if value is not None]


def unknown_metrics(listing: ExperimentList, lines: Sequence[Line]) -> list[str]:
    """A message for each column that no run has anything for: its key may be misspelt."""
    own = [line for row in listing.rows for line in lines_of(row, lines)]
    there = {
        key for line in own for key in (*line["metrics"], *(f"benchmark/{key}" for key in line["benchmark"] or ()))
    }
    empty = [metric.key for metric in listing.metrics if metric.key not in there] if own else []
    return [f"no run has {key}; they have {', '.join(sorted(there))}" for key in empty]


def table_page(file: Path, listing: ExperimentList, runs: Sequence[Run], lines: Sequence[Line]) -> str:
    """Return the text of the Markdown file."""
    own = [line for row in listing.rows for line in lines_of(row, lines)]
    parts = [
        f"# {listing.title}",
        listing.description.strip(),
        rows_of(listing, lines),
        NOTE.strip(),
        measured_on(own),
    ]
    parts += [other_commands(runs, lines), f"Written by `python -m results.tables {file}`.", commands(listing, runs)]
    return "\n\n".join(part for part in parts if part) + "\n"


def rows_of(listing: ExperimentList, lines: Sequence[Line]) -> str:
    """Return the table, one row per experiment."""
    head = ["experiment", *(metric.title or metric.key for metric in listing.metrics), "training min", "n"]
    rows = []
    for row in listing.rows:
        own = lines_of(row, lines)
        measured = [cell(values_of(row, metric, lines), metric.digits, len(own)) for metric in listing.metrics]
        minutes = [line["fit_seconds"] / 60 for line in own if line["fit_seconds"] is not None]
        spent = f"{statistics.mean(minutes):.1f}" if minutes else "-"
        rows.append([row.title, *measured, spent, str(len(own)) if own else "-"])
    return markdown_table(head, rows)


def cell(values: Sequence[float], digits: int, runs: int) -> str:
    """Mean and spread, where runs differ at all (GFLOPs do not); how many runs have the value where not all do."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(set(values)) > 1 else ""
    of = f" ({len(values)} of {runs})" if len(values) < runs else ""
    return f"{statistics.mean(values):.{digits}f}{spread}{of}"


def measured_on(lines: Sequence[Line]) -> str:
    """Return machine and circumstances, each kind once."""
    kinds = dict.fromkeys(
        f"{line['machine']}; threads a run: {of_both(line, 'threads')}, runs at a time: {of_both(line, 'jobs')}; "
        f"precision of training: {line['fit_precision'] or '-'}, of the test: {line['test_precision'] or '-'}"
        for line in lines
    )
    named = [commits for line in lines for commits in (line["fit_commit"], line["commit"]) if commits]
    commits = dict.fromkeys(commit for commits in named for commit in commits.split(", "))
    return "\n".join([*(f"- {kind}" for kind in kinds), f"- commits {', '.join(commits)}"]) if lines else ""


def of_both(line: Line, fact: str) -> str:
    """A fact of training and test, once where both had it alike; training minutes depend on the former."""
    trained = line.get(f"fit_{fact}")
    return str(line[fact]) if trained in (None, line[fact]) else f"{trained} in training and {line[fact]} in the test"


def other_commands(runs: Sequence[Run], lines: Sequence[Line]) -> str:
    """Say how many results another command gave than the one that the list has now."""
    current = {(run.row.name, run.seed): run.commands() for run in runs if run.row.tag is None}
    of_list = [line for line in lines if (line["experiment"], line["seed"]) in current]
    changed = [line for line in of_list if line["commands"] != current[line["experiment"], line["seed"]]]
    if not changed:
        return ""
    return (
        f"{len(changed)} of {len(of_list)} runs were started with other arguments than the list has now (other "
        "settings, or other names of the same); the `.jsonl` of the list has the commands of every run."
    )


def commands(listing: ExperimentList, runs: Sequence[Run]) -> str:
    """Return the commands of each row, with its first seed."""
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run.row.name, run)
    text = ["## Commands", "With each row's first seed; other seeds differ in `seed_everything` and the folder."]
    for row in listing.rows:
        if row.tag is not None:
            text.append(f"{row.title}: not run any more; the page of this list at the tag `{row.tag}` has its command.")
            continue
        lines = [shlex.join(["python", "main.py", *arguments]) for arguments in first[row.name].commands()]
        text.append("\n".join([f"{row.title}:", "```sh", *lines, "```"]))
    return "\n\n".join(text)
