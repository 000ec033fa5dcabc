"""The Markdown page of the benchmark: the newest row of each experiment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

if TYPE_CHECKING:
    from callbacks.benchmark.rows import BenchmarkRow

HEADER = """# Benchmark

Written by `python main.py test`; the newest run of each experiment, all runs are in `benchmark.jsonl`.

- **mAP** is in percent, under the protocol named beside it. **Video mAP** is that of tubes; its protocol and the linker
  of the tubes are named beside it.
- **GFLOPs** count a multiply-add once, for the unit beside them, without the decoding of detections. They are those
  executed; "by published arithmetic" is the number that the published implementation needs for the same outputs.
- **Latency** is in milliseconds per step at batch 1, from normalised frames to decoded predictions. Warm-up and loading
  of data are excluded, the device is synchronised. The step is the unit beside GFLOPs. It is one new frame of a stream;
  one full clip, which a sliding window needs for every new frame; or one window of a temporal detector, with the
  optical flow that it needs. The extraction of stored features is not included.
- **Frame** is the height and width in pixels of a detector's frames in these measurements, padding included. They are
  those of the run. Older rows of detectors lack it: they are of the square that the network was made for.
- **Delay** is the number of sampled frames after its own that a prediction waits for.
- **Frames/s** are new frames over the mean latency. **State** is the memory that a stream keeps between two frames.
- **Speed-up** is the teacher's median latency for one full clip over the row's latency for one frame. The two are timed
  in turn in one run, so that a busy machine slows both. Latencies of different rows come from different runs.
- **A runtime in brackets**: rows of `python main.py export --benchmark true`. They begin with uint8 pixels, and an
  untimed call precedes each timed one. A student's teacher ran in the same runtime.
"""


def render_table(rows: Sequence[BenchmarkRow], headings: Sequence[str] | None = None) -> str:
    """Return a Markdown table of the newest row of each experiment, in the order of their first appearance.

    ``headings`` are the columns that are wanted; all by default.
    """
    newest = {row.experiment: row for row in rows}
    shown = list(COLUMNS) if headings is None else list(headings)
    cells = [[COLUMNS[heading](row).replace("|", "/") for heading in shown] for row in newest.values()]
    return tabulate(cells, shown, tablefmt="github", disable_numparse=True) + "\n"


def _map(row: BenchmarkRow) -> str:
    return "-" if row.map is None else f"{100 * row.map:.2f}"


def _video_map(row: BenchmarkRow) -> str:
    value = row.video_map_50
    return "-" if value is None else f"{100 * value:.2f} ({row.video_protocol})"


def _gflops(row: BenchmarkRow) -> str:
    if row.gflops is None:
        return "-"
    incomplete = " (incomplete)" if row.uncounted_operators else ""
    published = row.gflops_published
    compared = "" if published is None else f" ({published:.4g} by published arithmetic)"
    return f"{row.gflops:.4g} / {row.gflops_unit}{incomplete}{compared}"


def _weights(row: BenchmarkRow) -> str:
    return "/".join(Path(row.weights).parts[-2:])


def _speedup(row: BenchmarkRow) -> str:
    return "-" if row.speedup is None else f"{row.speedup:.2f}x"


COLUMNS: dict[str, Callable[[BenchmarkRow], str]] = {
    "experiment": lambda row: row.experiment,
    "weights": lambda row: _weights(row),
    "protocol": lambda row: row.protocol,
    "mAP %": lambda row: _map(row),
    "video mAP@0.5 %": lambda row: _video_map(row),
    "parameters M": lambda row: f"{row.parameters / 1e6:.2f}",
    "delay": lambda row: "-" if row.delay is None else "none" if row.delay == 0 else f"{row.delay} frames",
    "GFLOPs": lambda row: _gflops(row),
    "frame": lambda row: row.frame or "-",
    "p50 ms": lambda row: f"{row.latency_p50_ms:.2f}",
    "p95 ms": lambda row: f"{row.latency_p95_ms:.2f}",
    "p99 ms": lambda row: f"{row.latency_p99_ms:.2f}",
    "frames/s": lambda row: f"{row.frames_per_second:.1f}",
    "speed-up": _speedup,
    "state MiB": lambda row: f"{row.state_mib:.3f}" if row.state_mib else "-",
    "device": lambda row: row.device,
    "threads": lambda row: str(row.threads),
    "precision": lambda row: row.precision,
    "seed": lambda row: "-" if row.seed is None else str(row.seed),
    "commit": lambda row: row.commit,
}
"""Heading to the text of a cell."""
MAIN = ("experiment", "mAP %", "delay", "GFLOPs", "p50 ms", "frames/s", "speed-up", "state MiB")
"""Headings that are printed."""
