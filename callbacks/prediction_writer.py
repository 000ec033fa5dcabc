"""Write what ``predict`` finds: one JSON line a frame."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class PredictionWriter(Callback):
    """Writes each frame's detections to ``<folder>/<video id>.jsonl`` while prediction runs ("/" in an id becomes "_").

    A line is ``{"timestamp": seconds, "detections": [{"box": [x1, y1, x2, y2] in pixels of the video, "person": score,
    "actions": {name: score}}]}``; only persons and actions of at least the thresholds are written, a frame without any
    has an empty list. ``predict_step`` must return dictionaries with ``video_id``, ``timestamp``, ``boxes``, ``scores``
    and ``person_scores``.

    Args:
        folder: made if missing; files of an earlier prediction are replaced.
        person_threshold: least person score. action_threshold: least action score.
    """

    def __init__(
        self, folder: str | Path = "runs/predictions", person_threshold: float = 0.5, action_threshold: float = 0.2
    ) -> None:
        self.folder = Path(folder)
        self.person_threshold, self.action_threshold = person_threshold, action_threshold
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
        for entry in outputs:
            # The whole id: videos of one name in two folders are told apart by their paths.
            path = self.folder / f"{entry['video_id'].strip('/').replace('/', '_')}.jsonl"
            with path.open("a" if path in self._started else "w") as file:
                file.write(json.dumps(self.line(entry, names)) + "\n")
            self._started.add(path)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for path in sorted(self._started):
            print(f"wrote {path}")

    def line(self, entry: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """One frame as plain numbers and names."""
        persons: Tensor = entry["person_scores"]
        detections = []
        for index in (persons >= self.person_threshold).nonzero()[:, 0].tolist():
            actions = {
                name: round(score, 4)
                for name, score in zip(names, entry["scores"][index].tolist(), strict=True)
                if score >= self.action_threshold
            }
            box = [round(side, 1) for side in entry["boxes"][index].tolist()]
            detections.append({"box": box, "person": round(float(persons[index]), 4), "actions": actions})
        return {"timestamp": round(entry["timestamp"], 4), "detections": detections}
