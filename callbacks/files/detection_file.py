"""Save what ``test`` and ``validate`` score, so that it can be scored again without the model."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from datamodules.errors import UserError
from datamodules.files import errors_named, require_writable, whole_file
from lightning_modules.networks.detection.outputs import ScoredBoxes


class DetectionFile(Callback):
    """Write the detections of every keyframe that ``test`` or ``validate`` scores to one csv, whole or not at all.

    A row is ``video,seconds,x1,y1,x2,y2,action_id,score``, without header: the form of AVA's challenge, which
    PySlowFast's and the ActivityNet evaluators read. Seconds are those of the annotation, corners fractions of the
    frame, ids count from 1. Numbers have nine digits, enough to get every float32 back: ``python main.py score`` finds
    what ``test`` found. Rows are all actions of all boxes that the detector's thresholds leave, of the scored classes.
    A keyframe without any has no row, which loses nothing: the ground truth decides which keyframes count.

    Every process writes a file of its own beside the path, so they must share a file system; the first one joins them.

    Args:
        path: the csv file; None means ``predictions.csv`` in the folder of the run. An earlier file is replaced.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._file: IO[str] | None = None
        self._open = ExitStack()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            return
        # The folder of a run is agreed upon by all processes, so all of them ask.
        folder = trainer.log_dir
        self._target = self.path or Path(folder or ".") / "predictions.csv"
        require_writable(self._target)
        path = self._target if trainer.is_global_zero else self._part(trainer.global_rank)
        self._file = self._open.enter_context(whole_file(path, newline=""))

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
        with errors_named(self._target):
            for found, video, seconds, size in zip(*keyframes, strict=True):
                writer.writerows(rows(found, video, seconds + data.source.start_seconds, size, classes))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        if not trainer.is_global_zero:
            self._open.close()  # which gives the part its name
        trainer.strategy.barrier("detections written")
        if trainer.is_global_zero:
            with self._open:
                self._join(file, trainer.world_size)
            print(f"wrote {self._target}")

    on_validation_start = on_test_start
    on_validation_batch_end = on_test_batch_end
    on_validation_end = on_test_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._file is not None:
            self._file = None
            with suppress(UserError):  # of a disk that is full: the first error is the one to see
                self._open.__exit__(type(exception), exception, exception.__traceback__)  # removes the unfinished file

    def _part(self, rank: int) -> Path:
        name = hashlib.sha256(os.fsencode(self._target.name)).hexdigest()[:12]
        return self._target.with_name(f".{name}.{rank}.rows")

    def _join(self, file: IO[str], world_size: int) -> None:
        """Add what the other processes wrote to the file of the first one."""
        parts = [self._part(rank) for rank in range(1, world_size)]
        file.flush()
        for part in parts:
            if not part.is_file():
                raise UserError(
                    "another process wrote its detections where this one does not see them",
                    part,
                    "set path of DetectionFile to a folder that all machines share",
                )
            with part.open("rb") as rows_of_part:
                shutil.copyfileobj(rows_of_part, file.buffer, 2**20)
        for part in parts:
            part.unlink()


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
