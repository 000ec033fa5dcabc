"""The benchmark table: one row a tested experiment, accuracy and cost side by side.

``test`` appends a row to ``benchmark.jsonl``, which keeps every run, and renders ``benchmark.md`` from it, which shows
the newest row of each experiment.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from callbacks.flops import count_gflops, evaluation_mode
from callbacks.latency import interleave, synchronizer
from lightning_modules.networks.streaming import state_bytes

Row = Mapping[str, Any]

HEADER = """# Benchmark

Written by `python main.py test`; the newest run of each experiment, all runs are in `benchmark.jsonl`.

- **mAP** in percent, under the protocol named beside it. **Video mAP** is that of tubes: its protocol, and the linker
  that made them, stand with it.
- **GFLOPs** count a multiply-add once, for one clip or one new frame, without the decoding of detections. They are what
  is executed; "by published arithmetic" is what the published implementation needs for the same outputs.
- **Latency** in milliseconds for one new frame at batch 1, from normalised frame to decoded detections; warm-up
  excluded, device synchronised, loading of data outside the clock. A clip detector runs one full clip per new frame.
- **Frames/s** is the inverse of the mean latency. **State** is what a stream keeps between two frames.
- **Speed-up** is the teacher's median latency for one full clip over the row's own for one frame, the two timed in turn
  in one run, so that a busy machine slows both. Latencies of different rows come from different runs.
"""


@runtime_checkable
class Benchmarkable(Protocol):
    """What a LightningModule offers to be measured. Only the first process of a run is asked: no collectives here."""

    benchmark_protocol: str
    """Protocol of ``test/map`` with its stride, such as ``"ava frame mAP@0.5, frame_stride 2"``. Where there is a
    ``benchmark_video_protocol`` beside it, that of ``test/video_map_50`` with its linker."""

    def benchmark_step(self) -> tuple[nn.Module, tuple[Any, ...], str, Callable[[], object]]:
        """What to measure, at batch 1, on the module's device and in the run's precision.

        Returns:
            The network and the inputs of one call (for the count of operations and parameters), ``"clip"`` or
            ``"frame"`` as the unit of that call, and a function that goes from one normalised frame (a clip detector:
            one clip) to decoded detections, every call the same amount of work, which is what gets timed.
        """
        ...

    def benchmark_state(self) -> Any:
        """State of one stream, nested tensors, or None for a network without one."""
        ...

    def benchmark_reference(self) -> Callable[[], object] | None:
        """What the speed-up is relative to, timed in turn with ``run_once``: for a student one sliding window of its
        teacher, from normalised clip to decoded detections. None where there is nothing to compare with."""
        ...

    def benchmark_published_gflops(self) -> float | None:
        """What the published implementation of the network needs for the same call, where it is known."""
        ...


class BenchmarkTable(Callback):
    """Measure the tested module and enter it into the table.

    Args:
        experiment: name of the row; by default the class name of the LightningModule (the command line passes the name
            of the config). The newest row of a name is the one shown.
        folder: where ``benchmark.jsonl`` and ``benchmark.md`` are kept.
        warmup: untimed calls before the timed ones.
        repeats: timed calls.
    """

    def __init__(
        self,
        experiment: str | None = None,
        folder: str | Path = "results",
        warmup: int = 5,
        repeats: int = 50,
    ) -> None:
        if repeats < 1 or warmup < 0:
            raise ValueError(f"repeats must be at least 1 and warmup at least 0, got {repeats} and {warmup}")
        self.experiment = experiment
        self.folder = Path(folder)
        self.warmup = warmup
        self.repeats = repeats

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        if not isinstance(pl_module, Benchmarkable):
            raise TypeError(
                f"{type(pl_module).__name__} cannot be benchmarked: it needs benchmark_protocol, benchmark_step, "
                "benchmark_state, benchmark_reference and benchmark_published_gflops "
                "(callbacks.benchmark.Benchmarkable); or take BenchmarkTable out of trainer.callbacks"
            )
        print(f"\n{enter(self.folder, self.measure(trainer, pl_module))}")

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The row of a module that is ``Benchmarkable``; every value fits into JSON."""
        device = pl_module.device
        with torch.no_grad(), evaluation_mode(pl_module), trainer.precision_plugin.forward_context():
            network, inputs, unit, run_once = pl_module.benchmark_step()
            state = pl_module.benchmark_state()
            reference = pl_module.benchmark_reference()
            steps = {"own": run_once} if reference is None else {"reference": reference, "own": run_once}
            timed = interleave(steps, rounds=self.repeats, warmup=self.warmup, synchronize=synchronizer(device))
            latency = timed.latencies["own"]
            flops = count_gflops(network, *inputs)
        mean_ap, video_map = (_logged(trainer, name) for name in ("test/map", "test/video_map_50"))
        return {
            "experiment": self.experiment or type(pl_module).__name__,
            "weights": str(trainer.ckpt_path or getattr(pl_module, "weights", None) or "as configured"),
            "protocol": pl_module.benchmark_protocol,
            "map": mean_ap,
            "video_protocol": getattr(pl_module, "benchmark_video_protocol", None),
            "video_map_50": video_map,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "gflops": flops.gflops,
            "gflops_published": pl_module.benchmark_published_gflops(),
            "gflops_unit": unit,
            "uncounted_operators": list(flops.uncounted),
            "latency_p50_ms": latency.p50_ms,
            "latency_p95_ms": latency.p95_ms,
            "latency_p99_ms": latency.p99_ms,
            "frames_per_second": latency.frames_per_second,
            "state_mib": state_mib(state),
            "device": device_name(device),
            "threads": torch.get_num_threads(),
            "precision": str(trainer.precision),
            "seed": int(seed) if (seed := os.environ.get("PL_GLOBAL_SEED")) else None,
            "commit": commit(Path(__file__).parent),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "speedup": None if reference is None else timed.ratios["own"],
        }


