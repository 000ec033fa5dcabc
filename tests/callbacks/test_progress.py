"""Pace that prediction reports: frames, frames per second, delay, losses."""

import re
import time
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from callbacks.progress import PredictionProgress
from datamodules.batches import Capture


class Frames(L.LightningDataModule):
    """Twelve batches of two frames, as from a file, or of one as from a camera whose frames are 50 ms old."""

    def __init__(self, live: bool) -> None:
        super().__init__()
        self.live = live

    def predict_dataloader(self):
        return self

    def __len__(self) -> int:
        return 2**31 if self.live else 12

    def __iter__(self):
        for number in range(12):
            received = torch.tensor([[time.monotonic() - 0.05]], dtype=torch.float64)
            capture = Capture(received, number, 1) if self.live else None
            yield SimpleNamespace(capture=capture, video_ids=("", f"porch/{number}\x1b"))


class Module(L.LightningModule):
    def __init__(self, fails_at: int = 99) -> None:
        super().__init__()
        self.fails_at = fails_at

    def predict_step(self, batch, index):
        if index == self.fails_at:
            raise RuntimeError("the camera is gone")
        return [{}] * (1 if batch.capture else 2)


def predict(live: bool, module: Module | None = None) -> None:
    settings = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu", "devices": 1}
    trainer = L.Trainer(callbacks=[PredictionProgress()], enable_model_summary=False, **settings)
    trainer.predict(module or Module(), datamodule=Frames(live))


def test_a_file_has_a_bar_with_an_end_and_a_summary(capfd):
    predict(live=False)
    said = capfd.readouterr().out
    assert re.search(r"^24 frames in \d+\.\d s, \d+\.\d frames/s$", said, re.MULTILINE)
    assert "12/12" in said
    assert re.search(r"Predicting porch/11\\x1b: .*, \d+\.\d frames/s\]", said)
    assert "delay" not in said


def test_a_live_source_shows_pace_delay_and_losses(capfd):
    predict(live=True)
    said = capfd.readouterr().out
    shown = re.findall(r"([\d.]+) frames/s, delay (\d+) ms, (\d+) dropped", said)
    assert shown and shown[-1][2] == "11"
    assert 50 <= int(shown[-1][1]) < 1000
    assert str(2**31) not in said
    summary = re.search(r"delay p50 (\d+) ms, p95 (\d+) ms, longest (\d+) ms; 11 frames dropped, 1 reconn", said)
    assert 50 <= int(summary[1]) <= int(summary[2]) <= int(summary[3])
    assert "12 frames in" in said


def test_a_run_that_fails_is_summarised_too(capfd):
    with pytest.raises(RuntimeError, match="the camera is gone"):
        predict(True, Module(fails_at=5))
    said = capfd.readouterr().out
    assert len(re.findall(r"^5 frames in", said, re.MULTILINE)) == 1  # not at the end of the bar
