"""A signal ends a program with its own status, and with one line that says how to go on."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from lightning_modules.runs.interrupts import (
    Interrupted,
    StopAtOnce,
    newest_checkpoint,
    true_exit_status,
    with_checkpoint,
)


@pytest.mark.parametrize(
    ("number", "status", "said"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_the_status_is_that_of_the_signal_and_one_line_says_so(number, status, said, capsys):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as end, true_exit_status():
        os.kill(os.getpid(), number)
        time.sleep(60)
    assert end.value.code == status
    assert capsys.readouterr().err == f"\nstopped by {said}\n"
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_it_does_not_matter_what_became_of_the_signal_on_its_way():
    with pytest.raises(SystemExit) as end, true_exit_status():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except KeyboardInterrupt:  # as Lightning does
            raise SystemExit(1)  # noqa: B904
    assert end.value.code == 143


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(1), SystemExit("error: x")])
def test_other_ends_of_a_program_are_left_as_they_are(error, capsys):
    with pytest.raises(type(error)) as raised, true_exit_status():
        raise error
    assert raised.value is error and capsys.readouterr().err == ""


def test_errors_that_lead_to_each_other_are_left_as_they_are():
    inner, outer = ValueError("inner"), ValueError("outer")
    inner.__context__, outer.__cause__ = outer, inner
    with pytest.raises(ValueError, match="inner"), true_exit_status():
        raise inner


def waiting(ready) -> None:
    ready.set()
    time.sleep(60)


def test_a_worker_process_that_is_terminated_ends_without_a_word(capfd):
    forked = multiprocessing.get_context("fork")
    with true_exit_status():
        ready = forked.Event()
        process = forked.Process(target=waiting, args=(ready,))
        process.start()
        assert ready.wait(60)
        process.terminate()
        process.join()
    assert process.exitcode == -signal.SIGTERM
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "before",
    [
        "main.py fit --name b",
        "main.py fit --ckpt_path a.ckpt --name b",
        "main.py fit --name b --ckpt_path=a.ckpt",
        "main.py fit --ckpt_path a.ckpt --name b --ckpt_path=a.ckpt",
    ],
)
def test_a_command_goes_on_from_its_newest_checkpoint_whatever_it_began_from(before):
    expected = "main.py fit --name b --ckpt_path c.ckpt"
    assert " ".join(with_checkpoint(before.split(), Path("c.ckpt"))) == expected


def trainer(fn: str, *folders: Path | None) -> SimpleNamespace:
    callbacks = [ModelCheckpoint(folder) for folder in folders]
    strategy = SimpleNamespace(launcher=None)
    return SimpleNamespace(checkpoint_callbacks=callbacks, state=SimpleNamespace(fn=TrainerFn(fn)), strategy=strategy)


def way_on(command: list[str], runner: SimpleNamespace) -> str:
    stopped = Interrupted(signal.SIGTERM)
    StopAtOnce(command).on_exception(runner, None, stopped)
    return str(stopped)


def test_the_newest_checkpoint_of_a_run_is_what_to_go_on_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate((".x-1-2.partial.ckpt", "last.ckpt", "epoch=1-step=6.ckpt")):
        (tmp_path / "a b").mkdir(exist_ok=True)
        (tmp_path / "a b" / name).touch()
        os.utime(tmp_path / "a b" / name, (1000 - age, 1000 - age))
    runner = trainer("fit", None, tmp_path / "a b")
    assert newest_checkpoint(runner) == tmp_path / "a b" / "last.ckpt"
    command = ["main.py", "fit", "--name", "it's"]
    said = "stopped by SIGTERM; go on with: python main.py fit --name 'it'\"'\"'s' --ckpt_path 'a b/last.ckpt'"
    assert way_on(command, runner) == said


def test_without_a_checkpoint_the_command_is_to_be_given_again(tmp_path):
    said = way_on(["main.py", "fit", "--ckpt_path", "old.ckpt"], trainer("fit", tmp_path / "none"))
    missing = "there is no checkpoint of this run yet"
    assert said == f"stopped by SIGTERM; {missing}, begin again: python main.py fit --ckpt_path old.ckpt"


def test_of_an_evaluation_nothing_can_be_gone_on_with(tmp_path):
    said = way_on(["main.py", "test"], trainer("test", tmp_path))
    assert said == "stopped by SIGTERM; what it has written is not complete, test again"


def test_processes_that_the_run_has_started_end_with_it():
    runner, process = trainer("validate"), subprocess.Popen(["sleep", "60"])
    runner.strategy.launcher = SimpleNamespace(procs=[process])
    way_on(["main.py", "validate"], runner)
    assert process.returncode == -signal.SIGKILL and runner.strategy.launcher.procs == []
