"""Runs as a shell sees them: killed and gone on with, stopped, started together, and what they leave behind."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from main import main
from tests.flat_data import grouped
from tests.forked import SECONDS, Forked
from tests.lightning_modules.runs.test_resuming import assert_alike

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")  # where pytest has arguments itself
ROOT = Path(__file__).resolve().parent.parent
BATCHES = 6
"""In an epoch; a run has two."""
NETWORKS = "lightning_modules.networks.temporal"
TWO_PROCESSES = ("--trainer.devices=2", "--trainer.strategy=ddp")


def write_experiment(folder: Path) -> None:
    """Write ``tiny.yaml``: stored features, and a detector that drops paths."""
    head = {"pyramid": {"dim": 8, "num_levels": 2, "num_heads": 2, "attention_window": 3, "drop_path_rate": 0.3}}
    network = {
        "backbone": {
            "class_path": f"{NETWORKS}.backbones.stored_features.StoredFeatures",
            "init_args": {"in_channels": 6},
        },
        "head": {"class_path": f"{NETWORKS}.heads.anchor_free_head.AnchorFreeHead", "init_args": head},
        "dim": 8,
    }
    network = {"class_path": f"{NETWORKS}.temporal_detector.TemporalDetector", "init_args": network}
    source = {"class_path": "tests.lightning_modules.temporal.MarkedFeatures", "init_args": {"folder": str(folder)}}
    data = {"source": source, "window_steps": 16, "batch_size": 2, "num_workers": 1}
    data |= {"train_windows": "random", "windows_per_epoch": 2 * BATCHES}
    config = {
        "model": {
            "class_path": "lightning_modules.temporal_detection.TemporalDetectionModule",
            "init_args": {
                "network": network,
                "modality": "features",
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3e-3}},
            },
        },
        "data": {"class_path": "datamodules.segments.SegmentDataModule", "init_args": grouped(data)},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 2, "callbacks": []},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture
def place(tmp_path, monkeypatch) -> Iterator[Path]:
    """An empty folder to run in, with a tiny experiment."""
    monkeypatch.chdir(tmp_path)
    write_experiment(tmp_path)
    precision = torch.get_float32_matmul_precision()
    yield tmp_path
    torch.set_float32_matmul_precision(precision)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Callable[..., Path]:
    """Gives the last checkpoint of a training with these arguments that nothing disturbs; it runs once for all tests.

    ``on_two`` trains on two processes.
    """
    folder = tmp_path_factory.mktemp("undisturbed")
    write_experiment(folder)

    @cache
    def trained(*more: str, on_two: bool = False) -> Path:
        name = f"run_{len(list(folder.glob('runs/*')))}"
        precision = torch.get_float32_matmul_precision()
        with chdir(folder):
            if on_two:
                shell(fit(name, *more), 0)
            else:
                main(fit(name, *more))
        torch.set_float32_matmul_precision(precision)
        return folder / checkpoint(name)

    return trained


def fit(name: str, *more: str, every_minutes: float = 0, signalled: dict | None = None) -> list[str]:
    """Arguments of a training that writes a checkpoint after every batch, or as often as is said."""
    checkpoint = {"class_path": "callbacks.run_checkpoint.RunCheckpoint", "init_args": {"every_minutes": every_minutes}}
    sending = [{"class_path": "tests.signals.SendSignal", "init_args": signalled}] if signalled else []
    callbacks = json.dumps([checkpoint, *sending])
    return ["fit", "--config=tiny.yaml", f"--name={name}", f"--trainer.callbacks={callbacks}", *more]


def shell(arguments: Sequence[str], status: int) -> str:
    """Run a command line in a process of its own and give what is on the screen then."""
    process = Forked(arguments)
    assert process.wait() == status, process.out[-4000:]
    return process.out.replace("\r", "\n")


def checkpoint(name: str) -> Path:
    return Path("runs") / name / "latest" / "checkpoints" / "last.ckpt"


def assert_trained_alike(found: Path, wanted: Path) -> None:
    one, other = (torch.load(path, weights_only=True) for path in (found, wanted))
    assert one["global_step"] == other["global_step"] == 2 * BATCHES
    for state in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_alike(one[state], other[state], state)


@pytest.mark.slow
def test_a_training_that_is_killed_within_an_epoch_goes_on_as_if_nothing_had_happened(place, undisturbed):
    shell(fit("killed", signalled={"name": "SIGKILL", "hook": "on_train_batch_start", "count": 5}), -signal.SIGKILL)
    assert torch.load(checkpoint("killed"), weights_only=True)["global_step"] == 4
    main([*fit("killed"), f"--ckpt_path={checkpoint('killed')}"])
    assert_trained_alike(checkpoint("killed"), undisturbed("--data.loader.num_workers=1"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize(
    ("hook", "count", "minutes"),
    [
        ("on_train_batch_start", BATCHES + 3, 0),  # in the midst of the second epoch
        ("on_train_batch_start", BATCHES + 3, 10),  # with a checkpoint of the first one's end alone
        ("on_validation_batch_start", 1, 0),  # at its end, before what is written there
        ("on_train_epoch_start", 2, 0),  # after it
    ],
)
def test_wherever_a_training_is_killed_it_goes_on_alike(place, undisturbed, hook, count, minutes, workers):
    more = [f"--data.loader.num_workers={workers}"]
    killed = fit("killed", *more, every_minutes=minutes, signalled={"name": "SIGKILL", "hook": hook, "count": count})
    shell(killed, -signal.SIGKILL)
    main([*fit("killed", *more), f"--ckpt_path={checkpoint('killed')}"])
    assert_trained_alike(checkpoint("killed"), undisturbed(*more))


@pytest.mark.slow
@pytest.mark.parametrize(("hook", "count"), [("on_train_batch_start", 5), ("on_train_epoch_start", 2)])
def test_two_processes_that_are_killed_go_on_alike(place, undisturbed, hook, count):
    """The command line starts them itself; each has half of the batches."""
    more = [*TWO_PROCESSES, f"--data.loader.samples_per_epoch={4 * BATCHES}"]
    signalled = {"name": "SIGKILL", "hook": hook, "count": count}
    shell(fit("killed", *more, signalled=signalled), -signal.SIGKILL)
    shell([*fit("killed", *more), f"--ckpt_path={checkpoint('killed')}"], 0)
    assert_trained_alike(checkpoint("killed"), undisturbed(*more, on_two=True))


@pytest.mark.slow
def test_a_training_that_is_stopped_says_how_to_go_on_and_does_so(place):
    arguments = fit("stopped", signalled={"name": "SIGTERM", "hook": "on_train_batch_start", "count": 4})
    # Not forked, since imports may write to the screen, too.
    ended = subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    said = ended.stdout.replace("\r", "\n")
    assert ended.returncode == 143, said[-4000:]
    last = said.splitlines()[-1]
    assert last.startswith("stopped by SIGTERM; go on with: python ")
    command = shlex.split(last.partition("python ")[2])
    assert command[:2] == [str(ROOT / "main.py"), "fit"]
    assert command[-2:] == ["--ckpt_path", "runs/stopped/version_0/checkpoints/last.ckpt"]
    assert torch.load(command[-1], weights_only=True)["global_step"] == 3
    assert "Traceback" not in said
    # What nobody needs to know is not on the screen, and what somebody does is.
    for noise in ("litlogger", "litmodels", "will be deleted", "eval mode", "deprecated", "TPU", "KeyboardInterrupt"):
        assert noise not in said
    assert "parameters are trained" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "hook"),
    [("fit", "on_validation_batch_start"), ("test", "on_test_batch_start"), ("validate", "on_validation_batch_start")],
)
def test_ctrl_c_ends_every_command_with_its_status(place, command, hook):
    arguments = fit("stopped", signalled={"name": "SIGINT", "hook": hook})[1:]
    said = shell([command, *arguments], 130)
    assert said.splitlines()[-1].startswith("stopped by Ctrl-C; ")
    assert "Traceback" not in said


@pytest.mark.slow
def test_two_processes_stop_together(place):
    """Each of them has the signal, as where a scheduler ends a job."""
    signalled = {"name": "SIGTERM", "hook": "on_train_batch_end", "count": 3}
    said = shell(fit("stopped", *TWO_PROCESSES, signalled=signalled), 143)
    assert [line for line in said.splitlines() if line.startswith("stopped by SIGTERM")] == said.splitlines()[-1:]


@pytest.mark.slow
def test_latest_stays_with_a_trained_run_whatever_comes_after_it(place):
    main(fit("run"))
    assert checkpoint("run").is_file()
    main(fit("run", "--trainer.fast_dev_run=true"))
    with pytest.raises((ValueError, OSError), match="nowhere"):
        main(fit("run", "--data.init_args.source.init_args.folder=nowhere"))
    main(["test", *fit("run")[1:], f"--ckpt_path={checkpoint('run')}"])
    assert Path("runs/run/latest").readlink() == Path("version_0")
    assert len(list(Path("runs/run").iterdir())) == 3  # the trained run, the test, the link
    main(fit("run", "--trainer.max_epochs=1"))
    newest = Path("runs/run/latest").readlink()
    assert newest.name != "version_0" and torch.load(checkpoint("run"), weights_only=True)["global_step"] == BATCHES
    assert sorted(path.name for path in (Path("runs/run") / newest).iterdir() if "events" not in path.name) == [
        "checkpoints",
        "config.yaml",
        "hparams.yaml",
        "metrics.csv",
    ]


@pytest.mark.slow
def test_two_trainings_that_start_together_have_a_folder_each(place):
    processes = [Forked(fit("both", "--trainer.max_epochs=1")) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    for number in range(2):
        folder = Path("runs/both") / f"version_{number}"
        assert (folder / "checkpoints" / "last.ckpt").is_file()
        assert (folder / "config.yaml").is_file() and (folder / "metrics.csv").is_file()
    assert checkpoint("both").is_file()


@pytest.fixture
def demo(tmp_path):
    """``make demo`` with a stand-in for Python, which ends a training with the status given; what it was asked for."""

    def made(status: int) -> tuple[int, list[str]]:
        asked, python, installed = tmp_path / "asked", tmp_path / "python", tmp_path / "installed"
        python.write_text(f'#!/bin/sh\necho "$2" >> {asked}\n[ "$2" = fit ] && exit {status}\nexit 0\n')
        python.chmod(0o755)
        installed.touch()
        command = ["make", "--no-print-directory", f"--old-file={installed}", "demo"]
        settings = [f"PY={python}", f"INSTALLED={installed}"]
        ended = subprocess.run([*command, *settings], cwd=ROOT, capture_output=True)
        return ended.returncode, asked.read_text().split()

    return made


def test_the_demo_stops_where_its_training_is_stopped(demo):
    status, asked = demo(143)
    assert status != 0 and asked == ["datamodules.puppets", "fit"]


def test_the_demo_goes_on_after_its_training(demo):
    status, asked = demo(0)
    assert status == 0 and asked.count("test") == 3
