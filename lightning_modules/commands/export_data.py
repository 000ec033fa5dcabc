"""Parts of the data that an export takes: frames to calibrate and compare on, ground truth, and the card's entries."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule

from callbacks.benchmark.provenance import commit
from datamodules.detection import DetectionDataModule
from datamodules.errors import UserError
from datamodules.frames.store import DecodedFrames
from datamodules.stream import StreamDataModule

from ..evaluation.detection_evaluator import DetectionEvaluator
from ..evaluation.stream_predictor import StreamPredictor
from ..networks.detection.export_graphs import ClipGraph, ExportGraph
from ..networks.weights.card import Card
from ..networks.weights.configured import card_with_timing
from ..networks.weights.loading import read_weights
from ..runtimes.detector import ExportedClip, ExportedDetector
from ..runtimes.sessions import Run
from .export_parity import look_ahead
from .quantization import Quantization, QuantizationSettings, Quantizer

ROOT = Path(__file__).parents[2]


def require_split(datamodule: LightningDataModule) -> None:
    """Refuse data that have no training videos to calibrate on.

    Raises:
        UserError: with what to take instead.
    """
    if not isinstance(datamodule, DetectionDataModule):
        raise UserError(
            f"{type(datamodule).__name__} has no videos of a data set to calibrate and compare on",
            where="quantize",
            remedy="take the config that the network was trained with",
        )


def clips_of(
    datamodule: DetectionDataModule,
    split: Literal["train", "val"],
    size: tuple[int, int],
    *,
    length: int,
    total: int | None = None,
    videos: int | None = None,
    seed: int | None = None,
) -> Iterator[np.ndarray]:
    """Yield consecutive frames of videos at the stride of the data, uint8 (N, H, W, 3), stretched to ``size``.

    Args:
        datamodule: whose source, stride and scale.
        split: of the source.
        size: height and width.
        length: largest number of frames of a video.
        total: of frames, after which to stop; all by default.
        videos: how many; all by default.
        seed: of the order in which they are drawn; their own by default.
    """
    import cv2

    datamodule.source.prepare()
    found = [video.path for video in datamodule.source.videos(split)]
    if seed is not None:
        random.Random(seed).shuffle(found)
    store, left = DecodedFrames(datamodule.store.scale), total
    for path in found[:videos]:
        count = len(store.facts(path).times)
        numbers = range(0, count, max(datamodule.frame_stride, 1))[:length][:left]
        frames = store.get(path, numbers)
        if frames.shape[1:3] != size:
            frames = np.stack([cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA) for frame in frames])
        yield frames
        if left is not None:
            left -= len(frames)
            if left <= 0:
                return


def quantizer_of(
    kind: Quantization,
    settings: QuantizationSettings,
    model: LightningModule,
    datamodule: DetectionDataModule,
    graph: ExportGraph,
) -> Quantizer:
    """Read what a quantisation needs of the data."""
    clips: list[np.ndarray] = []
    about: dict[str, object] = {}
    if kind == "static-int8":
        wanted = {"length": settings.frames, "videos": settings.videos, "seed": settings.seed}
        clips = list(clips_of(datamodule, "train", graph.image_size, **wanted))
        about["calibration"] = {
            "on": f"training split of {type(datamodule.source).__name__}",
            "videos": len(clips),
            "frames": sum(map(len, clips)),
            "seed": settings.seed,
        }
    measure = None
    if settings.map_videos:
        about["map_on"] = f"{settings.map_videos} videos of the validation split of {type(datamodule.source).__name__}"
        measure = partial(measure_map, model=model, datamodule=datamodule, graph=graph, num_videos=settings.map_videos)
    return Quantizer(kind, clips, measure, about)


def measure_map(
    run: Run, model: LightningModule, datamodule: DetectionDataModule, graph: ExportGraph, num_videos: int
) -> float:
    """Return the mAP of an exported graph on the first videos of the validation split, under the model's protocol.

    Raises:
        UserError: videos of another size than the graph takes.
    """
    network, stream = model.network, getattr(model, "stream", None)
    facts = (run, network.num_classes, graph.image_size, graph.score)
    scored = datamodule.evaluated_classes
    model.evaluator = DetectionEvaluator(model.detection, network.num_classes, scored)
    _open_validation(datamodule, num_videos)
    try:
        if isinstance(graph, ClipGraph):
            model.network = ExportedClip(*facts)
        else:
            start = {name: value.numpy() for name, value in graph.initial_state(1).items()}
            model.stream = StreamPredictor(ExportedDetector(*facts, start, look_ahead(graph)), model.decode)
        with torch.inference_mode():
            for number, batch in enumerate(datamodule.val_dataloader()):
                model.validation_step(batch, number)
    finally:
        model.network = network
        if stream is not None:
            model.stream = stream
    return float(model.evaluator.finish()["map"])


def _open_validation(datamodule: DetectionDataModule, num_videos: int) -> None:
    """Have a DataModule evaluate so many videos, one after the other: the graph may take one stream a call."""
    datamodule.source.prepare()
    datamodule.store = DecodedFrames(datamodule.store.scale)  # a cache would be filled with all videos first
    datamodule.setup("validate")
    datamodule.keep_first("val", num_videos)
    if isinstance(datamodule, StreamDataModule):
        datamodule.lanes = 1


def card_of(
    model: LightningModule, datamodule: LightningDataModule, weights: str | None, frame_rate: float | None
) -> Card:
    """Return the card of an exported network: that of its weights, with the data's classes, stride and size of frames.

    Its delay is that of the network, which may be another than that of the weights. Of weights without a card it says
    what is known; the network lies in the graph and is only named.
    """
    known = None if weights is None else read_weights(weights)[1]
    short_side = datamodule.store.scale.short_side if isinstance(datamodule, DetectionDataModule) else None
    source = getattr(datamodule, "source", None)
    card = known or Card(
        network={"class_path": type(model.network).__name__},
        classes=tuple(datamodule.class_names),
        frame_stride=datamodule.frame_stride,
        frame_rate=None,
        short_side=short_side,
        trained_on=type(source or datamodule).__name__,
        commit=commit(ROOT),
    )
    changes = {"classes": tuple(datamodule.class_names), "frame_stride": max(datamodule.frame_stride, 1)}
    changes["short_side"] = short_side or card.short_side
    return card_with_timing(replace(card, **changes, frame_rate=frame_rate or card.frame_rate), model.network)
