"""The command ``maps``: feature maps of every frame by a frozen stem, computed once."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from datamodules.detection import DetectionDataModule
from datamodules.errors import UserError
from datamodules.frames.maps import FeatureMaps
from datamodules.video.picture_folder import Video

from ..evaluation.map_stem import facts_of
from ..networks.layers.stem import stem_of
from ..runtimes.stem import StemRuntime, stem_runner


def maps(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule,
    runtime: StemRuntime = "auto",
    num_threads: int | None = None,
    ckpt_path: Path | None = None,
    weights_only: bool | None = None,
) -> None:
    """Compute the maps of all videos of a config's data with the frozen stem of its network.

    Args:
        runtime: library that computes the maps. ``auto`` takes OpenVINO where it is installed, about three times as
            fast on a CPU.
        num_threads: threads of the runtime; one per processor by default.
        ckpt_path, weights_only: not used; accepted so that a run's ``config.yaml``, which has them, can be given.
    """
    stem = stem_of(model.network)
    if stem is None or not stem.frozen:
        raise UserError(
            "has no frozen stem whose maps could be computed once",
            where="model.network",
            remedy="give it one: --model.network.backbone.stem ConvolutionalStem (trunk.stem of a student)",
        )
    if not isinstance(datamodule, DetectionDataModule) or not isinstance(datamodule.store, FeatureMaps):
        raise UserError("names no folder for the maps", where="data.frames.maps", remedy="set it")
    datamodule.source.prepare()
    videos: list[Video] = [
        video.path for split in ("train", "val", "test") for video in datamodule.source.videos(split)
    ]
    store = datamodule.store
    made = store.build(videos, facts_of(stem), stem_runner(stem, runtime, num_threads))
    print(f"maps of {made} videos computed, those of {len(set(videos)) - made} were there: {store.folder}")
