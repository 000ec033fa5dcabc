"""Runs that a user's mistake ends, and switches that work: on a moment of training on the smallest data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datamodules.errors import UserError
from main import main
from tests.lightning_modules.command_line.command_line import EVAD

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


@pytest.fixture(scope="module")
def puppets(tiny_puppets, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("puppets")
    (folder / "tiny").symlink_to(tiny_puppets / "tiny")
    return folder


@pytest.fixture
def arguments(puppets, tmp_path, monkeypatch) -> list[str]:
    """A teacher on the tiny data, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    data = {"source.root": puppets, "source.size": "tiny", "frames.cache": puppets / "cache", "loader.batch_size": 2}
    data |= {"loader.eval_batch_size": 2, "loader.num_workers": 0}
    trainer = {"precision": "32-true", "max_epochs": 1, "limit_val_batches": 1, "accelerator": "cpu"}
    options = [f"--data.{key}={value}" for key, value in data.items()]
    return [EVAD, *options, *(f"--trainer.{key}={value}" for key, value in trainer.items())]


@pytest.mark.slow
def test_every_switch_off_and_a_limit_of_one_is_a_run_of_one_batch(arguments):
    off = [f"--trainer.{switch}=false" for switch in ("enable_progress_bar", "enable_checkpointing", "logger")]
    cli = main(["fit", *arguments, *off, "--trainer.limit_train_batches=1", "--trainer.val_check_interval=1"])
    assert cli.trainer.global_step == 1 and "val/map" in cli.trainer.callback_metrics
    assert not list(Path().rglob("*.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("callback", "monitor", "line", "steps"),
    [
        ("ModelCheckpoint", "val/mapp", "val/mapp, which nothing logs; did you mean val/map?", 0),
        ("EarlyStopping", "val/mapp", "val/mapp, which nothing logs; did you mean val/map?", 0),
        ("ModelCheckpoint", "train/los", "train/los, which nothing logs; did you mean train/loss?", 1),
        ("ModelCheckpoint", "map", "map, which nothing logs; did you mean val/map?", 2),
    ],
)
def test_a_monitored_metric_that_nothing_logs_is_told_at_the_first_chance(arguments, callback, monitor, line, steps):
    watch = [f"--trainer.callbacks+={callback}", f"--trainer.callbacks.monitor={monitor}"]
    trained = []

    def count(self, trainer, *_):
        trained.append(trainer.global_step)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError) as error:
        patch.setattr("lightning.pytorch.callbacks.LearningRateMonitor.on_train_batch_start", count)
        main(["fit", *arguments, *watch, "--trainer.limit_train_batches=2"])
    assert str(error.value) == f"trainer.callbacks: {callback} monitors {line}"
    assert len(trained) == steps


@pytest.mark.slow
def test_a_metric_of_validation_is_refused_where_there_is_none(arguments):
    watch = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val/map"]
    with pytest.raises(UserError, match=r"monitors val/map, which nothing logs: validation is off"):
        main(["fit", *arguments, *watch, "--trainer.limit_val_batches=0"])


@pytest.mark.slow
@pytest.mark.parametrize("monitor", ["val/map", "val/ap/walk", "train/loss"])
def test_a_monitored_metric_that_is_logged_is_left_alone(arguments, monitor, puppets):
    names = (puppets / "tiny" / "classes.txt").read_text().split()
    monitor = monitor.replace("walk", names[-1])
    watch = ["--trainer.callbacks+=ModelCheckpoint", f"--trainer.callbacks.monitor={monitor}"]
    cli = main(["fit", *arguments, *watch, "--trainer.limit_train_batches=1"])
    assert cli.trainer.global_step == 1


@pytest.mark.slow
def test_another_networks_checkpoint_is_refused_with_its_name(arguments):
    main(["fit", *arguments, "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=0"])
    (checkpoint,) = Path("runs/evad").glob("version_*/checkpoints/last.ckpt")
    with pytest.raises(UserError) as error:
        main(["test", *arguments, "--model.network.backbone.size.dim=64", f"--ckpt_path={checkpoint}"])
    assert str(error.value).startswith(f"{checkpoint}: this checkpoint is of another network than EvadTeacher as con")
    assert "misshapen (" in str(error.value) and "\n" not in str(error.value)
    damaged = bytearray(checkpoint.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    Path("damaged.ckpt").write_bytes(damaged)
    with pytest.raises(UserError, match=r"^damaged\.ckpt: is damaged: the checksum of "):
        main(["test", *arguments, "--ckpt_path=damaged.ckpt"])


def test_an_optimisers_refusal_is_told_with_its_key(arguments):
    with pytest.raises(UserError, match=r"^model\.optimizer: Invalid learning rate: -1"):
        main(["fit", *arguments, "--model.optimizer.lr=-1"])
    assert torch.is_grad_enabled()
