"""Lines about each of many cameras while they run: its frames, losses, delay and state."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch

from callbacks.files.camera_health import CameraHealth
from callbacks.files.prediction_writer import PredictionWriter
from datamodules.batches import Capture, SourceHealth
from datamodules.errors import UserError


class Cameras(L.LightningDataModule):
    """Batches of the lanes given, whose frames are so many milliseconds old; then a while without any.

    With ``ends`` the last batch ends its lanes and adds no frame.
    """

    def __init__(self, *batches: dict[int, float], pause: float = 0.0, ends: bool = False) -> None:
        super().__init__()
        self.given, self.pause, self.ends, self.class_names = batches, pause, ends, ("walk",)
        self.health = (
            SourceHealth("door", "running", 7, 2, 0, None),
            SourceHealth("back yard", "lost", 3, 0, 1, "the stream ended"),
        )

    def source_health(self) -> tuple[SourceHealth, ...]:
        return self.health

    def predict_dataloader(self):
        return self

    def __len__(self) -> int:
        return 2**31

    def __iter__(self):
        for number, batch in enumerate(self.given, start=1):
            received = torch.tensor([[time.monotonic() - age / 1000] for age in batch.values()], dtype=torch.float64)
            names = tuple(self.health[lane].name for lane in batch)
            is_end = self.ends and number == len(self.given)
            is_valid = torch.full((len(batch), 1), not is_end)
            capture = Capture(received, 2, 1)
            yield SimpleNamespace(capture=capture, lanes=tuple(batch), video_ids=names, is_valid=is_valid)
        time.sleep(self.pause)


class Module(L.LightningModule):
    def predict_step(self, batch, index):
        if batch.lanes == ():
            raise RuntimeError("a bug")
        return []


def predict(data: L.LightningDataModule, *callbacks: L.Callback) -> None:
    settings = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu", "devices": 1}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False}
    L.Trainer(callbacks=list(callbacks), **settings).predict(Module(), datamodule=data, return_predictions=False)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "health.jsonl").read_text().splitlines()]


def test_the_last_lines_hold_frames_losses_and_delays_of_each_camera(tmp_path, capsys):
    ages = (1000.0, 3000.0, 2000.0, 9000.0)
    predict(Cameras(*({0: age} for age in ages), {1: 500.0, 0: 4000.0}), CameraHealth(tmp_path, every_seconds=60))
    door, yard = lines(tmp_path)
    p50, p95 = np.percentile([*ages, 4000.0], (50, 95))
    assert door["delay_p50_ms"] == pytest.approx(p50, abs=200) and door["delay_p95_ms"] == pytest.approx(p95, abs=200)
    assert yard["delay_p50_ms"] == yard["delay_p95_ms"] == pytest.approx(500, abs=200)
    for line in (door, yard):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", line.pop("time"))
        assert 0 <= line.pop("seconds") < 30
        del line["delay_p50_ms"], line["delay_p95_ms"]
    assert door == {
        "camera": "door",
        "state": "running",
        "frames": 5,
        "received": 7,
        "dropped": 2,
        "reconnections": 0,
        "problem": None,
        "final": True,
    }
    assert yard == door | {
        "camera": "back yard",
        "state": "lost",
        "frames": 1,
        "received": 3,
        "dropped": 0,
        "reconnections": 1,
        "problem": "the stream ended",
    }
    said = capsys.readouterr().out
    assert re.search(
        r"^door      running     5 frames, 2 dropped, 0 reconnections, delay p50 \d+ ms, p95 \d+ ms$", said, re.M
    )
    assert re.search(r"^back yard lost        1 frames, 0 dropped, 1 reconn.* ms \(the stream ended\)$", said, re.M)
    assert f"wrote {tmp_path}/health.jsonl" in said


def test_the_end_of_a_camera_is_no_frame(tmp_path):
    predict(Cameras({0: 1000.0, 1: 1000.0}, {0: 5000.0}, ends=True), CameraHealth(tmp_path, every_seconds=60))
    assert [(line["frames"], line["delay_p50_ms"] < 3000) for line in lines(tmp_path)] == [(1, True), (1, True)]


def test_lines_go_on_where_no_camera_sends_anything_and_their_delays_are_those_since_the_last(tmp_path):
    predict(Cameras({0: 1000.0}, pause=0.5), CameraHealth(tmp_path, every_seconds=0.1, on_screen=False))
    door = [line for line in lines(tmp_path) if line["camera"] == "door"]
    assert len(door) >= 3 and [line["frames"] for line in door] == [1] * len(door)
    assert [line["delay_p50_ms"] is None for line in door] == [False] + [True] * (len(door) - 2) + [False]
    assert [line.get("final", False) for line in door] == [False] * (len(door) - 1) + [True]


def test_a_run_that_fails_leaves_its_last_lines(tmp_path):
    with pytest.raises(RuntimeError, match="a bug"):
        predict(Cameras({0: 5.0}, {}), CameraHealth(tmp_path, every_seconds=60))
    assert [(line["camera"], line["frames"], line["final"]) for line in lines(tmp_path)] == [
        ("door", 1, True),
        ("back yard", 0, True),
    ]


def test_lines_go_where_predictions_go_and_a_single_source_has_none(tmp_path):
    predict(Cameras({0: 5.0}), CameraHealth(every_seconds=60), PredictionWriter(tmp_path / "both"))
    assert len(lines(tmp_path / "both")) == 2
    single = Cameras({0: 5.0})
    single.health = ()
    single.given = ()
    predict(single, CameraHealth(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_file_that_cannot_be_written_ends_the_run_with_its_name(tmp_path):
    (tmp_path / "health.jsonl").mkdir()
    with pytest.raises(UserError, match=r"health\.jsonl: exists and is no result"):
        predict(Cameras({0: 5.0}), CameraHealth(tmp_path, every_seconds=60))
    with pytest.raises(UserError, match=r"health\.jsonl: exists and is no result"):
        predict(Cameras(*[{0: 5.0}] * 3, pause=0.1), CameraHealth(tmp_path, every_seconds=0.01))


def test_a_period_without_sense_is_refused():
    with pytest.raises(UserError, match="every_seconds must be above 0, got 0"):
        CameraHealth(every_seconds=0)
