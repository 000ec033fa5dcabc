"""State of each of many cameras, every few seconds: on the screen, and as lines of a file."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.files.prediction_writer import PredictionWriter
from callbacks.files.result_files import ResultFiles, say
from datamodules.batches import SourceHealth
from datamodules.errors import UserError, printable

REMEMBERED_FRAMES = 10_000
"""Delays at the end are of each camera's last ones, or memory would grow with the run."""


class Delay(NamedTuple):
    """Delay of some frames in milliseconds; None where there was no frame."""

    p50: float | None
    p95: float | None


def delay_of(delays_ms: Sequence[float]) -> Delay:
    return Delay(*np.percentile(delays_ms, (50, 95)).round(1).tolist()) if delays_ms else Delay(None, None)


class _Counts:
    """Frames of one camera that the network has seen."""

    def __init__(self) -> None:
        self.frames = 0
        self.recent: deque[float] = deque(maxlen=REMEMBERED_FRAMES)
        self.all: deque[float] = deque(maxlen=REMEMBERED_FRAMES)


class CameraHealth(Callback):
    """Report how each of many cameras is; a single source is left to ``PredictionProgress``.

    ``<folder>/health.jsonl`` gets a line for each camera, ``{"time": of the day in UTC, "seconds": since the start,
    "camera": name, "state": see SourceHealth, "frames": predicted on, "received": frames that came in, "dropped":
    frames that were due and left out, "reconnections": how often it was lost and found again, "delay_p50_ms",
    "delay_p95_ms": since the line before, "problem": why it is away}``. It is written by a thread, so it goes on where
    no camera sends anything. ``"final": true`` marks the last lines, whose delays are those of the whole run.

    Delay is the time from when a frame was received to when its detections were there. Put this callback before those
    that write, whose time is not part of it.

    Args:
        folder: folder of ``health.jsonl``; by default that of the ``PredictionWriter``.
        every_seconds: time from one report to the next.
        on_screen: whether they are printed, too; the last one is in any case.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, folder: str | Path | None = None, every_seconds: float = 5.0, on_screen: bool = True) -> None:
        if every_seconds <= 0:
            raise UserError(f"every_seconds must be above 0, got {every_seconds}")
        self.folder, self.every_seconds, self.on_screen = folder, every_seconds, on_screen
        self._thread: threading.Thread | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sources = getattr(trainer.datamodule, "source_health", tuple)()
        if not sources or not trainer.is_global_zero:
            return
        self._trainer = trainer
        self._files = ResultFiles(self._chosen_folder(trainer), trainer)
        self._counts = [_Counts() for _ in sources]
        self._started, self._failure = time.monotonic(), None
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="camera health", daemon=True)
        self._thread.start()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._thread is None:
            return
        if self._failure is not None:
            raise self._failure
        delays_ms = (1000 * (time.monotonic() - batch.capture.received[:, 0])).tolist()
        with self._lock:
            for lane, delay_ms, is_frame in zip(batch.lanes, delays_ms, batch.is_valid[:, 0].tolist(), strict=True):
                if not is_frame:
                    continue
                counts = self._counts[lane]
                counts.frames += 1
                counts.recent.append(delay_ms)
                counts.all.append(delay_ms)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (failure := self._finish()) is not None:
            raise failure

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if (failure := self._finish()) is not None and failure is not exception:
            rank_zero_warn(str(failure))

    def _chosen_folder(self, trainer: Trainer) -> Path:
        if self.folder is not None:
            return Path(self.folder)
        folders = [each.folder for each in trainer.callbacks if isinstance(each, PredictionWriter)]
        return folders[0] if folders else Path("runs/predictions")

    def _run(self) -> None:
        while not self._over.wait(self.every_seconds):
            try:
                self._report()
            except UserError as error:  # raised where it ends the run
                self._failure = error
                return

    def _finish(self) -> UserError | None:
        """Write the last lines; return what went wrong."""
        if self._thread is None:
            return None
        self._over.set()
        self._thread.join()
        self._thread = None
        if self._failure is None:
            try:
                self._report(is_final=True)
            except UserError as error:
                self._failure = error
        self._files.report()
        return self._failure

    def _report(self, is_final: bool = False) -> None:
        lines = self._lines(is_final)
        self._files.append(
            self._files.shared_path("health", "jsonl"), "".join(json.dumps(line) + "\n" for line in lines)
        )
        if self.on_screen or is_final:
            width = max(len(line["camera"]) for line in lines)
            say("\n".join(on_screen(line, width) for line in lines))

    def _lines(self, is_final: bool) -> list[dict[str, Any]]:
        now, seconds = datetime.now(UTC).isoformat(timespec="milliseconds"), time.monotonic() - self._started
        sources: tuple[SourceHealth, ...] = self._trainer.datamodule.source_health()
        lines = []
        for source, counts in zip(sources, self._counts, strict=True):
            with self._lock:
                delays_ms, frames = list(counts.all if is_final else counts.recent), counts.frames
                counts.recent.clear()
            delay = delay_of(delays_ms)
            line = {
                "time": now,
                "seconds": round(seconds, 1),
                "camera": source.name,
                "state": source.state,
                "frames": frames,
                "received": source.received,
                "dropped": source.dropped,
                "reconnections": source.reconnections,
                "delay_p50_ms": delay.p50,
                "delay_p95_ms": delay.p95,
                "problem": source.problem,
            }
            lines.append(line | ({"final": True} if is_final else {}))
        return lines


def on_screen(line: dict[str, Any], width: int) -> str:
    """Return a line of the file as people read it, names ``width`` wide.

    >>> on_screen({"camera": "door", "state": "lost", "frames": 3, "dropped": 1, "reconnections": 0,
    ...     "delay_p50_ms": 41.2, "delay_p95_ms": 66.0, "problem": "the stream ended"}, 6)
    'door   lost        3 frames, 1 dropped, 0 reconnections, delay p50 41 ms, p95 66 ms (the stream ended)'
    """
    delay = "" if line["delay_p50_ms"] is None else f", delay p50 {line['delay_p50_ms']:.0f} ms"
    delay += "" if line["delay_p95_ms"] is None else f", p95 {line['delay_p95_ms']:.0f} ms"
    problem = "" if line["problem"] is None else f" ({line['problem']})"
    return printable(
        f"{line['camera']:<{width}} {line['state']:<11} {line['frames']} frames, {line['dropped']} dropped, "
        f"{line['reconnections']} reconnections{delay}{problem}"
    )
