"""``predict`` on a list of sources: files to their ends, cameras until SIGTERM."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import av
import pytest
import torch

from main import main
from tests import four_cameras
from tests.datamodules.miniature import numbered_frames
from tests.datamodules.written_videos import write_video
from tests.four_cameras import health, jpegs, predict_until

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").symlink_to(ROOT / "results")
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def num_frames(paths: list[Path]) -> int:
    """Frames of the parts of an annotated video."""
    total = 0
    for path in paths:
        with av.open(str(path)) as container:
            total += len(list(container.decode(video=0)))
    return total


def longest_absence(results: Path) -> float:
    """Seconds between two frames of the camera that leaves, both of which have their predictions."""
    stamps = [line["timestamp"] for line in lines(results / "leaving.jsonl")]
    return max((after - before for before, after in pairwise(stamps)), default=0.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_each_source_of_a_list_gets_the_predictions_that_it_gets_alone():
    for name, count, size in (("long", 20, (128, 160)), ("short", 9, (128, 160)), ("tall", 12, (160, 128))):
        write_video(f"{name}.mp4", numbered_frames(count, *size), 16)
    Path("films.txt").write_text("long.mp4\nshort.mp4\ntall.mp4\n")
    arguments = ["predict", "--weights=results/weights/dsta.pt", "--trainer.accelerator=cpu"]
    main([*arguments, "--source=films.txt"])
    together = {name: lines(Path(f"runs/predictions/{name}.jsonl")) for name in ("long", "short", "tall")}
    assert [line["state"] for line in lines(Path("runs/predictions/health.jsonl"))[-3:]] == ["ended"] * 3
    for name in ("long", "tall"):
        found = together[name]
        assert num_frames([Path(f"runs/predictions/{name}.detections.mp4")]) == len(found)
        main([*arguments, f"--source={name}.mp4", "--trainer.callbacks.folder=alone"])
        expected = lines(Path(f"alone/{name}.jsonl"))
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert {key: ours[key] for key in ("video", "frame", "timestamp")} == {
                key: theirs[key] for key in ("video", "frame", "timestamp")
            }
            assert len(ours["detections"]) == len(theirs["detections"])
            for one, other in zip(ours["detections"], theirs["detections"], strict=True):
                assert one["track"] == other["track"]
                assert one["box"] == pytest.approx(other["box"], abs=0.2)
                assert one["person"] == pytest.approx(other["person"], abs=1e-3)


@pytest.mark.slow
def test_four_cameras_of_which_three_are_ill_leave_whole_files_at_sigterm(puppets_film, tmp_path):
    def is_enough(process: object, results: Path) -> bool:
        newest = {name: of_camera[-1] for name, of_camera in health(results).items() if of_camera}
        if len(newest) < 4:
            return False
        was_lost = newest["leaving"]["reconnections"] >= 1 and newest["stalling"]["reconnections"] >= 1
        return was_lost and newest["steady"]["frames"] >= 20 and longest_absence(results) > 1

    status, said, errors = predict_until(is_enough, tmp_path, jpegs(puppets_film), seconds=480, threads=1)
    assert status == 143, errors[-2000:]
    assert errors.splitlines()[-1] == "stopped by SIGTERM" and "Traceback" not in errors
    results = tmp_path / "runs" / "predictions"
    found = health(results)
    last = {name: of_camera[-1] for name, of_camera in found.items()}
    assert all(line["final"] for line in last.values())
    for name in ("steady", "stalling", "leaving"):
        written = lines(results / f"{name}.jsonl")
        # With a look-ahead, the newest frames have not had their predictions yet.
        assert 0 <= last[name]["frames"] - len(written) <= 8
        assert num_frames(sorted(results.glob(f"{name}.detections*.mp4"))) == len(written)
        assert [line["frame"] for line in written] == sorted(line["frame"] for line in written)
        assert last[name]["delay_p95_ms"] is not None and f"{name} " in said
    assert sum(len(line["detections"]) for line in lines(results / "steady.jsonl")) > 10
    assert not list(results.glob("garbage*")) and last["garbage"]["frames"] == 0
    states = {name: {line["state"] for line in of_camera} for name, of_camera in found.items()}
    assert "running" in states["steady"] and "running" not in states["garbage"]
    assert last["steady"]["frames"] > last["leaving"]["frames"] > 0


def test_the_page_of_four_cameras_has_each_of_them_and_names_files_that_are_not_whole(tmp_path):
    figures = {"frames": 260, "dropped": 673, "reconnections": 1, "delay_p50_ms": 402.2, "delay_p95_ms": None}
    results = tmp_path / "predictions"
    results.mkdir()
    (results / "health.jsonl").write_text(
        "".join(json.dumps({"camera": name, **figures}) + "\n" for name in four_cameras.CAMERAS[:3])
    )
    (tmp_path / "events").mkdir()
    event = {"source": "steady", "rule": "walk", "track": 1, "start": 2.5}
    told = [event, event | {"start": 9.0}, event | {"source": "leaving"}, event]
    (tmp_path / "events" / "events.jsonl").write_text("".join(json.dumps(each) + "\n" for each in told))
    memory = [(number / 10, 1000 + number / 10) for number in range(1201)]
    text = four_cameras.page(143, results, memory, 120, 2)
    assert re.search(r"\| stalls +\| +260 \| +673 \| +1 \| +402 \| +- \|", text)
    assert re.search(r"\| leaves and comes back +\|( +- \|){5}", text)
    assert "1010 MiB after 10 s, 1030 MiB after 30 s, 1060 MiB after 60 s, 1120 MiB after 120 s" in text
    assert "Events: 3 of the camera that is well, 0 of the one that stalls, 1 of the one that leaves" in text
    assert "1 were reported twice." in text
    assert "Exit status 143; all files whole." in text and "2 threads, float32" in text
    (results / "steady.jsonl").write_text('{"frame": 1}\n{"fra')
    assert "Exit status 143; not whole: steady.jsonl." in four_cameras.page(143, results, memory, 120, 2)
