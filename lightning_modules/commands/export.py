"""The command ``export``: a network for other runtimes, compared with PyTorch and timed beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from callbacks.benchmark.provenance import commit
from datamodules.errors import UserError
from datamodules.frames.store import DecodedFrames

from ..networks.weights.loading import load_weights
from ..networks.weights.safetensors_file import CARD
from .export_benchmark import benchmark_exported
from .export_data import card_of, clips_of, quantizer_of, require_split
from .export_graph import export_graph, graph_of
from .export_parity import moving_blobs
from .quantization import Quantization, QuantizationSettings

ROOT = Path(__file__).parents[2]


def export(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule,
    format: Literal["onnx", "torch_export"] = "onnx",
    output: Path | None = None,
    image_size: tuple[int, int] | None = None,
    batch_size: int = 1,
    dynamic_batch: bool = False,
    video: Path | None = None,
    parity_frames: int = 200,
    box_tolerance: float = 1e-4,
    score_tolerance: float = 1e-3,
    opset: int = 18,
    quantize: Quantization | None = None,
    quantization: QuantizationSettings = QuantizationSettings(),  # noqa: B008  (frozen)
    frame_rate: float | None = None,
    benchmark: bool = False,
    ckpt_path: str | None = None,
    weights_only: bool | None = True,
) -> None:
    """Write a network for other runtimes: a student's step with its state as inputs and outputs, a teacher's clip.

    Args:
        format: ``onnx`` for onnxruntime and others, ``torch_export`` for PyTorch alone.
        output: file to write, ``runs/export/<name>`` by default. It gets the ending of the format.
        image_size: height and width of the frames in pixels, padded inside. By default the size of the video's frames
            as the data reads them, or without a video the square that the network was made for.
        batch_size: streams (of a teacher: clips) per call.
        dynamic_batch: accept any number of streams per call.
        video: film on whose frames the export is compared with PyTorch; moving blobs by default.
        parity_frames: number of frames in that comparison.
        box_tolerance: largest allowed difference of a box's corner, as a fraction of the frame's width or height.
        score_tolerance: largest allowed difference of a score.
        opset: version of the ONNX operators, 18 to 25.
        quantize: quantise products with onnxruntime. ``int8`` finds their ranges in every call, ``static-int8`` takes
            them from frames of the training data. The loss is measured on frames of the validation data, or of the
            video.
        quantization: choice of those frames.
        frame_rate: frame rate of the training videos, for the card inside the file; that of the weights' card by
            default.
        benchmark: time the export and PyTorch in turn, and add a row for each to ``results/benchmark.md``. The
            teacher of a distilled student is timed with them; the speed-up is over it in the same runtime.
        ckpt_path: checkpoint of a run, in place of the weights that the config names.
        weights_only: not used; checkpoints are always read as weights only.
    """
    if benchmark and batch_size != 1:
        raise UserError(
            f"is {batch_size}, but the benchmark's latency is that of one stream", where="batch_size", remedy="leave it"
        )
    if quantize is not None:
        require_split(datamodule)
        if quantization.map_videos and batch_size != 1 and not dynamic_batch:
            raise UserError(
                f"is {batch_size}, but mAP is measured one stream at a time",
                where="batch_size",
                remedy="leave it, or quantization.map_videos",
            )
    frames = None
    if video is not None:
        short_side = card_of(model, datamodule, ckpt_path or model.weights, frame_rate).short_side
        frames = video_frames(video, datamodule, parity_frames, image_size, short_side)
    size = image_size if frames is None else frames.shape[1:3]
    graph = graph_of(model, size, getattr(datamodule, "num_frames", None))
    if ckpt_path is not None:
        load_weights(model.network, ckpt_path)
    weights = str(ckpt_path or model.weights or "as configured")
    compared_on = "moving blobs" if video is None else video.name
    quantizer = None
    if quantize is not None:
        quantizer = quantizer_of(quantize, quantization, model, datamodule, graph)
        if frames is None:
            frames = np.concatenate(
                list(clips_of(datamodule, "val", graph.image_size, length=parity_frames, total=parity_frames))
            )
            compared_on = f"validation split of {type(datamodule.source).__name__}"
    name = trainer.logger.name if trainer.logger else type(model).__name__
    exported = export_graph(
        graph,
        output or Path("runs/export") / name,
        moving_blobs(parity_frames, graph.image_size) if frames is None else frames,
        datamodule.class_names,
        format,
        None if dynamic_batch else batch_size,
        parity_frames,
        box_tolerance,
        score_tolerance,
        opset,
        {
            "frame_stride": datamodule.frame_stride,
            "person_threshold": model.detection.person_threshold,
            "weights": weights,
            "commit": commit(ROOT),
            "compared_on": compared_on,
            CARD: card_of(model, datamodule, ckpt_path or model.weights, frame_rate).to_dict(),
        },
        quantizer,
    )
    print(exported.summary())
    if benchmark:
        print(benchmark_exported(exported.path, graph, model, name, weights, datamodule.class_names, quantize))


def video_frames(
    video: Path,
    datamodule: LightningDataModule,
    count: int,
    image_size: tuple[int, int] | None,
    short_side: int | None,
) -> np.ndarray:
    """Return the first frames of a file as ``predict`` reads them, uint8 (N, H, W, 3).

    Args:
        datamodule: its stride and scale.
        short_side: of the card, in place of that of the scale.
    """
    store = DecodedFrames(datamodule.store.scale._replace(short_side=short_side))
    facts = store.facts(video)
    if image_size not in (None, facts.size):
        raise UserError(
            f"{video} is read in {facts.size[1]}x{facts.size[0]} pixels, but image_size={list(image_size)}",
            remedy="leave image_size out, or set data.frames.short_side",
        )
    return store.get(video, range(0, len(facts.times), datamodule.frame_stride)[:count])
