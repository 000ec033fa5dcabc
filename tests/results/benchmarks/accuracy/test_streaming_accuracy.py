"""The page of streaming accuracy: maps by speed from saved rows, its table and picture."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml

from datamodules.batches import TrueKeyframe
from datamodules.errors import UserError
from lightning_modules.metrics.frame_ap import FrameMapSettings, FrameRows
from results.benchmarks.accuracy import streaming_accuracy
from results.benchmarks.accuracy.detector_runs import Detector
from results.benchmarks.accuracy.streaming_accuracy import SPEEDS, given, main, streaming_maps

ROOT = Path(__file__).resolve().parents[4]
STEP = 0.1
LIST = {"data": "data.yaml", "detectors": [{"name": name, "config": "net.yaml"} for name in ("one", "two", "three")]}


def rows(videos: int, frames: int, speed: float = 3.0) -> tuple[FrameRows, FrameRows, list[TrueKeyframe]]:
    """One person a frame, walking so fast that a box of three frames ago no longer overlaps; keyframes shuffled."""
    random = np.random.default_rng(0)
    places = [(video, at) for video in range(videos) for at in range(frames)]
    places = [places[index] for index in random.permutation(len(places))]
    boxes = np.asarray([[speed * at, 0, speed * at + 10, 20] for _, at in places], float)
    labels = random.integers(0, 2, len(places))
    label_of = {video: labels[video] for video in range(videos)}
    classes = np.asarray([label_of[video] for video, _ in places])
    count = np.arange(len(places))
    rows = FrameRows(count, boxes, count, classes, np.ones(len(places)))
    keyframes = [
        TrueKeyframe(f"v{video}", STEP * at, box[None].astype(np.float32), np.eye(2)[[label]], (240, 320))
        for (video, at), box, label in zip(places, boxes, classes, strict=True)
    ]
    return rows._replace(scores=random.uniform(0.5, 1, len(places))), rows, keyframes


def detector(**changes) -> Detector:
    times = {"latency_ms": 0.0, "frames_awaited": 0, "schedule": "newest"}
    return Detector(**({"name": "one", "config": "net.yaml", "predictions": "none"} | times | changes))


def test_without_any_time_every_speed_has_the_map_of_tables():
    maps = streaming_maps(*rows(3, 12), 2, detector(), FrameMapSettings())
    assert set(maps) == {"offline", *(f"{speed:g}" for speed in SPEEDS)}
    assert set(maps.values()) == {1.0}


def test_a_slow_machine_sees_people_where_they_were():
    """Boxes are 10 wide and move 3 a frame: one frame late they overlap by 7/13, two frames late by 4/16.

    At 4x a prediction takes less than a frame and is one late: all but the first of the 12 frames of a video are found.
    At 0.25x it takes six frames: nothing is.
    """
    maps = streaming_maps(*rows(3, 12), 2, detector(latency_ms=150.0), FrameMapSettings())
    assert maps["0.25"] == 0 and maps["offline"] == 1
    assert maps["4"] == maps["16"] == pytest.approx(11 / 12)
    assert maps["4"] > maps["1"]


def test_what_is_awaited_stays_however_fast_the_machine_is():
    maps = streaming_maps(*rows(3, 12), 2, detector(frames_awaited=2), FrameMapSettings())
    assert maps["16"] == 0 and maps["offline"] == 1


@pytest.fixture
def measured(tmp_path, monkeypatch) -> list[str]:
    """The names of the detectors that are measured, in turn; ``list.yaml`` names three."""
    maps, names = streaming_maps(*rows(2, 8), 2, detector(latency_ms=150.0), FrameMapSettings()), []

    def measure(one, listing, settings):
        names.append(one.name)
        found = {"maps": maps, "protocol": "ava frame mAP@0.5", "given": given(one, listing), "note": "measured here."}
        return asdict(detector(name=one.name, latency_ms=150.0)) | found

    monkeypatch.setattr(streaming_accuracy, "measure", measure)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.yaml").write_text(yaml.safe_dump(LIST))
    return names


def shown_in(page) -> list[str]:
    """The detectors of a page's table, in turn."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    return [line.split("|")[1].strip() for line in lines[1:]]


