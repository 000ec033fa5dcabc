"""Make table and picture of a list from what its runs have measured so far.

    python -m results.tables results/lists/students.yaml

The results of finished runs are added to ``results/<list>.jsonl``, a line per run. ``results/pages`` gets the picture
``<list>.png`` and the page ``<list>.md``. The page has a row per experiment, with mean and standard deviation over
seeds, and the commands.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from datamodules.errors import UserError, shown_in_one_line
from datamodules.files import write_whole
from datamodules.program_help import ProgramParser
from results.experiments.lists import pages_of, read_list, stored_results
from results.experiments.runs import runs_of

from .picture import draw
from .table import collect, table_page, unknown_metrics


def publish(file: Path) -> None:
    """Write the table and the picture of a list."""
    listing = read_list(file)
    runs = runs_of(listing, file.stem)
    lines = collect(stored_results(file), runs)
    if not lines:
        raise UserError("no run has come to its end yet", where=file, remedy=f"run snakemake {file.stem}")
    page = pages_of(file) / f"{file.stem}.md"
    write_whole(page, table_page(file, listing, runs, lines))
    for message in unknown_metrics(listing, lines):
        print(message, file=sys.stderr)
    try:
        draw(listing, lines, page.with_suffix(".png"))
    except ModuleNotFoundError:
        print("no picture without matplotlib; pip install -e '.[dev]' brings it", file=sys.stderr)
    print(f"written to {page}")


def main(args: Sequence[str] | None = None) -> None:
    parser = ProgramParser(__doc__, "python -m results.tables")
    parser.add_argument("list", type=Path, help="the list, results/lists/<list>.yaml")
    publish(parser.parse_args(args).list)


if __name__ == "__main__":
    with shown_in_one_line():
        main()
