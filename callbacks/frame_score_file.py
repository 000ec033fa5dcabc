"""Write what an online detector says of every frame."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class FrameScoreFile(Callback):
    """Writes ``<folder>/<video id>.jsonl`` while prediction runs, so that what was said is there whenever it ends.

    A line a frame: ``{"timestamp": seconds, "actions": {name: score}}`` with the actions that score at least
    ``action_threshold``; a frame without any is a line too. "/" in a video id becomes "_". ``predict_step`` must return
    a list of dicts with ``video_id``, ``times`` (n,) and ``frame_scores`` (n, K), in order of time.

    Args:
        folder: made if missing; files of an earlier prediction are replaced.
        action_threshold: least score that is written.
    """

    def __init__(self, folder: str | Path = "runs/predictions", action_threshold: float = 0.05) -> None:
        self.folder, self.action_threshold = Path(folder), action_threshold
        self._started: set[Path] = set()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._started.clear()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Sequence[dict[str, Any]],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        names = trainer.datamodule.class_names
        for found in outputs:
            file = self.folder / f"{found['video_id'].replace('/', '_')}.jsonl"
            with file.open("a" if file in self._started else "w", encoding="utf-8") as lines:
                for time, scores in zip(found["times"].tolist(), found["frame_scores"].tolist(), strict=True):
                    chosen = {name: s for name, s in zip(names, scores, strict=True) if s >= self.action_threshold}
                    lines.write(json.dumps({"timestamp": time, "actions": chosen}) + "\n")
            self._started.add(file)
