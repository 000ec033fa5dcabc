"""The runner: order, what runs need, skipping, going on after a stop, failures, and changed settings."""

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

from results import experiment_queue, experiments
from results.experiment_files import read_json, write_json
from results.experiment_job import tail, take_lock
from results.experiment_list import read_list
from results.experiment_run import runs_of, useful_seconds

ROOT = Path(__file__).resolve().parent.parent.parent
FAKE = f"{shlex.quote(sys.executable)} -S {shlex.quote(str(Path(__file__).with_name('fake_main.py')))}"
FOLDER = Path("runs/experiments/list")
TEACHER = {"name": "teacher", "fit": {"config": "mine.yaml"}}
STUDENT = {"name": "student", "fit": {"config": "mine.yaml", "needs": {"teacher": "teacher"}}}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working directory of its own with one config, where nothing heavy is imported and nobody waits."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("model: {dim: 8}")
    facts = {"machine": "a computer", "commit": "abc"}
    monkeypatch.setattr(experiments, "facts", lambda threads, jobs: facts | {"threads": threads, "jobs": jobs})
    monkeypatch.setattr(experiment_queue, "POLL_SECONDS", 0.005)
    monkeypatch.setattr("results.experiment_picture.draw", lambda listing, lines, path: path.touch())
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def write_list(*rows, **parts) -> None:
    content = {"title": "Mine", "metrics": [{"key": "test/map", "percent": True}], "rows": list(rows)} | parts
    Path("list.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def run(*arguments: str) -> int:
    return experiments.main(["list.yaml", f"--command={FAKE}", *arguments])


def calls() -> list[str]:
    """What the fake main.py was called for since this was asked last: ``teacher-seed0/fit``."""
    file = Path("calls.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    file.unlink(missing_ok=True)
    return [line["name"].removeprefix("experiments/list/") for line in lines]


def result(name: str, seed: int = 0) -> dict:
    return read_json(FOLDER / f"{name}-seed{seed}" / "result.json")


def both(*runs: str) -> list[str]:
    return [f"{run}/{kind}" for run in runs for kind in ("fit", "test")]


def row(name: str, needs: dict | None = None, **overrides) -> dict:
    return {"name": name, "fit": {"config": "mine.yaml", "overrides": overrides, "needs": needs or {}}}


def test_every_row_runs_once_before_any_has_its_second_seed():
    write_list(TEACHER, STUDENT | {"seeds": [3]}, row("other"), seeds=[0, 1])
    assert run() == 0
    assert calls() == both("teacher-seed0", "student-seed3", "other-seed0", "teacher-seed1", "other-seed1")


def test_a_run_is_called_with_its_config_overrides_seed_and_folders():
    write_list(row("one", **{"a.b": 1e-5, "c": None, "d": [1, {"e": True}], "f": "text"}), seeds=[7])
    assert run("--threads=3") == 0
    fit, test = (json.loads(line) for line in Path("calls.jsonl").read_text().splitlines())
    common = {"config": "mine.yaml", "seed_everything": "7", "a.b": "1e-05", "c": "null", "f": "text"}
    common["d"] = '[1, {"e": true}]'
    folder = "experiments/list/one-seed7"
    assert {"kind": "fit", "name": f"{folder}/fit", **common}.items() == {(k, v) for k, v in fit.items() if k != "pid"}
    checkpoint = f"runs/{folder}/fit/version_0/checkpoints/last.ckpt"
    only_test = {"kind": "test", "name": f"{folder}/test", "table_folder": f"runs/{folder}/test"}
    assert only_test | common | {"ckpt_path": checkpoint} == {k: v for k, v in test.items() if k != "pid"}
    assert "threads 3" in (FOLDER / "one-seed7/fit.log").read_text()


def test_the_record_of_a_run_holds_what_it_measured_and_how():
    write_list(row("one", score=0.25), seeds=[2])
    assert run("--threads=1") == 0
    record = result("one", 2)
    assert record["metrics"] == {"test/map": pytest.approx(0.45), "test/nan": None}  # the last of each column
    assert record["benchmark"]["gflops"] == 1.5
    assert record["fit_seconds"] > 0 and record["test_seconds"] > 0
    assert record["fit_attempts"] == 1
    assert (record["fit_precision"], record["test_precision"]) == ("bf16-mixed", "bf16-mixed")
    assert (record["machine"], record["threads"], record["jobs"], record["commit"]) == ("a computer", 1, 1, "abc")
    assert (record["experiment"], record["seed"], record["config"]) == ("one", 2, "mine.yaml")


def test_a_run_that_is_done_is_skipped():
    write_list(TEACHER, STUDENT)
    assert run() == 0
    calls()
    assert run() == 0
    assert calls() == []


def test_a_run_gets_the_checkpoint_of_the_same_seed_or_of_the_first():
    write_list(TEACHER | {"seeds": [5, 1]}, STUDENT | {"seeds": [1, 2]})
    assert run() == 0
    lines = [json.loads(line) for line in Path("calls.jsonl").read_text().splitlines()]
    given = {line["name"].split("/")[-2]: line["teacher"] for line in lines if "teacher" in line}
    assert given["student-seed1"] == f"{FOLDER}/teacher-seed1/fit/version_0/checkpoints/last.ckpt"
    assert given["student-seed2"] == f"{FOLDER}/teacher-seed5/fit/version_0/checkpoints/last.ckpt"


def test_a_row_without_training_tests_the_checkpoint_of_another():
    write_list(TEACHER, {"name": "again", "test": {"config": "mine.yaml", "needs": {"ckpt_path": "teacher"}}})
    assert run() == 0
    assert calls() == [*both("teacher-seed0"), "again-seed0/test"]
    assert result("again")["fit_seconds"] is None


def test_chosen_rows_and_seeds_bring_the_runs_that_they_need():
    write_list(TEACHER, STUDENT, row("other"), seeds=[0, 1])
    assert run("--rows", "student", "--seeds", "1") == 0
    assert calls() == both("teacher-seed1", "student-seed1")
    with pytest.raises(ValueError, match="no row pupil; there are teacher, student, other"):
        run("--rows", "pupil")
    with pytest.raises(ValueError, match=r"no run has a seed of \[9\]"):
        run("--seeds", "9")


def test_a_run_that_fails_is_told_with_the_end_of_its_log_and_the_others_go_on(capsys):
    write_list(row("bad", fails="fit"), row("pupil", needs={"teacher": "bad"}), row("good"))
    assert run() == 1
    assert calls() == ["bad-seed0/fit", *both("good-seed0")]
    said = capsys.readouterr()
    assert "bad, seed 0: FAILED: fit ended with status 1" in said.out
    assert "    step 2\n" in said.out and "step 1" not in said.out
    assert "    no such optimiser" in said.out
    assert "pupil, seed 0: FAILED: it needs the checkpoint of bad, seed 0" in said.out
    assert "2 of 3 runs failed: bad, seed 0; pupil, seed 0" in said.err
    assert run() == 1  # the good run alone is done
    assert calls() == ["bad-seed0/fit"]


def test_after_a_failed_test_the_training_is_kept():
    write_list(row("one") | {"test": {"overrides": {"fails": "test"}}})
    assert run() == 1
    write_list(row("one"))
    calls()
    assert run() == 0
    assert calls() == ["one-seed0/test"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"told_to_stop": "fit"}, "fit was told to stop"),
        ({"told_to_stop": "test"}, "test was told to stop"),
        ({"no_checkpoint": 1}, "training left no last.ckpt"),
    ],
)
def test_a_run_without_its_end_is_not_done(overrides, message, capsys):
    write_list(row("one", **overrides))
    assert run() == 1
    assert message in capsys.readouterr().out
    assert result("one") is None


