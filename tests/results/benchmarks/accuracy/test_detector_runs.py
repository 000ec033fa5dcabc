"""Detectors of a list: which commands are run for one, and what is taken from them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from datamodules.errors import UserError
from results.benchmarks.accuracy.detector_runs import Detector, completed

PROGRAM = """
import json, sys
from pathlib import Path

kind, *arguments = sys.argv[1:]
with open("calls.jsonl", "a") as calls:
    calls.write(json.dumps([kind, *arguments]) + "\\n")
if "--fails" in arguments:
    sys.exit("Traceback\\nmodel.weights: no such file")
if kind == "validate":
    given = dict(argument[2:].split("=", 1) for argument in arguments if "=" in argument)
    Path(given["trainer.callbacks.path"]).write_text("v,0,0,0,1,1,1,0.5\\n")
    parent = Path("runs") / given["name"]
    folder = parent / f"version_{len(list(parent.glob('version_*')))}"
    folder.mkdir(parents=True)
    state, delay = ("0.5", "2") if "student" in arguments else ("0.0", "3")
    head = "step,val/map,cost/latency_p50_ms,cost/state_mib,cost/delay_frames"
    (folder / "metrics.csv").write_text(f"{head}\\n0,,12.5,{state},{delay}\\n0,0.8,,,\\n")
"""


@pytest.fixture
def command(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM)
    return [sys.executable, "program.py"]


def calls() -> list[list[str]]:
    return [json.loads(line) for line in Path("calls.jsonl").read_text().splitlines()]


def test_predictions_time_and_delay_come_from_validation(command):
    detector = Detector("a teacher", "net.yaml", "--model.weights 'the weights.pt'")
    for _ in range(2):  # a second run has a folder of its own
        found = completed(detector, "--data.source data.yaml", command)
        assert (found.latency_ms, found.frames_awaited, found.schedule) == (12.5, 3, "newest")
        assert Path(found.predictions).read_text().startswith("v,0,") and "threads" in found.note
    (kind, *arguments), again = calls()
    assert kind == "validate" and again[1:] == arguments
    assert arguments[:5] == ["--config=net.yaml", "--data.source", "data.yaml", "--model.weights", "the weights.pt"]
    assert arguments[-1] == "--name=streaming_accuracy/a_teacher/run"


def test_a_stream_takes_every_frame(command):
    found = completed(Detector("one", "net.yaml", "student"), command=command)
    assert (found.frames_awaited, found.schedule) == (2, "every")


def test_what_the_list_says_stays(command):
    given = Detector("one", "net.yaml", latency_ms=43.04, frames_awaited=0, schedule="parallel", note="elsewhere.")
    found = completed(given, command=command)
    assert (found.latency_ms, found.frames_awaited, found.schedule) == (43.04, 0, "parallel")
    assert found.note == "elsewhere." and found.predictions is not None


def test_an_exported_file_is_validated_in_the_place_of_its_weights(command):
    detector = Detector("one, int8", "net.yaml", "--model.weights w.pt", export="--quantize int8")
    completed(detector, "--data.source data.yaml", command)
    export, validate = calls()
    file = "runs/streaming_accuracy/one__int8/exported.onnx"
    weights = ["--model.weights", "w.pt"]
    assert export == [
        *("export", "--config=net.yaml", "--data.source", "data.yaml", *weights, "--quantize", "int8"),
        f"--output={file}",
    ]
    assert f"--model.network.file={file}" in validate and "--data.lanes=1" in validate
    assert "w.pt" not in validate and validate[1:4] == ["--config=net.yaml", "--data.source", "data.yaml"]


def test_saved_predictions_with_a_latency_need_no_run(command):
    found = completed(Detector("one", predictions="saved.csv", latency_ms=5.0), command=command)
    assert (found.predictions, found.frames_awaited, found.schedule) == ("saved.csv", 0, "newest")
    assert not Path("calls.jsonl").exists()


def test_a_row_that_can_be_neither_run_nor_read_is_refused(command):
    with pytest.raises(UserError, match=r"one: has no config to run, .*; give config and arguments, or both"):
        completed(Detector("one", predictions="saved.csv"), command=command)


def test_a_command_that_fails_is_named_with_its_last_line_and_its_log(command):
    with pytest.raises(UserError, match=r"one/validate.log: validate ended with status 1: model.weights: no such file"):
        completed(Detector("one", "net.yaml", "--fails"), command=command)
