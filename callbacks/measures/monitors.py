"""Callbacks that measure what a network costs, in any run: GFLOPs and latency beside losses and accuracy."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from callbacks.measures.cost import OWN, REFERENCE, as_measured, durations, operations
from lightning_modules.evaluation.benchmark import Benchmark
from lightning_modules.networks.streaming import state_bytes


class CostMonitor(Callback):
    """Measure once per run, after its first batch, and log the figures.

    This holds for ``fit``, ``validate`` and ``test``; the first process measures, the others continue. Figures go to
    the loggers of the run and, in one line, to the screen; ``figures`` keeps them.
    """

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}

    @abstractmethod
    def measure(self, trainer: Trainer, module: LightningModule, benchmark: Benchmark) -> dict[str, float]:
        """Return figures by the names they are logged under."""

    @abstractmethod
    def summary(self, benchmark: Benchmark) -> str:
        """Describe ``figures`` in one line."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.figures = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        self._measure_once(trainer, pl_module)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        self._measure_once(trainer, pl_module)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        self._measure_once(trainer, pl_module)

    def _measure_once(self, trainer: Trainer, module: LightningModule) -> None:
        if self.figures or not trainer.is_global_zero:
            return
        with as_measured(trainer, module) as benchmark:
            self.figures = self.measure(trainer, module, benchmark)
            line = self.summary(benchmark)
        for logger in trainer.loggers:
            logger.log_metrics(self.figures, step=trainer.global_step)
        rank_zero_info(line)


class GflopsMonitor(CostMonitor):
    """Count operations (multiply-adds, in units of 1e9) and parameters: ``cost/gflops``, ``cost/parameters``."""

    def measure(self, trainer: Trainer, module: LightningModule, benchmark: Benchmark) -> dict[str, float]:
        return {
            "cost/gflops": operations(benchmark).gflops,
            "cost/parameters": float(sum(parameter.numel() for parameter in benchmark.network.parameters())),
        }

    def summary(self, benchmark: Benchmark) -> str:
        millions = self.figures["cost/parameters"] / 1e6
        return f"{self.figures['cost/gflops']:.4g} GFLOPs per {benchmark.unit}, {millions:.2f} million parameters"


class LatencyMonitor(CostMonitor):
    """Time single steps at batch 1: ``cost/latency_p50_ms``, ``_p95_ms``, ``_p99_ms``, ``cost/frames_per_second``.

    With a reference, such as a student's teacher, the two are timed in turn, and ``cost/speedup`` is the ratio of their
    medians. ``cost/state_mib`` stands beside the times; it is 0 for a network without state. Where frames are predicted
    one by one, ``cost/delay_frames`` gives the sampled frames that a prediction waits for. In ``fit`` the machine also
    loads the next batches meanwhile: quote figures of ``test``.

    Args:
        warmup: untimed calls before the timed ones.
        repeats: timed calls.
    """

    def __init__(self, warmup: int = 5, repeats: int = 20) -> None:
        super().__init__()
        if repeats < 1 or warmup < 0:
            raise ValueError(f"repeats must be at least 1 and warmup at least 0, got {repeats} and {warmup}")
        self.warmup, self.repeats = warmup, repeats

    def measure(self, trainer: Trainer, module: LightningModule, benchmark: Benchmark) -> dict[str, float]:
        timed = durations(benchmark, module.device, self.warmup, self.repeats)
        latency = timed.latencies[OWN]
        figures = {f"cost/latency_{name}_ms": getattr(latency, f"{name}_ms") for name in ("p50", "p95", "p99")}
        figures["cost/frames_per_second"] = benchmark.new_frames * latency.frames_per_second
        figures["cost/state_mib"] = state_bytes(benchmark.state) / 2**20
        if benchmark.delay is not None:
            figures["cost/delay_frames"] = float(benchmark.delay)
        return figures | ({"cost/speedup": timed.ratios[OWN]} if REFERENCE in timed.latencies else {})

    def summary(self, benchmark: Benchmark) -> str:
        p50, p95, rate = (
            self.figures[f"cost/{name}"] for name in ("latency_p50_ms", "latency_p95_ms", "frames_per_second")
        )
        return f"{p50:.2f} ms per {benchmark.unit} (95th percentile {p95:.2f} ms), {rate:.1f} frames/s"