def test_the_page_is_drawn_again_without_the_predictions(tmp_path, measured):
    main(["list.yaml", "--out", "page.md"])
    for name in ("page.md", "page.png"):
        (tmp_path / name).unlink()
    main(["list.yaml", "--out", "page.md", "--draw_only"])
    text = (tmp_path / "page.md").read_text()
    assert measured == ["one", "two", "three"] == shown_in(tmp_path / "page.md")
    assert "## Streaming ava frame mAP@0.5" in text and "Latencies: measured here." in text and "](page.png)" in text
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_measured_already_is_not_measured_again(tmp_path, measured):
    main(["list.yaml", "--out", "page.md"])
    main(["list.yaml", "--out", "page.md"])
    assert measured == ["one", "two", "three"]
    changed = [LIST["detectors"][0], LIST["detectors"][1] | {"arguments": "--model.weights new.pt"}]
    added = {"name": "four", "config": "net.yaml"}
    (tmp_path / "list.yaml").write_text(yaml.safe_dump(LIST | {"detectors": [*changed, added]}))
    main(["list.yaml", "--out", "page.md"])
    assert measured[3:] == ["two", "four"] and shown_in(tmp_path / "page.md") == ["one", "two", "four"]
    main(["list.yaml", "--out", "page.md", "--again"])
    assert measured[5:] == ["one", "two", "four"]


def test_two_detectors_of_one_name_are_refused(tmp_path, measured):
    first, *others = LIST["detectors"]
    (tmp_path / "list.yaml").write_text(
        yaml.safe_dump(LIST | {"detectors": [first, *others, first | {"arguments": "--a 1"}]})
    )
    with pytest.raises(UserError, match=r"list.yaml: has two detectors of one name \(one\)"):
        main(["list.yaml", "--out", "page.md"])
    assert measured == []


def test_one_row_is_measured_alone(tmp_path, measured, capsys):
    main(["list.yaml", "--out", "page.md", "--rows", "two"])
    assert measured == ["two"] and shown_in(tmp_path / "page.md") == ["two"]
    assert "three: not measured with its present settings" in capsys.readouterr().out
    main(["list.yaml", "--out", "page.md", "--rows", "two", "one"])
    assert measured == ["two", "two", "one"] and shown_in(tmp_path / "page.md") == ["one", "two"]
    with pytest.raises(UserError, match=r"list.yaml: has no detector 'tow'; name one of one, two, three"):
        main(["list.yaml", "--out", "page.md", "--rows", "tow"])


def test_other_data_or_another_protocol_are_measured_again(tmp_path, measured):
    main(["list.yaml", "--out", "page.md"])
    (tmp_path / "list.yaml").write_text(yaml.safe_dump(LIST | {"metric": {"iou_threshold": 0.75}}))
    main(["list.yaml", "--out", "page.md", "--rows", "one"])
    assert measured[3:] == ["one"] and shown_in(tmp_path / "page.md") == ["one"]


def test_a_page_of_nothing_is_refused(measured):
    with pytest.raises(UserError, match="no detector of it has been measured; leave --draw_only out"):
        main(["list.yaml", "--draw_only"])


@pytest.mark.slow
def test_a_teacher_and_an_int8_student_are_measured_by_one_command(tmp_path, monkeypatch):
    """The shipped weights on two videos: the students' predictions come from the quantised file."""
    pytest.importorskip("onnxruntime.quantization")
    data = yaml.safe_load((ROOT / "configs" / "evad.yaml").read_text())
    source = {"class_path": "Puppets", "init_args": {"root": str(tmp_path / "puppets"), "size": "tiny"}}
    data["data"]["init_args"]["source"] = source
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(data))
    (tmp_path / "source.yaml").write_text(yaml.safe_dump(source))
    weights = ROOT / "results" / "weights"
    listing = {
        "data": str(tmp_path / "data.yaml"),
        "arguments": f"--data.source {tmp_path / 'source.yaml'} --data.frames.cache null --trainer.precision 32-true",
        "detectors": [
            {
                "name": "teacher",
                "config": str(ROOT / "configs" / "evad.yaml"),
                "arguments": f"--model.weights {weights / 'evad.pt'}",
            },
            {
                "name": "DSTA, int8",
                "config": str(ROOT / "configs" / "late" / "distill_dsta_late.yaml"),
                "arguments": f"--model.weights {weights / 'dsta_late.pt'}",
                "export": "--quantize int8 --parity_frames 3",
            },
        ],
    }
    (tmp_path / "list.yaml").write_text(yaml.safe_dump(listing))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "weights").symlink_to(weights)  # configs name a teacher's
    monkeypatch.chdir(tmp_path)
    main(["list.yaml", "--out", "page.md"])
    teacher, student = map(json.loads, (tmp_path / "page.jsonl").read_text().splitlines())
    assert (teacher["frames_awaited"], teacher["schedule"]) == (3, "newest")
    assert (student["frames_awaited"], student["schedule"]) == (3, "every")
    for line in (teacher, student):
        assert line["latency_ms"] > 0 and line["maps"]["offline"] > 0.5 > line["maps"]["16"]
    assert (tmp_path / "runs/streaming_accuracy/DSTA__int8/exported.onnx").is_file()
    assert shown_in(tmp_path / "page.md") == ["teacher", "DSTA, int8"]
