"""Save the segments that a temporal detector finds, in the form that every evaluator of the field reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.files.result_files import add_video
from datamodules.files import require_writable
from lightning_modules.metrics.segment_results import write_results


class SegmentFile(Callback):
    """Write the detections of ``test``, ``validate`` and ``predict`` to one json in ActivityNet's form.

    ``test`` and ``validate`` write what they score, so that ``python main.py score`` finds the same again. The file is
    written at the end, or when prediction is stopped, with the videos that were finished by then. The module's steps
    return a list of dicts with ``video_id``, ``segments``, ``scores`` and ``labels``, one for each finished video.

    Args:
        path: the json file; None means ``segments.json`` in the folder of the run, of ``predict`` in
            ``runs/predictions``. An earlier file is replaced.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._target = Path()
        self._videos: dict[str, dict[str, Any]] | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            return
        folder = "runs/predictions" if trainer.state.fn == "predict" else trainer.log_dir
        self._target = self.path or Path(folder or ".") / "segments.json"
        require_writable(self._target)
        self._videos = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Sequence[dict[str, Any]],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._videos is None:
            return
        for found in outputs:
            parts = {name: found[name].detach().cpu() for name in ("segments", "scores", "labels")}
            add_video(self._videos, found["video_id"], parts)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._videos is None:
            return
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, self._videos)
            self._videos = {}
            for video, found in (pair for part in parts for pair in part.items()):
                add_video(self._videos, video, found)
        self._write(trainer, pl_module)

    on_validation_start = on_predict_start = on_test_start
    on_validation_batch_end = on_predict_batch_end = on_test_batch_end
    on_validation_end = on_predict_end = on_test_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.state.fn == "predict" and trainer.world_size == 1 and self._videos:
            self._write(trainer, pl_module)
        self._videos = None

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        videos, self._videos = self._videos, None
        if not trainer.is_global_zero:
            return
        notes = {"weights": str(trainer.ckpt_path or getattr(pl_module, "weights", None) or "as configured")}
        write_results(self._target, videos, trainer.datamodule.class_names, external_data=notes)
        print(f"wrote {self._target}: {sum(len(v['scores']) for v in videos.values())} segments, {len(videos)} videos")
