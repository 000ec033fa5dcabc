"""The mean over the splits of a data set, as JHMDB's results are published.

Once every split has been tested under a name of its own,

::

    python -m callbacks.benchmark.split_mean evad_jhmdb_1 evad_jhmdb_2 evad_jhmdb_3 --name evad_jhmdb

enters a row into the benchmark table whose accuracy and cost are the means of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from callbacks.benchmark.provenance import now
from callbacks.benchmark.rows import BenchmarkRow, enter, read_rows
from datamodules.errors import UserError, shown_in_one_line
from datamodules.program_help import ProgramParser

ALIKE = ("protocol", "video_protocol", "parameters", "gflops_unit", "frame")
"""Columns that must be equal for a mean to mean something."""


def mean_row(rows: Sequence[BenchmarkRow], name: str) -> BenchmarkRow:
    """Return one row of several: fractional numbers averaged, what is equal kept, everything else listed.

    A number that only some rows have is left out.

    Raises:
        UserError: the rows are not of one protocol and network, or one has no mAP.
    """
    first = rows[0]
    for row in rows:
        for key in ALIKE:
            if getattr(row, key) != getattr(first, key):
                raise UserError(
                    f"{row.experiment} has {key} {getattr(row, key)!r}, "
                    f"{first.experiment} has {getattr(first, key)!r}: "
                    "only results of one network under one protocol can be averaged"
                )
        if row.map is None:
            raise UserError(f"{row.experiment} has no mAP", remedy="test it with ground truth first")
    records = [asdict(row) for row in rows]
    mean = BenchmarkRow(**{key: _combined([record[key] for record in records]) for key in records[0]})
    return replace(mean, experiment=name, protocol=f"{first.protocol}, mean of {len(rows)} splits", time=now())


def _combined(values: list[Any]) -> Any:
    if all(value == values[0] for value in values):
        return values[0]
    if all(isinstance(value, float) for value in values):
        return sum(values) / len(values)
    if any(isinstance(value, float) for value in values):
        return None
    return ", ".join(map(str, values))


def main(args: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = ProgramParser(__doc__, "python -m callbacks.benchmark.split_mean")
    parser.add_argument("experiments", nargs="+", help="names of rows, one a split; the newest of each is taken")
    parser.add_argument("--name", required=True, help="name of the new row")
    parser.add_argument("--folder", type=Path, default=Path("results"), help="where benchmark.jsonl is kept")
    given = parser.parse_args(args)
    if len(set(given.experiments)) < max(len(given.experiments), 2):
        parser.error("name at least two experiments, each once")
    file = given.folder / "benchmark.jsonl"
    newest = {row.experiment: row for row in read_rows(file)} if file.is_file() else {}
    absent = [name for name in given.experiments if name not in newest]
    if absent:
        raise UserError(f"{file} has no row of {', '.join(absent)}", remedy=f"test it with --name {absent[0]}")
    print(enter(given.folder, mean_row([newest[name] for name in given.experiments], given.name)))


if __name__ == "__main__":
    with shown_in_one_line():
        main()