def started(*arguments: str) -> subprocess.Popen:
    """The runner as a process of its own, which hears Ctrl-C even if these tests were started in the background."""
    program = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "from results import experiments as e; e.facts = lambda threads, jobs: dict(machine='m', commit='c', "
    program += "threads=threads, jobs=jobs); e.publish = lambda *_, **__: None; sys.exit(e.main())"
    command = [sys.executable, "-c", program, "list.yaml", f"--command={FAKE}", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for(condition, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.01)


HALF = FOLDER / "one-seed0/fit/version_0/checkpoints/last.ckpt"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_from_its_checkpoint(number):
    write_list(row("one", stops_once=1), row("two"))
    runner = started()
    wait_for(HALF.is_file)
    child = json.loads(Path("calls.jsonl").read_text())["pid"]
    runner.send_signal(number)
    assert runner.wait(timeout=30) != 0
    with pytest.raises(ProcessLookupError):  # what it started has ended with it
        os.kill(child, 0)
    calls()
    assert run() == 0
    assert calls() == both("one-seed0", "two-seed0")
    assert (FOLDER / "one-seed0/fit/version_1/checkpoints/last.ckpt").read_text() == f"from {HALF}"
    assert result("one")["fit_attempts"] == 2


def test_a_stopped_run_without_a_checkpoint_begins_again():
    write_list(row("one"))
    (FOLDER / "one-seed0/fit/version_0").mkdir(parents=True)
    (listed,) = runs_of(read_list(Path("list.yaml")), "list")
    write_json(listed.folder / "attempts.json", {"settings": listed.fit_settings, "attempts": []})
    assert listed.state() == ("fit", "starts again, it had no checkpoint yet")
    assert run() == 0
    assert (FOLDER / "one-seed0/fit/version_1/checkpoints/last.ckpt").read_text() == "from None"


def test_a_run_that_outlives_its_runner_is_waited_for(capsys):
    write_list(row("one", after="go"))
    runner = started()
    wait_for(Path("calls.jsonl").is_file)
    runner.kill()
    runner.wait()
    assert take_lock(FOLDER / "one-seed0.lock") is None
    second = started()
    time.sleep(0.5)
    assert calls() == ["one-seed0/fit"]
    Path("go").touch()
    assert second.wait(timeout=30) == 0
    # Nobody saw how the first ended, so training is called once more and goes on from its end.
    assert calls() == both("one-seed0")
    assert result("one")["fit_attempts"] == 2


def test_two_runners_share_a_list():
    write_list(row("one", after="go"), row("two", after="go"), row("three", after="go"))
    runners = [started(), started()]
    wait_for(lambda: Path("calls.jsonl").is_file() and len(Path("calls.jsonl").read_text().splitlines()) == 2)
    Path("go").touch()
    assert [runner.wait(timeout=30) for runner in runners] == [0, 0]
    assert sorted(calls()) == sorted(both("one-seed0", "two-seed0", "three-seed0"))


def test_jobs_run_side_by_side():
    # Each waits for a file that the other leaves.
    first, second = (str(FOLDER / f"{name}-seed0/fit") for name in ("one", "two"))
    write_list(row("one", after=f"{second}.log"), row("two", after=f"{first}.log"), row("three", needs={"a": "one"}))
    assert run("--jobs=2") == 0
    assert sorted(calls()) == sorted(both("one-seed0", "two-seed0", "three-seed0"))
    assert result("one")["jobs"] == 2


def test_changed_settings_run_again_with_all_that_needs_them_and_keep_what_was(capsys):
    write_list(row("teacher", score=0.1), STUDENT, row("other"))
    assert run() == 0
    calls()
    write_list(row("teacher", score=0.2), STUDENT, row("other"))
    assert run("--dry-run") == 0
    said = capsys.readouterr().out
    assert "teacher, seed 0: fit (changed: settings / score: 0.1 -> 0.2)" in said
    assert "student, seed 0: fit (changed: needs / teacher: " in said
    assert "other, seed 0: nothing (done)" in said
    assert calls() == []
    assert run("--table-only") == 0
    assert "to be run again:** teacher (seed 0), student (seed 0)." in Path("list.md").read_text()
    assert run() == 0
    assert calls() == both("teacher-seed0", "student-seed0")
    kept = read_json(FOLDER / "superseded/teacher-seed0-0/result.json")
    assert (kept["metrics"]["test/map"], result("teacher")["metrics"]["test/map"]) == (0.1, 0.2)
    assert "to be run again" not in Path("list.md").read_text()


def test_a_change_that_is_accepted_runs_nothing_again(capsys):
    write_list(row("teacher", score=0.1), STUDENT)
    assert run() == 0
    calls()
    Path("mine.yaml").write_text("model: {dim: 8, name: new}")
    assert run("--accept-changes") == 0
    said = capsys.readouterr().out
    assert 'teacher, seed 0: accepted fit / settings / model / name: null -> "new"' in said
    assert "student, seed 0: accepted fit / needs / teacher: " in said
    assert run() == 0
    assert calls() == []
    assert "to be run again" not in Path("list.md").read_text()


def test_a_config_that_changes_is_noticed_and_one_that_is_only_rewritten_is_not():
    write_list(row("one"))
    assert run() == 0
    Path("mine.yaml").write_text("# smaller is worse\nmodel:\n  dim: 8\n")
    calls()
    assert run() == 0
    assert calls() == []
    Path("mine.yaml").write_text("model: {dim: 16}")
    assert run() == 0
    assert calls() == both("one-seed0")


def test_a_test_that_changes_is_run_again_without_its_training():
    write_list(row("one"), row("two", needs={"teacher": "one"}))
    assert run() == 0
    calls()
    write_list(row("one") | {"test": {"overrides": {"score": 0.9}}}, row("two", needs={"teacher": "one"}))
    assert run() == 0
    assert calls() == ["one-seed0/test"]
    assert result("one")["metrics"]["test/map"] == 0.9


def test_a_checkpoint_that_is_gone_is_made_again_only_where_it_is_needed():
    write_list(TEACHER)
    assert run() == 0
    (FOLDER / "teacher-seed0/fit/version_0/checkpoints/last.ckpt").unlink()
    calls()
    assert run() == 0
    assert calls() == []
    write_list(TEACHER, STUDENT)
    assert run() == 0
    assert calls() == both("teacher-seed0", "student-seed0")


def test_time_of_training_counts_up_to_the_checkpoints_that_were_gone_on_from():
    began = {"began": 100.0, "from": None, "from_time": None}
    assert useful_seconds([began], 160.0) == 60
    # Saved at 130, stopped at some time, lost a second attempt that saved nothing, took up the first's at 200.
    lost = {"began": 150.0, "from": "a", "from_time": 130.0}
    again = {"began": 200.0, "from": "a", "from_time": 130.0}
    assert useful_seconds([began, lost, again], 250.0) == 30 + 50
    # An attempt that began anew: what came before it went into nothing.
    anew = {"began": 300.0, "from": None, "from_time": None}
    assert useful_seconds([began, anew], 310.0) == 10


def test_of_a_log_the_last_lines_are_shown_and_of_a_bar_its_last_state():
    log = b"\n".join(b"line %d" % number for number in range(40)) + b"\nEpoch 0: 1%\rEpoch 0: 50%\r\n\n"
    lines = tail(log).split("\n")
    assert len(lines) == 20
    assert (lines[0], lines[-1]) == ("    line 21", "    Epoch 0: 50%")
