"""One run: how it is called, what is recorded, where an interrupted training goes on, and what is refused."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml

from datamodules.errors import UserError
from results.experiments import stage
from results.experiments.files import read_json
from results.experiments.lists import read_list
from results.experiments.runs import runs_of
from results.experiments.stage import tail, useful_seconds

FAKE = f"{shlex.quote(sys.executable)} -S {shlex.quote(str(Path(__file__).with_name('fake_main.py')))}"
FOLDER = Path("runs/experiments/mine")
LIST = Path("results/lists/mine.yaml")
TEACHER = {"name": "teacher", "fit": {"config": "mine.yaml"}}
STUDENT = {"name": "student", "fit": {"config": "mine.yaml", "needs": {"teacher": "teacher"}}}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working directory of its own, outside git, with one config."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    Path("mine.yaml").write_text("model: {dim: 8}")
    LIST.parent.mkdir(parents=True)


def write_list(*rows, **parts) -> None:
    content = {"title": "Mine", "metrics": [{"key": "test/map", "percent": True}], "rows": list(rows)} | parts
    LIST.write_text(yaml.safe_dump(content, sort_keys=False))


def do(kind: str, run: str, *arguments: str) -> None:
    stage.main([kind, str(LIST), f"mine/{run}", f"--command={FAKE}", *arguments])


def do_both(run: str, *arguments: str) -> dict:
    do("fit", run, *arguments)
    do("test", run, *arguments)
    return read_json(FOLDER / run / "result.json")


def calls() -> list[dict]:
    return [json.loads(line) for line in Path("calls.jsonl").read_text().splitlines()]


def row(name: str, **overrides) -> dict:
    return {"name": name, "fit": {"config": "mine.yaml", "overrides": overrides}}


def interrupt(run: str) -> Path:
    """Begin a training that leaves a whole checkpoint and a newer one that is cut off, and kill it."""
    command = [sys.executable, "-m", "results.experiments.stage", "fit", LIST, f"mine/{run}", f"--command={FAKE}"]
    environment = os.environ | {"PYTHONPATH": str(Path(stage.__file__).parents[2])}
    running = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    checkpoints = FOLDER / run / "fit/version_0/checkpoints"
    wait_for(lambda: len(list(checkpoints.glob("*.ckpt"))) == 2)
    running.terminate()
    running.wait(timeout=30)
    with pytest.raises(ProcessLookupError):  # what it started has ended with it
        os.kill(calls()[-1]["pid"], 0)
    return checkpoints / "last.ckpt"


def wait_for(condition, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.01)


def content_of(checkpoint: Path) -> bytes:
    with zipfile.ZipFile(checkpoint) as archive:
        return archive.read("content")


def test_a_run_is_called_with_its_config_overrides_seed_and_folders():
    write_list(row("one", **{"a.b": 1e-5, "c": None, "d": [1, {"e": True}], "f": "text"}), seeds=[7])
    do_both("one-seed7")
    fit, test = calls()
    common = {"config": "mine.yaml", "seed_everything": "7", "a.b": "1e-05", "c": "null", "f": "text"}
    common["d"] = '[1, {"e": true}]'
    folder = "experiments/mine/one-seed7"
    assert {"kind": "fit", "name": f"{folder}/fit", **common} == {k: v for k, v in fit.items() if k != "pid"}
    checkpoint = f"runs/{folder}/fit/version_0/checkpoints/last.ckpt"
    only_test = {"kind": "test", "name": f"{folder}/test", "table_folder": f"runs/{folder}/test"}
    assert only_test | common | {"ckpt_path": checkpoint} == {k: v for k, v in test.items() if k != "pid"}


def test_the_record_of_a_run_holds_what_it_measured_and_how(monkeypatch):
    monkeypatch.setattr(stage, "machine", lambda: "a computer")
    write_list(row("one", score=0.25), seeds=[2])
    record = do_both("one-seed2", "--threads=3", "--jobs=2")
    assert record["metrics"] == {"test/map": pytest.approx(0.45), "test/nan": None}  # the last of each column
    assert record["benchmark"]["gflops"] == 1.5
    assert record["fit_seconds"] > 0 and record["test_seconds"] > 0
    assert record["fit_attempts"] == 1
    assert (record["fit_precision"], record["test_precision"]) == ("bf16-mixed", "bf16-mixed")
    facts = [record[key] for key in ("machine", "threads", "jobs", "commit", "fit_threads", "fit_jobs", "fit_commit")]
    assert facts == ["a computer", 3, 2, "unknown", 3, 2, "unknown"]
    assert (record["experiment"], record["seed"], record["config"]) == ("one", 2, "mine.yaml")
    assert record["commands"][0][:2] == ["fit", "--config=mine.yaml"]


def test_the_lines_of_stored_results_have_the_same_keys_as_new_ones():
    write_list(row("one"))
    new = do_both("one-seed0")
    stored = json.loads((Path(stage.__file__).parents[1] / "students.jsonl").read_text().splitlines()[0])
    assert list(new) == [key for key in stored if key != "fingerprint"]


def test_a_run_gets_the_checkpoint_of_the_same_seed_or_of_the_first():
    write_list(TEACHER | {"seeds": [5, 1]}, STUDENT | {"seeds": [1, 2]})
    for run in ("teacher-seed5", "teacher-seed1", "student-seed1", "student-seed2"):
        do("fit", run)
    given = {line["name"].split("/")[-2]: line["teacher"] for line in calls() if "teacher" in line}
    assert given["student-seed1"] == f"{FOLDER}/teacher-seed1/fit/version_0/checkpoints/last.ckpt"
    assert given["student-seed2"] == f"{FOLDER}/teacher-seed5/fit/version_0/checkpoints/last.ckpt"


def test_a_row_without_training_tests_the_checkpoint_of_another():
    write_list(TEACHER, {"name": "again", "test": {"config": "mine.yaml", "needs": {"ckpt_path": "teacher"}}})
    do("fit", "teacher-seed0")
    do("test", "again-seed0")
    assert read_json(FOLDER / "again-seed0/result.json")["fit_seconds"] is None


def test_an_interrupted_training_goes_on_from_its_newest_whole_checkpoint():
    write_list(row("one", stops_once=1))
    half = interrupt("one-seed0")
    record = do_both("one-seed0")
    assert content_of(FOLDER / "one-seed0/fit/version_1/checkpoints/last.ckpt") == f"from {half}".encode()
    assert record["fit_attempts"] == 2


def test_an_interrupted_training_of_other_settings_begins_anew_and_is_kept():
    write_list(row("one", stops_once=1))
    interrupt("one-seed0")
    Path("mine.yaml").write_text("model: {dim: 16}")
    write_list(row("one"))
    do("fit", "one-seed0")
    assert content_of(FOLDER / "one-seed0/fit/version_0/checkpoints/last.ckpt") == b"from None"
    assert (FOLDER / "superseded/one-seed0-0/fit/version_0/checkpoints/last.ckpt").is_file()


@pytest.mark.parametrize(("before", "after"), [("1", "1.0"), ("1", "true"), ("0", "false")])
def test_a_training_begins_anew_if_a_number_became_another_kind_of_value(before, after):
    write_list(row("one"))
    Path("mine.yaml").write_text(f"trainer: {{limit_train_batches: {before}}}")
    do("fit", "one-seed0")
    Path("mine.yaml").write_text(f"trainer: {{limit_train_batches: {after}}}")
    do("fit", "one-seed0")
    assert len(calls()) == 2
    assert (FOLDER / "superseded/one-seed0-0/fit.json").is_file()


def test_the_commits_of_a_resumed_training_are_those_of_all_its_attempts(monkeypatch):
    write_list(row("one", stops_once=1))
    interrupt("one-seed0")
    monkeypatch.setattr(stage, "commit", lambda folder: "abc")
    with monkeypatch.context() as patch, pytest.raises(UserError, match="no machine"):
        patch.setattr(stage, "call", refuse)
        do("fit", "one-seed0")  # gives nothing
    monkeypatch.setattr(stage, "commit", lambda folder: "def")
    record = do_both("one-seed0")
    assert (record["fit_commit"], record["commit"]) == ("unknown, def", "def")


def refuse(*arguments) -> None:
    raise UserError("no machine")


def test_a_training_begins_anew_if_what_it_starts_from_was_trained_anew():
    write_list(TEACHER, STUDENT)
    do("fit", "teacher-seed0")
    do("fit", "student-seed0")
    shutil.rmtree(FOLDER / "teacher-seed0")
    do("fit", "teacher-seed0")
    do("fit", "student-seed0")
    assert (FOLDER / "superseded/student-seed0-0/fit.json").is_file()
    assert (FOLDER / "student-seed0/fit.json").is_file()


def test_a_training_is_not_repeated_with_the_same_settings(capsys):
    write_list(row("one"))
    do("fit", "one-seed0")
    record = (FOLDER / "one-seed0/fit.json").read_text()
    (FOLDER / "one-seed0/fit.json").unlink()  # as Snakemake does
    Path("mine.yaml").write_text("# a comment\nmodel:\n  dim: 8\n")
    do("fit", "one-seed0")
    assert len(calls()) == 1
    assert (FOLDER / "one-seed0/fit.json").read_text() == record
    assert "trained already with the same settings" in capsys.readouterr().out


def test_a_checkpoint_that_is_gone_or_cut_off_is_named_with_the_way_out():
    write_list(TEACHER, STUDENT)
    do("fit", "teacher-seed0")
    checkpoint = FOLDER / "teacher-seed0/fit/version_0/checkpoints/last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    for kind, run in (("test", "teacher-seed0"), ("fit", "student-seed0")):
        with pytest.raises(UserError, match=r"last\.ckpt: the checkpoint is gone or cut off; delete .*fit\.json"):
            do(kind, run)
    checkpoint.unlink()
    (FOLDER / "teacher-seed0/fit.json").unlink()
    do("fit", "teacher-seed0")
    assert (FOLDER / "teacher-seed0/fit/version_1/checkpoints/last.ckpt").is_file()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"no_checkpoint": 1}, r"training left no last\.ckpt"),
        ({"fails": "fit"}, r"one, seed 0: fit ended with status 1, .*fit\.log$"),
    ],
)
def test_a_run_without_its_end_is_not_done(overrides, message, capsys):
    write_list(row("one", **overrides))
    with pytest.raises(UserError, match=message):
        do_both("one-seed0")
    assert not (FOLDER / "one-seed0/result.json").exists()
    if "fails" in overrides:  # the end of its log, and of a bar its last state
        shown = capsys.readouterr().err
        assert "    step 2\n" in shown and "    no such optimiser" in shown and "step 1" not in shown


def test_a_run_that_the_list_does_not_have_is_refused_with_those_it_has():
    write_list(TEACHER, STUDENT)
    with pytest.raises(UserError, match=r"no run mine/pupil-seed0; there are mine/teacher-seed0, mine/student-seed0"):
        do("fit", "pupil-seed0")


def test_what_a_run_depends_on_are_its_configs_and_the_trainings_it_starts_from():
    Path("networks").mkdir()
    Path("networks/tiny.yaml").write_text("init_args: {head: heads/one.yaml}")
    Path("networks/heads").mkdir()
    Path("networks/heads/one.yaml").write_text("dim: 8")
    Path("other.yaml").write_text("[1]")
    Path("mine.yaml").write_text("model: {network: networks/tiny.yaml, text: not.yaml}")
    student = {"config": "mine.yaml", "overrides": {"a": "other.yaml"}, "needs": {"teacher": "teacher"}}
    write_list(TEACHER, {"name": "student", "fit": student})
    teacher, run = runs_of(read_list(LIST), "mine")
    configs = ["mine.yaml", "networks/tiny.yaml", "networks/heads/one.yaml", "other.yaml"]
    assert run.inputs("fit") == [teacher.trained, *map(Path, configs)]
    assert run.inputs("test") == [run.trained, teacher.trained, *map(Path, configs)]
    assert teacher.inputs("fit") == list(map(Path, configs[:-1]))


def test_time_that_was_lost_is_not_counted():
    began = {"began": 100.0, "from": None, "from_time": None}
    lost = {"began": 150.0, "from": "a", "from_time": 130.0}
    again = {"began": 200.0, "from": "a", "from_time": 130.0}
    # From the beginning to the checkpoint, and from the last start to the end; the second attempt gave nothing.
    assert useful_seconds([began, lost, again], 250.0) == 30 + 50
    # An attempt that began anew: what came before it went into nothing.
    anew = {"began": 300.0, "from": None, "from_time": None}
    assert useful_seconds([began, anew], 310.0) == 10


def test_of_a_log_the_last_lines_are_shown_and_of_a_bar_its_last_state():
    log = b"\n".join(b"line %d" % number for number in range(40)) + b"\nEpoch 0: 1%\rEpoch 0: 50%\r\n\n"
    lines = tail(log).split("\n")
    assert len(lines) == 20
    assert (lines[0], lines[-1]) == ("    line 21", "    Epoch 0: 50%")
