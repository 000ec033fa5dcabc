"""Lists as Snakemake runs them: order, what runs need, skipping, going on after a kill, failures and changes."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from results.experiments.lists import read_list
from results.experiments.runs import runs_of

pytest.importorskip("snakemake")

ROOT = Path(__file__).resolve().parents[3]
FAKE = f"{shlex.quote(sys.executable)} -S {shlex.quote(str(Path(__file__).with_name('fake_main.py')))}"
SNAKEMAKE = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "results/Snakefile"), "--cores", "2"]
FOLDER = Path("runs/experiments/mine")
RESULTS = [str(FOLDER / f"{row}-seed0/result.json") for row in ("teacher", "student")]
"""Targets by default: all of the list but its table."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A repository with one config and a list with a teacher, its student, and one more row."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("configs").mkdir()
    Path("configs/mine.yaml").write_text("model: {dim: 8}")
    Path(".gitignore").write_text("runs\n.snakemake\ncalls.jsonl\ncache\n")
    write_list({}, {"teacher": {}})
    git("init", "-q")
    commit()


def git(*arguments: str) -> str:
    names = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    return subprocess.run(["git", *names, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def commit() -> None:
    git("add", "-A")
    git("commit", "-q", "--allow-empty", "-m", "mine")


def write_list(teacher: dict, student: dict, *more: dict) -> None:
    """The teacher with overrides, the student with further entries of its fit, and other rows."""
    fit = {"config": "configs/mine.yaml"}
    rows = [
        {"name": "teacher", "fit": {**fit, "overrides": teacher}},
        {"name": "student", "fit": {**fit, "needs": {"teacher": "teacher"}, "overrides": student.get("overrides", {})}},
        *more,
    ]
    content = {"title": "Mine", "metrics": [{"key": "test/map", "percent": True}], "rows": rows}
    Path("results/lists").mkdir(parents=True, exist_ok=True)
    Path("results/lists/mine.yaml").write_text(yaml.safe_dump(content))


def command(*arguments: str) -> list[str]:
    return [*SNAKEMAKE, *(arguments or RESULTS), "--config", f"command={FAKE}"]


def run(*arguments: str, config: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command(*arguments), *config], capture_output=True, text=True)


def calls() -> list[str]:
    """Calls of the fake main.py since this was asked last: ``teacher/fit``."""
    file = Path("calls.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    file.unlink(missing_ok=True)
    return [line["name"].removeprefix("experiments/mine/").replace("-seed0", "") for line in lines]


def record(name: str) -> dict:
    return json.loads((FOLDER / f"{name}-seed0/result.json").read_text())


def both(*rows: str) -> list[str]:
    return [f"{row}/{kind}" for row in rows for kind in ("fit", "test")]


@pytest.mark.slow
def test_a_list_is_run_with_what_its_rows_need_and_is_then_done():
    done = run("mine")
    assert done.returncode == 0, done.stderr
    order = calls()
    assert sorted(order) == sorted(both("teacher", "student"))
    assert order.index("teacher/fit") < order.index("student/fit") < order.index("student/test")
    assert (record("student")["threads"], record("student")["jobs"]) == (1, 2)
    assert record("student")["commit"] == git("rev-parse", "--short", "HEAD")
    assert "threads 1" in (FOLDER / "student-seed0/fit.log").read_text()
    assert "| student" in Path("results/pages/mine.md").read_text() and Path("results/pages/mine.png").is_file()
    assert len(Path("results/mine.jsonl").read_text().splitlines()) == 2
    assert run("mine").returncode == 0  # although results/ was written to
    assert calls() == []


@pytest.mark.slow
def test_runs_that_share_a_gpu_are_recorded_as_one_at_a_time():
    done = subprocess.run([*command(RESULTS[0]), "--resources", "gpu=1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (record("teacher")["jobs"], record("teacher")["fit_jobs"]) == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_list_goes_on_from_its_newest_whole_checkpoint(number):
    write_list({"stops_once": 1}, {})
    commit()
    # In a session of its own, where Ctrl-C reaches all of it, as in a terminal; a background shell would ignore it.
    begin = "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    begin += "os.execv(sys.argv[1], sys.argv[1:])"
    runner = subprocess.Popen([sys.executable, "-c", begin, *command()], start_new_session=True)
    checkpoints = FOLDER / "teacher-seed0/fit/version_0/checkpoints"
    wait_for(lambda: len(list(checkpoints.glob("*.ckpt"))) == 2)
    child = json.loads(Path("calls.jsonl").read_text())["pid"]
    if number == signal.SIGINT:
        os.killpg(runner.pid, number)
    else:
        runner.kill()
    assert runner.wait(timeout=30) != 0
    wait_for(lambda: not Path(f"/proc/{child}").exists())  # what it started has ended with it
    calls()
    if number == signal.SIGKILL:
        assert "--unlock" in run().stderr
        assert run("--unlock").returncode == 0
    done = run()
    assert done.returncode == 0, done.stderr
    assert calls()[0] == "teacher/fit"
    assert record("teacher")["fit_attempts"] == 2
    last = FOLDER / "teacher-seed0/fit/version_1/checkpoints/last.ckpt"
    assert f"from {checkpoints / 'last.ckpt'}".encode() in last.read_bytes()
    given = (FOLDER / "student-seed0/fit.log").read_text()
    assert f"--teacher={last}" in given


def wait_for(condition, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.01)


@pytest.mark.slow
def test_uncommitted_code_is_refused_unless_that_is_allowed_and_then_recorded():
    Path("configs/mine.yaml").write_text("model: {dim: 16}")
    Path("configs/new.yaml").write_text("model: {}")
    refused = run()
    assert refused.returncode != 0
    message = (
        "configs/mine.yaml, configs/new.yaml: changes that no commit has; commit them, or pass --config allow_dirty=1"
    )
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr
    assert calls() == []
    done = run(config=("allow_dirty=1",))
    assert done.returncode == 0, done.stderr
    assert (
        record("student")["commit"] == record("student")["fit_commit"] == f"{git('rev-parse', '--short', 'HEAD')}-dirty"
    )


@pytest.mark.slow
def test_a_run_that_fails_shows_the_end_of_its_log_and_the_others_go_on():
    write_list({"fails": "fit"}, {}, {"name": "good", "fit": {"config": "configs/mine.yaml"}})
    commit()
    failed = run("mine")
    assert failed.returncode != 0
    assert sorted(calls()) == sorted(["teacher/fit", *both("good")])
    assert "error: teacher, seed 0: fit ended with status 1" in failed.stderr
    assert "    no such optimiser" in failed.stderr and "step 1\r" not in failed.stderr
    write_list({}, {}, {"name": "good", "fit": {"config": "configs/mine.yaml"}})
    commit()
    assert run().returncode == 0
    assert sorted(calls()) == sorted(both("teacher", "student"))


@pytest.mark.slow
def test_changed_settings_run_again_with_all_that_needs_them_and_a_comment_trains_nothing():
    assert run(RESULTS[0]).returncode == 0
    assert calls() == both("teacher")
    assert run().returncode == 0
    assert sorted(calls()) == both("student")
    write_list({"score": 0.9}, {})
    commit()
    planned = run("-n", *RESULTS).stdout
    assert "runs/experiments/mine/student-seed0/fit.json" in planned and calls() == []
    assert run().returncode == 0
    assert sorted(calls()) == sorted(both("teacher", "student"))
    kept = json.loads((FOLDER / "superseded/teacher-seed0-0/result.json").read_text())
    assert (kept["metrics"]["test/map"], record("teacher")["metrics"]["test/map"]) == (0.5, 0.9)
    Path("configs/mine.yaml").write_text("# a comment\nmodel: {dim: 8}")
    commit()
    assert run().returncode == 0
    assert sorted(calls()) == ["student/test", "teacher/test"]


@pytest.mark.slow
def test_every_run_of_our_lists_is_planned(monkeypatch):
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    for name in ("results", "configs"):
        Path(name).symlink_to(ROOT / name)
    lists = {file.stem: runs_of(read_list(file), file.stem) for file in Path("results/lists").glob("*.yaml")}
    runs = [run for listed in lists.values() for run in listed if run.row.tag is None]
    planned = run("-n", *lists, "--quiet", "rules")
    assert planned.returncode == 0, planned.stderr
    counted = {line.split()[0]: line.split()[1] for line in planned.stdout.splitlines() if len(line.split()) == 2}
    assert int(counted["fit"]) == sum(run.row.fit is not None for run in runs)
    assert int(counted["test"]) == len(runs)
