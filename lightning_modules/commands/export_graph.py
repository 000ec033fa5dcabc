"""Write a detector for programs that have neither this repository nor, with ONNX, PyTorch.

A student becomes its step, the state by name among the inputs and outputs; a teacher becomes its clip. Before anything
is kept, it runs beside PyTorch over consecutive frames, and the largest differences go into its metadata.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch.export import ExportedProgram

from datamodules.errors import UserError
from datamodules.files import errors_named, require_writable, whole_path

from ..detection_base import DetectionModule
from ..networks.detection.evad import EvadTeacher
from ..networks.detection.export_graphs import ClipGraph, ExportGraph, StepGraph
from ..networks.layers.pixels import MEAN, STD
from ..networks.streaming import StreamingModule
from ..runtimes.exported_file import STATE, state_text
from .export_parity import Parity, load, look_ahead, measure_parity, require_parity
from .onnx_file import check_onnx, onnx_writer, opset_of
from .quantization import Differences, Quantizer, write_with_metadata

Format = Literal["onnx", "torch_export"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch_export": ".pt2"}

Write = Callable[[Path, Mapping[str, Any]], None]
"""Writes a captured graph with its metadata."""


class Exported(NamedTuple):
    """Files that were written."""

    path: Path
    state_path: Path | None
    """The initial state, an ``npz`` with the names of the inputs; a clip has none."""
    metadata: dict[str, Any]
    parity: Parity

    def summary(self) -> str:
        """Return a summary of the export for people."""
        beside = "" if self.state_path is None else f", its initial state to {self.state_path}"
        lines = [
            f"wrote {self.path} ({self.path.stat().st_size / 1e6:.1f} MB){beside}",
            f"differs from PyTorch over {self.metadata['parity']['steps']} frames by at most {self.parity}",
        ]
        if cost := self.metadata.get("quantization"):
            lines[1] = f"in float32 it {lines[1]}"
            lines.append(f"{cost['kind']} differs from that by {Differences(**cost['differences'])}")
            if "map" in cost:
                lines.append("mAP {float32:.4f} in float32, {int8:.4f} in int8".format(**cost["map"]))
        return "\n".join(lines)


def graph_of(module: LightningModule, image_size: tuple[int, int] | None, num_frames: int | None) -> ExportGraph:
    """The step of a streaming detector, or the clip of ``num_frames`` frames of a clip detector.

    ``image_size`` is a square of the size that the network was made for by default.
    """
    network = module.network if isinstance(module, DetectionModule) else None
    if not isinstance(network, StreamingModule | EvadTeacher):
        raise UserError(
            f"{type(module).__name__} cannot be exported: it has no detector of actors in the newest frame or in a "
            "clip's keyframe",
            remedy="take a config of StreamDetectionModule, DistillationModule or ClipDetectionModule",
        )
    size = image_size or (network.frame_size, network.frame_size)
    if min(size) < 1:
        raise UserError(f"image_size is a height and a width of at least 1 pixel, got {list(size)}")
    if isinstance(network, StreamingModule):
        return StepGraph(network, size, module.detection.score)
    return ClipGraph(network, size, module.detection.score, num_frames or network.num_frames)


def export_graph(
    graph: ExportGraph,
    output: Path,
    frames: np.ndarray,
    class_names: Sequence[str],
    format: Format = "onnx",
    batch_size: int | None = 1,
    steps: int = 200,
    box_tolerance: float = 1e-4,
    score_tolerance: float = 1e-3,
    opset: int = 18,
    facts: Mapping[str, Any] | None = None,
    quantizer: Quantizer | None = None,
) -> Exported:
    """Write ``<output>.onnx`` or ``<output>.pt2``, and the initial state ``<output>.npz`` beside it, all or none.

    The metadata lie in the ONNX file (values other than text as JSON), or in ``<output>.json`` beside the ``pt2``.

    Args:
        frames: uint8 (N, H, W, 3), consecutive, of ``graph.image_size``, on which the graph is compared with PyTorch.
            They are repeated from the start where there are fewer than ``steps``.
        class_names: those of the actions, in the order of the scores.
        batch_size: streams (clips) a call; None for any number.
        steps: frames whose detections are compared, one after the other, each side with a state of its own.
        box_tolerance: largest difference of a box's corner, as a fraction of the frame's width or height. The default
            is a hundredth of a pixel in a frame of 100; rounding grows with the frame and the depth of the network.
        score_tolerance: largest difference of a person's or an action's score.
        opset: version of the ONNX operators, one of ``OPSETS``.
        facts: further metadata.
        quantizer: writes the graph in int8 where it is given, after the comparison in float32; ONNX alone.

    Raises:
        UserError: missing packages, arguments that do not fit, a file that cannot be written, or detections that are
            not PyTorch's. Nothing is written then.
    """
    _check(graph, frames, class_names, format, batch_size, steps, opset, quantizer)
    if output.suffix in SUFFIXES.values():
        output = output.with_suffix("")
    path = output.with_name(output.name + SUFFIXES[format])
    lanes = batch_size or 2  # a dynamic axis must not be one in the example it is captured from
    with ExitStack() as stack:
        require_writable(path)
        with errors_named(path):
            trial, final = _prepare(path, stack)
        program = _capture(graph, lanes, dynamic=batch_size is None)
        write = onnx_writer(program, graph, opset) if format == "onnx" else _program_writer(program)
        with errors_named(path):
            write(trial, {})
        run = load(trial)
        parity = measure_parity(graph, run, frames, lanes, steps)
        require_parity(parity, box_tolerance, score_tolerance, steps)
        metadata = _metadata(graph, class_names, batch_size)
        tolerance = {"boxes": box_tolerance, "scores": score_tolerance}
        metadata["parity"] = {"steps": steps, "batch_size": lanes, "tolerance": tolerance, **parity._asdict()}
        if format == "onnx":
            metadata |= {"opset": opset_of(trial), "onnxruntime": version("onnxruntime")}
        state = {name: value.numpy() for name, value in graph.initial_state(batch_size or 1).items()}
        state_path = output.with_name(f"{output.name}.npz") if state else None
        metadata["initial_state"] = state_path and state_path.name
        if state and format == "onnx":
            metadata[STATE] = state_text(state)
        metadata |= facts or {}
        if quantizer is not None:
            quantized = trial.with_name(f"{trial.name}.int8.onnx")
            with errors_named(path):
                quantizer.write(trial, quantized, graph, run, lanes)
            metadata["precision"] = quantizer.kind
            metadata["quantization"] = quantizer.cost(graph, (run, load(quantized)), frames, lanes, steps)
            write = partial(write_with_metadata, quantized)
        with errors_named(path):
            if state_path is not None:
                np.savez(final.with_name(state_path.name), **state)
            write(final, metadata)
            # The model is written last: once it is there, the rest is too.
            for file in sorted(final.parent.iterdir(), key=lambda file: file.name == path.name):
                with whole_path(path.with_name(file.name)) as unfinished:
                    file.replace(unfinished)
    return Exported(path, state_path, metadata, parity)


def _prepare(path: Path, stack: ExitStack) -> tuple[Path, Path]:
    """Paths of the file to try out and of the one to keep, in a folder beside ``path`` that goes with ``stack``."""
    folder = Path(stack.enter_context(TemporaryDirectory(dir=path.parent, prefix=".export-")))
    trial, final = (folder / name / path.name for name in ("trial", "final"))
    trial.parent.mkdir()
    final.parent.mkdir()
    return trial, final


def _metadata(graph: ExportGraph, class_names: Sequence[str], batch_size: int | None) -> dict[str, Any]:
    """Return the facts that a program must know of a graph."""
    metadata = {
        "kind": "clip" if isinstance(graph, ClipGraph) else "step",
        "network": type(graph.network).__name__,
        "class_names": list(class_names),
        "frames": f"uint8 RGB, shape (batch, {', '.join(map(str, graph.frame_dims))})",
        "image_size": list(graph.image_size),
        "batch_size": "any" if batch_size is None else batch_size,
        "normalisation": {"inside": True, "mean": MEAN, "std": STD, "padded_to": list(graph.padded_size)},
        "boxes": "x1, y1, x2, y2 in pixels of the frames",
        "score": graph.score,
        "precision": "float32",
        "torch": torch.__version__,
    }
    if isinstance(graph, ClipGraph):
        num_frames = graph.frame_dims[0]
        return metadata | {"num_frames": num_frames, "keyframe": graph.network.keyframe_of(num_frames)}
    return metadata | {"look_ahead": look_ahead(graph)}


def _check(
    graph: ExportGraph,
    frames: np.ndarray,
    class_names: Sequence[str],
    format: Format,
    batch_size: int | None,
    steps: int,
    opset: int,
    quantizer: Quantizer | None,
) -> None:
    if quantizer is not None and format != "onnx":
        raise UserError(
            f"quantize={quantizer.kind} needs format=onnx, got {format!r}", remedy="leave one of the two out"
        )
    if format not in SUFFIXES:
        raise UserError(f"format must be one of {', '.join(SUFFIXES)}, got {format!r}")
    if format == "onnx":
        check_onnx(opset)
    if len(class_names) != graph.network.num_classes:
        raise UserError(f"network has {graph.network.num_classes} classes but the data names {len(class_names)}")
    if batch_size is not None and batch_size < 1:
        raise UserError(
            f"batch_size must be at least 1, got {batch_size}", remedy="dynamic_batch=true takes any number"
        )
    if steps < 1:
        raise UserError(f"parity_frames must be at least 1, got {steps}")
    if frames.dtype != np.uint8 or frames.shape[1:] != (*graph.image_size, 3) or len(frames) == 0:
        height, width = graph.image_size
        raise ValueError(f"frames must be uint8 (N, {height}, {width}, 3), got {frames.dtype} {frames.shape}")


def _capture(graph: ExportGraph, lanes: int, dynamic: bool) -> ExportedProgram:
    """The graph as PyTorch operators, for ``lanes`` streams or for any number of them."""
    axes = {0: torch.export.Dim("batch", min=1)} if dynamic else {}
    inputs: tuple = (torch.zeros(lanes, *graph.frame_dims, dtype=torch.uint8),)
    shapes: tuple = (axes,)
    if state := graph.initial_state(lanes):
        inputs, shapes = (*inputs, state), (axes, dict.fromkeys(state, axes))
    with torch.no_grad(), warnings.catch_warnings():
        # An LSTM lists its parameters a second time.
        warnings.filterwarnings("ignore", message=r"(?s)The tensor attributes? .*_flat_weights")
        return torch.export.export(graph, inputs, dynamic_shapes=shapes, strict=False)


def _program_writer(program: ExportedProgram) -> Write:
    def write(path: Path, metadata: Mapping[str, Any]) -> None:
        content = BytesIO()  # at a full disk PyTorch's own file would end the process
        torch.export.save(program, content)
        path.write_bytes(content.getbuffer())
        path.with_suffix(".json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")

    return write
