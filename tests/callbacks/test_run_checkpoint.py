"""A run's last checkpoint is never old: it is written within epochs, and where training ends."""

from __future__ import annotations

import warnings
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks.run_checkpoint import RunCheckpoint

BATCHES = 6


class Line(L.LightningModule):
    """Learns a line from six batches an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.line(batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val/map", float(self.current_epoch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.arange(float(BATCHES))[:, None], batch_size=1)

    val_dataloader = train_dataloader


class Steps(L.Callback):
    """The step of ``last.ckpt`` after every batch, and minutes that pass with each."""

    def __init__(self, folder: Path, checkpoint: RunCheckpoint) -> None:
        self.path, self.minutes, self.seen = folder / "checkpoints" / "last.ckpt", 0.0, []
        checkpoint._clock = lambda: 60 * self.minutes

    def on_train_batch_start(self, *_: object) -> None:
        self.minutes += 1
        self.seen.append(self.step())

    def step(self) -> int | None:
        return torch.load(self.path, weights_only=True)["global_step"] if self.path.is_file() else None


def fit(folder: Path, checkpoint: RunCheckpoint, **trainer: object) -> Steps:
    steps = Steps(folder, checkpoint)
    settings = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False} | trainer
    settings |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "callbacks": [steps, checkpoint]}
    L.Trainer(default_root_dir=folder, **settings).fit(Line())
    return steps


def test_within_an_epoch_it_is_written_when_its_minutes_have_passed(tmp_path):
    steps = fit(tmp_path, RunCheckpoint(every_minutes=2))
    # Written after batches 2 and 4; it is due again at the sixth, but that is the epoch's end.
    assert steps.seen == [None, None, 2, 2, 4, 4, 6, 7, 7, 9, 9, 11]
    assert steps.step() == 12


def test_without_minutes_it_is_written_at_the_end_of_epochs(tmp_path):
    steps = fit(tmp_path, RunCheckpoint(every_minutes=None))
    assert steps.seen == [None] * BATCHES + [6] * BATCHES


def test_it_is_never_written_while_gradients_are_gathered(tmp_path):
    steps = fit(tmp_path, RunCheckpoint(every_minutes=0), accumulate_grad_batches=4, max_epochs=1)
    assert steps.seen == [None] * 4 + [1, 1]  # a step after batch 4, and one at the epoch's end
    assert steps.step() == 2


@pytest.mark.parametrize("minutes", [2, None])
def test_a_validation_right_after_it_was_written_may_find_the_best_weights(tmp_path, minutes):
    checkpoint = RunCheckpoint(every_minutes=minutes, monitor="val/map", mode="max", save_top_k=-1)
    fit(tmp_path, checkpoint, max_epochs=1, val_check_interval=2)
    assert sorted(Path(path).stem for path in checkpoint.best_k_models) == [f"epoch=0-step={n}" for n in (2, 4, 6)]


@pytest.mark.parametrize("minutes", [3, None])
def test_training_that_stops_within_an_epoch_leaves_its_last_step(tmp_path, minutes):
    checkpoint = RunCheckpoint(every_minutes=minutes, save_on_train_epoch_end=False)
    assert fit(tmp_path, checkpoint, max_steps=5, limit_val_batches=0).step() == 5


def test_a_trial_run_leaves_no_checkpoint(tmp_path):
    assert fit(tmp_path, RunCheckpoint(every_minutes=0), fast_dev_run=2).step() is None


def test_a_run_that_goes_on_elsewhere_says_nothing_of_the_folder_unless_the_best_is_left_there(tmp_path):
    fit(tmp_path / "a", RunCheckpoint(), max_epochs=1)
    resumed = L.Trainer(
        default_root_dir=tmp_path / "b", max_epochs=2, accelerator="cpu", logger=False, callbacks=[RunCheckpoint()]
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The dirpath has changed")
        resumed.fit(Line(), ckpt_path=tmp_path / "a" / "checkpoints" / "last.ckpt", weights_only=True)
    best = RunCheckpoint(monitor="val/map", mode="max")
    best.dirpath = str(tmp_path / "a")
    state = best.state_dict() | {"dirpath": "elsewhere", "best_model_path": "elsewhere/best.ckpt"}
    with pytest.warns(UserWarning, match="The dirpath has changed"):
        best.load_state_dict(state)
