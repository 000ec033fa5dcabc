"""The benchmark table: one row per tested experiment, accuracy and cost side by side.

``test`` appends a row to ``benchmark.jsonl``, which keeps every run, and renders ``benchmark.md`` from it, which shows
the newest row of each experiment.
"""

from __future__ import annotations

import math
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.benchmark.provenance import device_name
from callbacks.benchmark.rows import BenchmarkRow, enter
from callbacks.measures.cost import OWN, REFERENCE, as_measured, durations, operations
from lightning_modules.networks.streaming import state_bytes


class BenchmarkTable(Callback):
    """Measure the tested module and enter it into the table.

    The module has a method ``benchmark()`` and the property ``protocol`` (of ``test/map``, with stride and delay).
    Where tubes are scored it has ``video_protocol`` too (of ``test/video_map_50``, with its linker).

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
        if trainer.is_global_zero and not trainer.fast_dev_run:
            print(f"\n{enter(self.folder, self.measure(trainer, pl_module))}")

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> BenchmarkRow:
        """Measure the row of a tested module."""
        with as_measured(trainer, pl_module) as benchmark:
            timed = durations(benchmark, pl_module.device, self.warmup, self.repeats)
            flops = operations(benchmark)
        mean_ap, video_map = (_logged(trainer, name) for name in ("test/map", "test/video_map_50"))
        return BenchmarkRow.of_latency(
            timed.latencies[OWN],
            benchmark.new_frames,
            experiment=self.experiment or type(pl_module).__name__,
            weights=str(trainer.ckpt_path or getattr(pl_module, "weights", None) or "as configured"),
            protocol=pl_module.protocol,
            map=mean_ap,
            video_protocol=getattr(pl_module, "video_protocol", None),
            video_map_50=video_map,
            parameters=sum(parameter.numel() for parameter in benchmark.network.parameters()),
            gflops=flops.gflops,
            gflops_published=benchmark.published_gflops,
            gflops_unit=benchmark.unit,
            frame=benchmark.frame and "{} x {}".format(*benchmark.frame),
            uncounted_operators=list(flops.uncounted),
            delay=benchmark.delay,
            state_mib=state_bytes(benchmark.state) / 2**20,
            device=device_name(pl_module.device),
            precision=str(trainer.precision),
            speedup=timed.ratios[OWN] if REFERENCE in timed.latencies else None,
        )


def _logged(trainer: Trainer, name: str) -> float | None:
    """Return what was logged under a name; None where nothing was, or no number."""
    value = trainer.callback_metrics.get(name)
    return None if value is None or math.isnan(value) else float(value)
