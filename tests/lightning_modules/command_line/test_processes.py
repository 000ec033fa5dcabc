"""Of a run of several processes one reports, whichever meets the error, and none of the others says a word."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from datamodules.errors import UserError
from lightning_modules.command_line import processes
from lightning_modules.command_line.processes import one_report

LOST = RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.1.1]:40123")


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.5)


def trainer(rank: int, *others: subprocess.Popen) -> SimpleNamespace:
    return SimpleNamespace(global_rank=rank, strategy=SimpleNamespace(launcher=SimpleNamespace(procs=list(others))))


def process(body: str = "import time; time.sleep(60)") -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", body])


@pytest.mark.parametrize("error", [UserError("is cut"), KeyError("a bug"), LOST], ids=["user", "bug", "lost"])
def test_the_first_process_reports_its_own_error_and_ends_the_others(error):
    """It has lost no other: all of them are alive."""
    other = process()
    with pytest.raises(type(error)) as raised, one_report(trainer(0, other)):
        raise error
    assert raised.value is error and other.returncode == -9


@pytest.mark.parametrize("status", [1, 2])
def test_the_first_process_is_silent_where_another_has_reported(status):
    others = process(f"import sys; sys.exit({status})"), process()
    with pytest.raises(SystemExit) as end, one_report(trainer(0, *others)):
        raise LOST
    assert end.value.code == status and others[1].returncode == -9


def test_a_process_that_was_killed_is_reported_by_the_first():
    other = process("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(UserError, match="ended by SIGKILL; see if memory ran out"), one_report(trainer(0, other)):
        raise LOST


@pytest.mark.parametrize("error", [UserError("is cut"), KeyError("a bug")], ids=["user", "bug"])
def test_another_process_gives_the_first_time_to_report_and_then_reports(error, capsys):
    begin = time.monotonic()
    with pytest.raises(type(error)), one_report(trainer(1)):
        raise error
    assert time.monotonic() - begin >= 0.5


def test_another_process_that_has_lost_one_says_nothing():
    with pytest.raises(SystemExit) as end, one_report(trainer(1)):
        raise LOST
    assert end.value.code == 1


def test_a_run_of_one_process_is_left_alone():
    single = SimpleNamespace(global_rank=0, strategy=SimpleNamespace(launcher=None))
    with pytest.raises(KeyError), one_report(single):
        raise KeyError("a bug")
