"""A page of measurements in parts: each measured by itself, kept as JSON beside the page, rendered together."""

from __future__ import annotations

import json
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from callbacks.benchmark.provenance import device_name, now
from callbacks.measures.latency import Interleaved, Step, interleave
from datamodules.files import write_whole
from datamodules.program_help import ProgramParser
from results.experiments.provenance import commit
from results.tables.markdown import markdown_table

Row = dict[str, Any]
Columns = dict[str, Callable[[Row], str]]


class Part(NamedTuple):
    """One table of a page."""

    heading: str
    note: str
    """Text above the table; may name values of its first row in braces."""
    columns: Columns


def table(rows: list[Row], columns: Columns) -> str:
    """Return the table of a part in Markdown."""
    return markdown_table(list(columns), [[cell(row) for cell in columns.values()] for row in rows])


def row_ratio(timed: Interleaved, name: str, reference: str) -> float:
    """Median over rounds of one step's time over another's."""
    pairs = zip(timed.latencies[name].samples, timed.latencies[reference].samples, strict=True)
    return statistics.median(own / other for own, other in pairs)


def timed_in_turn(
    steps: Mapping[str, Step], *, rounds: int, warmup: int, synchronize: Callable[[], None], untimed: int = 0
) -> Interleaved:
    """Time steps as ``interleave`` does, behind a bar."""
    calls = (rounds + warmup) * len(steps)
    with tqdm(total=calls, desc="timing", unit="call", leave=False, mininterval=1.0) as bar:
        return interleave(
            steps, rounds=rounds, warmup=warmup, synchronize=synchronize, tick=bar.update, untimed=untimed
        )


def memory_mib(device: torch.device, *, peak: bool = False) -> float:
    """Return the memory in use, or its peak, of the process or of a GPU's allocator."""
    if device.type == "cuda":
        return (torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)) / 2**20
    entry = "VmHWM" if peak else "VmRSS"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(entry)) / 2**10


def render(header: str, parts: Mapping[str, Part], results: Mapping[str, Any]) -> str:
    """The page of all parts measured so far."""
    text = header.format(side=results["side"])
    for name, (heading, note, columns) in parts.items():
        if name in results:
            made = results[name]
            text += f"\n## {heading}\n{note.format(**made['rows'][0])}\n{table(made['rows'], columns)}\n"
            took = f", {made['minutes']:.1f} minutes" if "minutes" in made else ""
            text += f"\n{made['machine']}; {made['rounds']} rounds{took}.\n"
    return text


def page_parser(
    description: str, parts: Mapping[str, Part], *, side: int, rounds: int, out: str, prog: str | None = None
) -> ProgramParser:
    """Arguments of a page: which parts to measure anew, where, how often.

    Args:
        side, rounds, out: defaults.
        prog: how the program is called.
    """
    parser = ProgramParser(description, prog)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--side", type=int, default=side, help="pixels of the frames' sides")
    parser.add_argument("--rounds", type=int, default=rounds, help="timed calls of each step")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts), help="what to measure anew")
    parser.add_argument("--out", type=Path, default=Path(out), help="the page; .json beside it")
    return parser


def write_page(
    given: Namespace, header: str, parts: Mapping[str, Part], measure: Callable[[str, torch.device], list[Row]]
) -> None:
    """Measure the parts that are asked for, one after the other, and keep page and figures after each.

    Args:
        given: see ``page_parser``.
        header: the page's beginning; ``{side}`` is the size of the frames.
        measure: part and device -> the rows of its table.
    """
    device, record = torch.device(given.device), given.out.with_suffix(".json")
    results = json.loads(record.read_text()) if record.is_file() else {}
    if results.get("side") != given.side:
        results = {"side": given.side}  # figures of another size do not belong on the same page
    machine = f"{device_name(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    with tqdm(given.parts, unit="part") as bar:
        for part in bar:
            bar.set_description(part)
            begin = time.monotonic()
            torch.manual_seed(0)
            rows = measure(part, device)
            minutes = (time.monotonic() - begin) / 60
            made = f"{machine}, seed 0, commit {commit(Path(__file__).parent)}, {now()[:10]}"
            results[part] = {"machine": made, "rounds": given.rounds, "minutes": minutes, "rows": rows}
            write_whole(record, json.dumps(results, indent=1) + "\n")
            write_whole(given.out, render(header, parts, results))
    print(f"\n{render(header, parts, results)}\nwritten to {given.out}")


def main(
    description: str,
    header: str,
    parts: Mapping[str, Part],
    measure: Callable[[str, torch.device, int, int], list[Row]],
    *,
    side: int,
    rounds: int,
    out: str,
) -> None:
    """Run a page whose parts take nothing but a device, a side in pixels and rounds, see ``page_parser``."""
    given = page_parser(description, parts, side=side, rounds=rounds, out=out).parse_args()
    write_page(given, header, parts, lambda part, device: measure(part, device, given.side, given.rounds))
