"""The benchmark table as a picture, mAP against latency: ``python -m tests.bench_picture``, part of ``make bench``."""

from __future__ import annotations

import argparse
from pathlib import Path

from callbacks.benchmark import read_rows
from tests.bench_page import Row


def drawn_rows(rows: list[Row]) -> list[Row]:
    """The newest row of each experiment that has both figures, of the device and protocol of the newest row of all."""
    measured = [row for row in rows if row["map"] is not None]
    if not measured:
        raise ValueError("no row has an mAP; run python main.py test --config configs/<experiment>.yaml first")
    last = measured[-1]
    alike = [row for row in measured if all(row[key] == last[key] for key in ("device", "threads", "protocol"))]
    return list({row["experiment"]: row for row in alike}.values())


def draw(rows: list[Row], path: Path) -> None:
    """Every row a point: median latency of a new frame, mAP."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = drawn_rows(rows)
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for row in rows:
        is_student = row["gflops_unit"] == "frame"
        axes.scatter(
            row["latency_p50_ms"],
            100 * row["map"],
            marker="o" if is_student else "s",
            color="C0" if is_student else "C1",
        )
        axes.annotate(
            row["experiment"],
            (row["latency_p50_ms"], 100 * row["map"]),
            xytext=(5, 4),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xlabel("median latency of a new frame, ms (squares: a whole clip for every new frame)")
    axes.set_ylabel(f"{rows[-1]['protocol']}, %")
    axes.set_title(f"{rows[-1]['device']}, {rows[-1]['threads']} threads, batch 1", fontsize=10)
    axes.grid(alpha=0.3)
    axes.set_xlim(left=0)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, default=Path("results/benchmark.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("results/latency_map.png"))
    arguments = parser.parse_args()
    draw(read_rows(arguments.table), arguments.out)
    print(f"written to {arguments.out}")