def _logged(trainer: Trainer, name: str) -> float | None:
    """What was logged under a name; None where nothing was, or no number."""
    value = trainer.callback_metrics.get(name)
    return None if value is None or math.isnan(value) else float(value)


def state_mib(state: Any) -> float:
    """Size of nested tensors in MiB."""
    return state_bytes(state) / 2**20


def device_name(device: torch.device) -> str:
    """Name of the hardware, as far as it says one."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.is_file() else []
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return next(names, "") or platform.processor() or "CPU"
    return str(device)


def commit(folder: Path) -> str:
    """Short hash of the code in ``folder``, ``-dirty`` with changes other than to results; "unknown" outside git."""
    head = _git(folder, "rev-parse", "--short", "HEAD")
    if not head:
        return "unknown"
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":(top)", ":(top,exclude)results")
    return f"{head}-dirty" if changes else head


def _git(folder: Path, *arguments: str) -> str:
    """Output of a git command, empty where it fails or git is not installed."""
    try:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""


def enter(folder: Path, row: Row) -> str:
    """Add a row to ``benchmark.jsonl`` and render ``benchmark.md`` anew; returns the table."""
    file = folder / "benchmark.jsonl"
    append_row(file, row)
    table = render_table(read_rows(file))
    _replace_text(folder / "benchmark.md", f"{HEADER}\n{table}")
    return table


def append_row(file: Path, row: Row) -> None:
    """Add one line in a single write, so that runs that end together do not mix theirs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(row, allow_nan=False) + "\n"
    if file.is_file() and not file.read_bytes().endswith(b"\n"):
        line = "\n" + line  # an editor left the last line open, or the file is empty
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Every row of the file, oldest first."""
    rows = []
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}:{number} is not a row of JSON ({error}); correct or delete that line") from error
    return rows


def render_table(rows: list[dict[str, Any]]) -> str:
    """Markdown table of the newest row of each experiment, in the order of their first appearance."""
    newest = {row["experiment"]: row for row in rows}
    cells = [[column(row) for column in COLUMNS.values()] for row in newest.values()]
    lines = [list(COLUMNS), ["---"] * len(COLUMNS), *cells]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def _replace_text(file: Path, text: str) -> None:
    """Write a file that readers see either before or after, never half."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(file)


def _map(row: Row) -> str:
    return "-" if row["map"] is None else f"{100 * row['map']:.2f}"


def _video_map(row: Row) -> str:
    value = row.get("video_map_50")  # rows of earlier versions lack it
    return "-" if value is None else f"{100 * value:.2f} ({row['video_protocol']})"


def _gflops(row: Row) -> str:
    if row["gflops"] is None:
        return "-"
    incomplete = " (incomplete)" if row["uncounted_operators"] else ""
    published = row.get("gflops_published")  # rows of earlier versions lack it
    compared = "" if published is None else f" ({published:.4g} by published arithmetic)"
    return f"{row['gflops']:.4g} / {row['gflops_unit']}{incomplete}{compared}"


def _weights(row: Row) -> str:
    return "/".join(Path(row["weights"]).parts[-2:])


def _speedup(row: Row) -> str:
    return "-" if row["speedup"] is None else f"{row['speedup']:.2f}x"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "experiment": lambda row: row["experiment"],
    "weights": lambda row: _weights(row),
    "protocol": lambda row: row["protocol"],
    "mAP %": lambda row: _map(row),
    "video mAP@0.5 %": lambda row: _video_map(row),
    "parameters M": lambda row: f"{row['parameters'] / 1e6:.2f}",
    "GFLOPs": lambda row: _gflops(row),
    "p50 ms": lambda row: f"{row['latency_p50_ms']:.2f}",
    "p95 ms": lambda row: f"{row['latency_p95_ms']:.2f}",
    "p99 ms": lambda row: f"{row['latency_p99_ms']:.2f}",
    "frames/s": lambda row: f"{row['frames_per_second']:.1f}",
    "speed-up": _speedup,
    "state MiB": lambda row: f"{row['state_mib']:.3f}" if row["state_mib"] else "-",
    "device": lambda row: row["device"],
    "threads": lambda row: str(row["threads"]),
    "precision": lambda row: row["precision"],
    "seed": lambda row: "-" if row["seed"] is None else str(row["seed"]),
    "commit": lambda row: row["commit"],
}
"""Heading to the text of a cell."""
