"""Costs of a network, measured in any run."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from callbacks.measures.monitors import GflopsMonitor, LatencyMonitor
from datamodules.errors import UserError
from lightning_modules.evaluation.benchmark import Benchmark


class Regression(LightningModule):
    """A linear layer of 4 x 1000 weights that is compared with one that takes three times as long."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(4, 1000, bias=False)
        self.steps: list[str] = []

    def training_step(self, batch, batch_idx):
        return self.network(batch).square().mean()

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def benchmark(self):
        def step(name):
            assert not self.training and not torch.is_grad_enabled()
            self.steps.append(name)

        return Benchmark(
            self.network, (torch.zeros(1, 4),), "frame", partial(step, "own"), reference=partial(step, "reference")
        )


def run(loop, module, folder, *callbacks):
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=CSVLogger(folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    getattr(trainer, loop)(module, DataLoader(torch.zeros(6, 4), batch_size=2))
    trainer.logger.save()
    return trainer.logger.log_dir


@pytest.mark.parametrize("loop", ["fit", "test"])
def test_any_run_can_count_operations_once(loop, tmp_path):
    monitor = GflopsMonitor()
    folder = run(loop, Regression(), tmp_path, monitor)
    assert monitor.figures == {"cost/gflops": pytest.approx(4e-6), "cost/parameters": 4000}
    header, *lines = (Path(folder) / "metrics.csv").read_text().splitlines()
    place = header.split(",").index("cost/parameters")
    assert [line.split(",")[place] for line in lines if line.split(",")[place]] == ["4000.0"]


def test_training_goes_on_after_a_measurement_as_without_one(tmp_path):
    def trained(*callbacks):
        torch.manual_seed(0)
        module = Regression()
        run("fit", module, tmp_path / str(len(callbacks)), *callbacks)
        return module

    measured = trained(GflopsMonitor(), LatencyMonitor(repeats=2))
    torch.testing.assert_close(measured.network.weight, trained().network.weight, rtol=0, atol=0)
    assert measured.training


def test_latency_is_measured_once_in_turn_with_the_reference_after_warmup(tmp_path):
    module, monitor = Regression(), LatencyMonitor(warmup=1, repeats=3)
    run("fit", module, tmp_path, monitor)
    assert module.steps == ["reference", "own"] * 4
    assert set(monitor.figures) == {
        "cost/latency_p50_ms",
        "cost/latency_p95_ms",
        "cost/latency_p99_ms",
        "cost/frames_per_second",
        "cost/speedup",
        "cost/state_mib",
    }
    assert monitor.figures["cost/state_mib"] == 0  # it keeps none, and predicts nothing frame by frame


def test_delay_and_state_of_a_stream_stand_beside_its_latency(tmp_path):
    class Stream(Regression):
        def benchmark(self):
            return replace(super().benchmark(), delay=3, state=(torch.zeros(1, 2**18), [torch.zeros(1, 2**18)]))

    monitor = LatencyMonitor(warmup=0, repeats=1)
    run("test", Stream(), tmp_path, monitor)
    assert (monitor.figures["cost/delay_frames"], monitor.figures["cost/state_mib"]) == (3, 2)


def test_a_module_that_offers_nothing_to_measure_is_named(tmp_path):
    class Plain(Regression):
        benchmark = None

    with pytest.raises(UserError, match="Plain: cannot be measured"):
        run("fit", Plain(), tmp_path, GflopsMonitor())
