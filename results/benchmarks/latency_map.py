"""Picture of the benchmark table, mAP against time: a part of ``make bench``.

    python -m results.benchmarks.latency_map

It draws the newest row of each experiment.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from callbacks.benchmark.rows import read_rows
from datamodules.program_help import ProgramParser
from results.benchmarks.page import Row

LEAST_SPAN = 6.0
"""Points of mAP that the picture shows at least, so that a tenth of one does not look like much."""


def drawn_rows(rows: list[Row]) -> list[Row]:
    """The newest row of each experiment that has both figures, of the device and protocol of the newest row of all.

    Delays, which a protocol names too, may differ: predictions are scored in the same way.
    """
    measured = []
    for row in rows:
        if row["map"] is not None:
            protocol, _, late = row["protocol"].partition(", answers ")
            measured.append(row | {"protocol": protocol, "late": late})
    if not measured:
        raise ValueError("no row has an mAP; run python main.py test --config configs/<experiment>.yaml first")
    last = measured[-1]
    alike = [row for row in measured if all(row[key] == last[key] for key in ("device", "threads", "protocol"))]
    return list({row["experiment"]: row for row in alike}.values())


def draw(rows: list[Row], path: Path) -> None:
    """Students as points, by the time of a new frame over that of their teacher's clip; clip detectors as lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = drawn_rows(rows)
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.axvline(1, color="C1", linestyle=":")
    students = [row for row in rows if row["speedup"] is not None]
    best = max(students, key=lambda row: row["map"], default=None)
    slowest = min(students, key=lambda row: row["speedup"], default=None)
    for row in rows:
        value, label = 100 * row["map"], ", ".join(filter(None, [row["experiment"], row["late"]]))
        beside = {"textcoords": "offset points", "fontsize": 9}
        if row["speedup"] is not None:
            axes.scatter(1 / row["speedup"], value, color="C0")
            # Students nearly alike would write over each other.
            height, (side, away) = 6 if row is best else -14, ("left", 8) if row is slowest else ("right", -8)
            axes.annotate(label, (1 / row["speedup"], value), xytext=(away, height), ha=side, **beside)
        elif row["gflops_unit"] == "clip":
            axes.axhline(value, color="C1", linestyle="--")
            axes.annotate(f"{label}, a clip for every frame", (0, value), xytext=(6, -12), **beside)
    axes.set_xlabel("time of a new frame over that of the teacher's clip, timed in turn")
    axes.set_ylabel(f"{rows[-1]['protocol']}, %")
    axes.set_title(f"{rows[-1]['device']}, {rows[-1]['threads']} threads, batch 1", fontsize=10)
    axes.grid(alpha=0.3)
    axes.margins(x=0.15, y=0.2)
    axes.set_xlim(left=0)
    low, high = axes.get_ylim()
    wider = max(0.0, LEAST_SPAN - (high - low)) / 2
    axes.set_ylim(low - wider, high + wider)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


if __name__ == "__main__":
    parser = ProgramParser(__doc__, "python -m results.benchmarks.latency_map")
    parser.add_argument("--table", type=Path, default=Path("results/benchmark.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("results/pages/latency_map.png"))
    arguments = parser.parse_args()
    draw([asdict(row) for row in read_rows(arguments.table)], arguments.out)
    print(f"written to {arguments.out}")
