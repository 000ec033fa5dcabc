"""Write the class scores of every frame that an online detector predicts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.files.result_files import ResultFiles


class FrameScoreFile(Callback):
    """Write ``<folder>/<video id>.jsonl`` while prediction runs, so that it is there whenever prediction ends.

    There is one line per frame: ``{"video": id, "timestamp": seconds, "actions": {name: score}}`` with the actions that
    score at least ``action_threshold``; a frame without any is a line too. Files lie in sub-folders as their videos do;
    see ``ResultFiles`` for their names. ``predict_step`` must return a list of dicts with ``video_id``, ``times`` (n,)
    and ``frame_scores`` (n, K), in order of time.

    Args:
        folder: made if missing; files of an earlier prediction are replaced, which is reported.
        action_threshold: least score that is written.
    """

    def __init__(self, folder: str | Path = "runs/predictions", action_threshold: float = 0.05) -> None:
        self.folder, self.action_threshold = Path(folder), action_threshold
        self._files: ResultFiles | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._files = ResultFiles(self.folder, trainer)

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
            video, lines = found["video_id"], []
            for time, scores in zip(found["times"].tolist(), found["frame_scores"].tolist(), strict=True):
                chosen = {name: s for name, s in zip(names, scores, strict=True) if s >= self.action_threshold}
                lines.append(json.dumps({"video": video, "timestamp": time, "actions": chosen}) + "\n")
            self._files.append(self._files.path(video, "jsonl"), "".join(lines))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._files.report()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._files is not None:
            self._files.report()
