"""Progress of prediction: a bar for files, frames per second and delay for live sources, a summary at the end."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from datamodules.errors import printable

RECENT_FRAMES = 30
"""Number of newest frames that the pace shown while running is taken from."""
REMEMBERED_FRAMES = 10_000
"""The summary's delays are of the last of them, or memory would grow with the run."""


class PredictionProgress(TQDMProgressBar):
    """Lightning's bar, and one line when prediction ends: frames, frames per second, and of a live source the delay.

    Delay runs from the arrival of a frame to its detections. The time that camera and network need before is not
    included. Put this callback before those that write, whose time is not part of it.
    """

    _started: float | None = None
    _live = False

    @property
    def total_predict_batches_current_dataloader(self) -> float:
        return math.inf if self._live else super().total_predict_batches_current_dataloader

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_predict_start(trainer, pl_module)
        self._started = time.monotonic()
        self._frames = 0
        self._moments: deque[float] = deque(maxlen=RECENT_FRAMES)
        self._delays_ms: deque[float] = deque(maxlen=REMEMBERED_FRAMES)
        self._capture: Any = None

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._live = getattr(batch, "capture", None) is not None
        super().on_predict_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        if videos := [video for video in getattr(batch, "video_ids", ()) if video]:
            self.predict_progress_bar.set_description(f"Predicting {printable(videos[0])}", refresh=False)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        now = time.monotonic()
        self._frames += len(outputs)
        self._moments.append(now)
        if self._live:
            self._capture = batch.capture
            self._delays_ms.extend((1000 * (now - batch.capture.received)).flatten().tolist())
        state = self._live_state() if self._live else f"{self._frames / (now - self._started):.1f} frames/s"
        self.predict_progress_bar.set_postfix_str(state, refresh=False)
        super().on_predict_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_predict_end(trainer, pl_module)
        self._summarise(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._started is None:
            return
        self.predict_progress_bar.close()  # or the error would stand at its end
        if self._frames > 0:
            self._summarise(trainer)

    def _live_state(self) -> str:
        recent = list(self._delays_ms)[-RECENT_FRAMES:]
        spent = self._moments[-1] - self._moments[0]
        rate = f"{(len(self._moments) - 1) / spent:.1f} frames/s, " if spent > 0 else ""
        return f"{rate}delay {np.median(recent):.0f} ms, {self._capture.dropped} dropped"

    def _summarise(self, trainer: Trainer) -> None:
        started, self._started = self._started, None
        if not trainer.is_global_zero:
            return
        seconds = time.monotonic() - started
        line = f"{self._frames} frames in {seconds:.1f} s, {self._frames / seconds:.1f} frames/s"
        if self._capture is not None:
            p50, p95, worst = np.percentile(self._delays_ms, (50, 95, 100))
            line += (
                f"; delay p50 {p50:.0f} ms, p95 {p95:.0f} ms, longest {worst:.0f} ms; "
                f"{self._capture.dropped} frames dropped, {self._capture.reconnections} reconnections"
            )
        print(line)
