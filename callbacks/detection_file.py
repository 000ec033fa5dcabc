"""Save what ``test`` and ``validate`` score, so that it can be scored again without the model."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator, Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_modules.networks.detections import ScoredBoxes


class DetectionFile(Callback):
    """Writes the detections of every keyframe that ``test`` or ``validate`` scores to one csv, whole or not at all.

    A row is ``video,seconds,x1,y1,x2,y2,action_id,score``, without header: the form of AVA's challenge, which
    PySlowFast's and the ActivityNet evaluators read. Seconds are those of the annotation, corners fractions of the
    frame, ids count from 1. Numbers have nine digits, enough to get every float32 back: ``python main.py score`` finds
    what ``test`` found. Rows are all actions of all boxes that the detector's thresholds leave, of the classes that are
    scored; a keyframe without any has no row, which loses nothing, since the ground truth says which keyframes count.

    Every process writes a file of its own beside the path, so they must share a file system; the first one joins them.

    Args:
        path: the csv file; None means ``predictions.csv`` in the folder of the run. An earlier file is replaced.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._file: TextIOWrapper | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            return
        # The folder of a run is agreed upon by all processes, so all of them ask.
        folder = trainer.log_dir
        self._target = self.path or Path(folder or ".") / "predictions.csv"
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._part(trainer.global_rank).open("w", newline="", encoding="utf-8")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._file is None:
            return
        expected = {"scored", "video_ids", "timestamps", "original_sizes"}
        if not isinstance(outputs, Mapping) or not expected <= set(outputs):
            raise TypeError(
                f"DetectionFile needs {type(pl_module).__name__}.test_step to return a dict of "
                f"{', '.join(sorted(expected))}; return one, or take DetectionFile out of trainer.callbacks"
            )
        data = trainer.datamodule
        classes = range(data.num_classes) if data.evaluated_classes is None else data.evaluated_classes
        keyframes = (outputs[name] for name in ("scored", "video_ids", "timestamps", "original_sizes"))
        writer = csv.writer(self._file, lineterminator="\n")
        for found, video, seconds, size in zip(*keyframes, strict=True):
            writer.writerows(rows(found, video, seconds + data.source.start_seconds, size, classes))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._file is None:
            return
        self._file.close()
        self._file = None
        trainer.strategy.barrier("detections written")
        if trainer.is_global_zero:
            self._join(trainer.world_size)
            print(f"wrote {self._target}")

    on_validation_start = on_test_start
    on_validation_batch_end = on_test_batch_end
    on_validation_end = on_test_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            self._part(trainer.global_rank).unlink(missing_ok=True)

    def _part(self, rank: int) -> Path:
        return self._target.with_name(f".{self._target.name}.{rank}.partial")

    def _join(self, world_size: int) -> None:
        first, *others = (self._part(rank) for rank in range(world_size))
        with first.open("ab") as whole:
            for other in others:
                if not other.is_file():
                    raise FileNotFoundError(
                        f"{other}: another process wrote its detections where this one does not see them; set path of "
                        "DetectionFile to a folder that all machines share"
                    )
                with other.open("rb") as part:
                    shutil.copyfileobj(part, whole, 2**20)
        first.replace(self._target)
        for other in others:
            other.unlink()


def rows(
    found: ScoredBoxes, video: str, seconds: float, size: Sequence[int], classes: Sequence[int]
) -> Iterator[tuple[str, ...]]:
    """The rows of one keyframe; ``size`` is height and width of the video that ``found`` has pixels of."""
    height, width = size
    boxes = found.boxes.double().cpu() / torch.tensor([width, height] * 2, dtype=torch.float64)
    scores = found.scores.cpu()[:, list(classes)]
    time, actions = f"{seconds:.6f}".rstrip("0").rstrip("."), [str(index + 1) for index in classes]
    for box, of_box in zip(boxes.tolist(), scores.tolist(), strict=True):
        corners = [f"{side:.9g}" for side in box]
        for action, score in zip(actions, of_box, strict=True):
            yield (video, time, *corners, action, f"{score:.9g}")
