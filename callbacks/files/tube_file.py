"""Save the tubes that ``test`` and ``validate`` score, so that they can be scored again without the model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.files.result_files import add_video
from datamodules.errors import UserError
from datamodules.files import require_writable
from lightning_modules.metrics.tube_results import write_tubes
from lightning_modules.metrics.tubes import Tube


class TubeFile(Callback):
    """Write the linked tubes of every video that ``test`` or ``validate`` scores to one json, see ``tube_results``.

    There must be a video mAP: ``--model.detection.video_map.linker=online``. ``python main.py score`` finds the same
    again.

    Args:
        path: the json file; None means ``tubes.json`` in the folder of the run. An earlier file is replaced.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._target = Path()
        self._videos: dict[str, list[Tube]] | None = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            return
        evaluation = getattr(getattr(pl_module, "evaluator", None), "videos", None)
        if evaluation is None:
            raise UserError(
                "TubeFile saves what video mAP scores, which is not there",
                remedy="set model.detection.video_map.linker=online, or take TubeFile out of trainer.callbacks",
            )
        # The folder of a run is agreed upon by all processes, so all of them ask.
        folder = trainer.log_dir
        self._target = self.path or Path(folder or ".") / "tubes.json"
        require_writable(self._target)
        self._videos = {}
        evaluation.on_finished = partial(add_video, self._videos)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._videos is None:
            return
        evaluation, videos = pl_module.evaluator.videos, self._videos
        evaluation.on_finished = self._videos = None
        if trainer.world_size > 1:
            parts: list[dict[str, list[Tube]] | None] = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, videos)
            videos = {}
            for video, tubes in (pair for part in parts for pair in part.items()):
                add_video(videos, video, tubes)
        if not trainer.is_global_zero:
            return
        notes = {"weights": str(trainer.ckpt_path or getattr(pl_module, "weights", None) or "as configured")}
        names, linker = trainer.datamodule.class_names, evaluation.settings.linker
        write_tubes(self._target, videos, names, evaluation.stride, linker, external_data=notes)
        print(f"wrote {self._target}: {sum(map(len, videos.values()))} tubes, {len(videos)} videos")

    on_validation_start = on_test_start
    on_validation_end = on_test_end
