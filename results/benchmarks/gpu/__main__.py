"""Speed of teacher, students and training on one GPU, in eight minutes at most: ``make bench-gpu``.

    python -m results.benchmarks.gpu

Writes results/pages/gpu.md, and gpu.jsonl beside it with a row for everything measured, as it is measured: a program
that is stopped leaves what it has. Without a GPU it runs with --device cpu --size tiny, which tries the program alone:
CUDA graphs and TF32 are skipped there.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from callbacks.benchmark.provenance import now
from datamodules.errors import UserError, shown_in_one_line
from datamodules.files import require_writable, write_whole
from datamodules.program_help import ProgramParser
from results.benchmarks.gpu.parts import MEASURES, deadlines
from results.benchmarks.gpu.processes import Settings, rows_until
from results.benchmarks.gpu.steps import COMPARED_CLIPS, COMPARED_FRAMES
from results.benchmarks.gpu.text import render
from results.benchmarks.page import Row
from results.experiments.provenance import commit

MINUTES = 8.0
MARGIN_SECONDS = 10.0
"""Left for the start of the program and for stopping a part."""


def chosen_device(name: str | None) -> str:
    """The device to measure.

    Raises:
        UserError: there is no GPU, and no other device was asked for.
    """
    if name is None and not torch.cuda.is_available():
        raise UserError("there is no CUDA GPU here to measure", remedy="--device cpu --size tiny tries the program")
    device = torch.device(name or "cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"there is no CUDA GPU here, so no {name}", where="--device", remedy="take cpu")
    if device.type not in ("cuda", "cpu"):
        raise UserError(f"is {name}, but only CUDA GPUs are measured", where="--device", remedy="take cuda or cpu")
    return f"cuda:{device.index or 0}" if device.type == "cuda" else "cpu"


def measure_all(parts: list[str], settings: Settings, minutes: float, out: Path, command: str) -> list[Row]:
    """Measure part after part within the time, and keep page and rows after each row."""
    begin = time.monotonic()
    until = deadlines(parts, begin, max(60 * minutes - MARGIN_SECONDS, 1.0))
    facts = {"command": command, "commit": commit(Path(__file__).parent), "time": now()}
    facts |= {"frames": COMPARED_FRAMES, "clips": COMPARED_CLIPS}
    rows: list[Row] = []

    def keep() -> None:
        lines = [json.dumps(row) for row in [{"part": "run", **facts}, *rows]]
        write_whole(out.with_suffix(".jsonl"), "\n".join(lines) + "\n")
        write_whole(out, render(rows, facts | {"minutes": (time.monotonic() - begin) / 60}))

    with tqdm(total=round(60 * minutes), unit="s", bar_format="{l_bar}{bar}| {n:.0f}/{total:.0f} s {postfix}") as bar:
        for part in parts:
            bar.set_description(part)
            for row in rows_until(MEASURES[part], settings, until[part], part):
                bar.n = min(round(time.monotonic() - begin), bar.total)
                is_new = row is not None and not (row["part"] == "machine" and row in rows)
                if is_new:
                    rows.append(row)
                    keep()
                    bar.set_postfix_str(f"{len(rows)} rows, last: {row.get('network', '')} {row.get('form', '')}")
                bar.refresh()
    return rows


def main(args: list[str] | None = None) -> None:
    parser = ProgramParser(__doc__, "python -m results.benchmarks.gpu")
    parser.add_argument("--device", help="cuda, cuda:1 or cpu (the first GPU)")
    parser.add_argument("--size", choices=("vit_b", "tiny"), default="vit_b", help="tiny: the demo's networks alone")
    parser.add_argument("--parts", nargs="+", choices=MEASURES, default=list(MEASURES), help="what to measure")
    parser.add_argument("--rounds", type=int, default=30, help="timed calls of each step, at most (%(default)s)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after which it ends (%(default)g)")
    parser.add_argument("--out", type=Path, default=Path("results/pages/gpu.md"), help="the page; .jsonl beside it")
    given = parser.parse_args(args)
    words = sys.argv[1:] if args is None else args
    with shown_in_one_line():
        settings = Settings(chosen_device(given.device), given.size, given.rounds)
        require_writable(given.out)
        # A child that measures must not outlive its parent: SIGTERM ends the program as Ctrl-C does.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        command = " ".join(["python -m results.benchmarks.gpu", *words])
        rows = measure_all(given.parts, settings, given.minutes, given.out, command)
    print(f"{sum('form' in row for row in rows)} rows, written to {given.out}")


if __name__ == "__main__":
    main()
