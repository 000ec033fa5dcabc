"""Write a detector for programs that have neither this repository nor, with ONNX, PyTorch.

A student becomes its step, the state by name among the inputs and outputs; a teacher becomes its clip. Before anything
is kept, it runs beside PyTorch over consecutive frames, and the largest differences go into its metadata.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.export import ExportedProgram
from tqdm import tqdm

from datamodules.errors import UserError

from ..detection import DetectionModule
from ..networks.evad import EvadTeacher
from ..networks.export_graphs import FRAMES, NEXT, ClipGraph, ExportGraph, StepGraph
from ..networks.frames import MEAN, STD
from ..networks.streaming import StreamingModule

Format = Literal["onnx", "torch_export"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch_export": ".pt2"}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
LARGEST_FILE = 2**31 - 2**24
"""An ONNX file ends before 2 GiB: larger weights go into a second file."""

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
"""One call of a graph: arrays by the names of its inputs -> arrays by the names of its outputs."""
Write = Callable[[Path, Mapping[str, Any]], None]
"""Writes a captured graph with its metadata."""


class Parity(NamedTuple):
    """Largest absolute differences of what an exported graph gives from what PyTorch gives."""

    boxes_pixels: float
    person_scores: float
    action_scores: float


class Exported(NamedTuple):
    """What was written."""

    path: Path
    state_path: Path | None
    """The initial state, an ``npz`` with the names of the inputs; a clip has none."""
    metadata: dict[str, Any]

    def summary(self) -> str:
        """What a person wants to read after the export."""
        parity = self.metadata["parity"]
        beside = "" if self.state_path is None else f", its initial state to {self.state_path}"
        return (
            f"wrote {self.path} ({self.path.stat().st_size / 1e6:.1f} MB){beside}\n"
            f"differs from PyTorch over {parity['steps']} frames by at most {parity['boxes_pixels']:.1e} pixels, "
            f"{parity['person_scores']:.1e} in person scores, {parity['action_scores']:.1e} in action scores"
        )


def graph_of(module: LightningModule, image_size: tuple[int, int] | None, num_frames: int | None) -> ExportGraph:
    """The step of a streaming detector, or the clip of ``num_frames`` frames of a clip detector.

    ``image_size`` is a square of the size that the network was made for by default.
    """
    network = module.network if isinstance(module, DetectionModule) else None
    if not isinstance(network, StreamingModule | EvadTeacher):
        raise UserError(
            f"{type(module).__name__} cannot be exported: it has no detector of actors in the newest frame or in a "
            "clip's keyframe, as StreamDetectionModule, DistillationModule and ClipDetectionModule have"
        )
    size = image_size or (network.frame_size, network.frame_size)
    if isinstance(network, StreamingModule):
        return StepGraph(network, size, module.score)
    return ClipGraph(network, size, module.score, num_frames or network.num_frames)


def export_graph(
    graph: ExportGraph,
    output: Path,
    frames: np.ndarray,
    class_names: Sequence[str],
    format: Format = "onnx",
    batch_size: int | None = 1,
    steps: int = 200,
    tolerance: float = 1e-3,
    opset: int = 18,
    facts: Mapping[str, Any] | None = None,
) -> Exported:
    """Write ``<output>.onnx`` or ``<output>.pt2``, and the initial state ``<output>.npz`` beside it.

    The metadata lie in the ONNX file (values other than text as JSON), or in ``<output>.json`` beside the ``pt2``.

    Args:
        frames: uint8 (N, H, W, 3), consecutive, of ``graph.image_size``: what the graph is compared with PyTorch on,
            from the start again where there are fewer than ``steps``.
        class_names: those of the actions, in the order of the scores.
        batch_size: streams (clips) a call; None for any number.
        steps: calls that are compared, one frame after the other, each side with a state of its own.
        tolerance: largest difference of a box side, in pixels, and of a score.
        opset: version of the ONNX operators.
        facts: further metadata.

    Raises:
        ValueError: missing packages, arguments that do not fit, or detections that are not PyTorch's. Nothing is
            written then.
    """
    _check(graph, frames, class_names, format, batch_size, steps)
    if output.suffix in SUFFIXES.values():
        output = output.with_suffix("")
    lanes = batch_size or 2  # a dynamic axis must not be one in the example it is captured from
    program = _capture(graph, lanes, dynamic=batch_size is None)
    write = _onnx_writer(program, graph, opset) if format == "onnx" else _program_writer(program)
    with TemporaryDirectory() as folder:
        trial = Path(folder) / f"trial{SUFFIXES[format]}"
        write(trial, {})
        parity = measure_parity(graph, load(trial, graph), frames, lanes, steps)
    if not all(difference <= tolerance for difference in parity):  # not the other way round: NaN is no agreement
        found = ", ".join(f"{name} {value:.3g}" for name, value in parity._asdict().items())
        raise ValueError(
            f"the exported graph differs from PyTorch by up to {found} in {steps} steps, more than "
            f"tolerance={tolerance:g}; nothing was written. Large frames may need a larger tolerance; scores that "
            "differ by a hundredth or boxes by pixels are another function: please report it with the config"
        )

    path = output.with_name(output.name + SUFFIXES[format])
    path.parent.mkdir(parents=True, exist_ok=True)
    state = graph.initial_state(batch_size or 1)
    state_path = output.with_name(f"{output.name}.npz") if state else None
    if state_path is not None:
        np.savez(state_path, **{name: value.numpy() for name, value in state.items()})
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
        "initial_state": None if state_path is None else state_path.name,
        "parity": {"steps": steps, "batch_size": lanes, "tolerance": tolerance, **parity._asdict()},
        "torch": torch.__version__,
    }
    if isinstance(graph, ClipGraph):
        metadata |= {"num_frames": graph.frame_dims[0], "keyframe": graph.frame_dims[0] // 2}
    else:
        # Steps that the detections are late: those of frame t are about frame t - look_ahead.
        metadata |= {"look_ahead": getattr(graph.network, "look_ahead", 0)}
    if format == "onnx":
        metadata |= {"opset": opset, "onnxruntime": version("onnxruntime")}
    metadata |= facts or {}
    write(path, metadata)
    return Exported(path, state_path, metadata)


def _check(
    graph: ExportGraph,
    frames: np.ndarray,
    class_names: Sequence[str],
    format: Format,
    batch_size: int | None,
    steps: int,
) -> None:
    if format not in SUFFIXES:
        raise UserError(f"format must be one of {', '.join(SUFFIXES)}, got {format!r}")
    missing = [name for name in ONNX_PACKAGES if format == "onnx" and importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"format=onnx needs {', '.join(missing)}; pip install '.[export]' brings them")
    if len(class_names) != graph.network.num_classes:
        raise UserError(f"network has {graph.network.num_classes} classes but the data names {len(class_names)}")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}; dynamic_batch=true takes any number")
    if steps < 1:
        raise UserError(f"parity_frames must be at least 1, got {steps}")
    if frames.dtype != np.uint8 or frames.shape[1:] != (*graph.image_size, 3) or len(frames) == 0:
        height, width = graph.image_size
        raise UserError(f"frames must be uint8 (N, {height}, {width}, 3), got {frames.dtype} {frames.shape}")


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
        torch.export.save(program, path)
        path.with_suffix(".json").write_text(json.dumps(metadata, indent=2) + "\n")

    return write


def _onnx_writer(program: ExportedProgram, graph: ExportGraph, opset: int) -> Write:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="_check_is_size will be removed")  # from inside PyTorch
        program = program.run_decompositions({torch.ops.aten.scaled_dot_product_attention.default: _plain_attention})
        onnx = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=list(graph.input_names),
            output_names=list(graph.output_names),
            verbose=False,
        )
    batch = onnx.model.graph.inputs[0].shape[0]
    if not isinstance(batch, int):
        onnx.rename_axes({batch: "batch"})
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())

    def write(path: Path, metadata: Mapping[str, Any]) -> None:
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
        onnx.model.metadata_props.update(texts)
        onnx.save(path, external_data=size > LARGEST_FILE)

    return write


def _plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention in products and a softmax: PyTorch's own translation to ONNX knows tensors of four axes only."""
    if dropout_p or is_causal or enable_gqa:
        raise NotImplementedError("attention with dropout, a causal mask or grouped queries is not translated to ONNX")
    scores = query * (query.shape[-1] ** -0.5 if scale is None else scale) @ key.transpose(-2, -1)
    if attn_mask is not None:
        is_boolean = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if is_boolean else scores + attn_mask
    return scores.softmax(-1) @ value


def load(path: Path, graph: ExportGraph) -> Run:
    """An exported file, ready to run on as many threads as PyTorch has."""
    if path.suffix == ".pt2":
        return run_torch(torch.export.load(path).module())
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Waiting threads would burn the cores that PyTorch computes on in between.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: dict(zip(graph.output_names, session.run(list(graph.output_names), inputs), strict=True))


def run_torch(call: Callable[..., Any]) -> Run:
    """A graph, or a loaded ``pt2``, as it is called by name."""

    @torch.no_grad()
    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        state = {name: torch.from_numpy(value) for name, value in inputs.items()}
        frames = state.pop(FRAMES)
        detections, after = call(frames, state) if state else (call(frames), {})  # a clip has no state
        after = {NEXT + name: value for name, value in after.items()}
        return {name: value.numpy() for name, value in (detections | after).items()}

    return run


def first_inputs(graph: ExportGraph) -> dict[str, np.ndarray]:
    """The inputs of a call with one stream (clip) that begins."""
    frames = torch.zeros(1, *graph.frame_dims, dtype=torch.uint8)
    return {name: value.numpy() for name, value in {FRAMES: frames, **graph.initial_state(1)}.items()}


def measure_parity(graph: ExportGraph, exported: Run, frames: np.ndarray, lanes: int, steps: int) -> Parity:
    """Both graphs over ``steps`` consecutive frames, or clips that move on by a frame, each with its own state.

    Every further stream of a batch is some frames ahead of the one before.
    """
    sides = [run_torch(graph), exported]
    start = {name: value.numpy() for name, value in graph.initial_state(lanes).items()}
    states = [start, start]
    clip = np.arange(graph.frame_dims[0]) if isinstance(graph, ClipGraph) else np.zeros((), int)
    ahead = np.arange(lanes).reshape(-1, *[1] * clip.ndim) * 7
    largest = dict.fromkeys(("boxes", "person_scores", "action_scores"), 0.0)
    for step in tqdm(range(steps), desc="comparing with PyTorch", unit="frame", leave=False):
        batch = frames[(step + ahead + clip) % len(frames)]
        outputs = [run({FRAMES: batch, **state}) for run, state in zip(sides, states, strict=True)]
        states = [{name: output[NEXT + name] for name in start} for output in outputs]
        for name in largest:
            difference = np.abs(outputs[0][name] - outputs[1][name]).max()
            largest[name] = float(np.maximum(largest[name], difference))  # hands NaN on
    return Parity(*largest.values())


def moving_blobs(num_frames: int, image_size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Bright ellipses that wander over a smooth random background: uint8 (N, H, W, 3), alike for equal seeds."""
    generator = torch.Generator().manual_seed(seed)
    height, width = image_size
    coarse = torch.rand(1, 3, 6, 6, generator=generator) * 160
    background = torch.nn.functional.interpolate(coarse, image_size, mode="bilinear")[0].permute(1, 2, 0)
    rows, columns = (torch.arange(side)[:, None] / side for side in (height, width))
    colours = torch.rand(4, 3, generator=generator) * 255
    speeds, phases = (torch.rand(4, 2, generator=generator) * most for most in (0.2, 6.0))
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for number in range(num_frames):
        centres = 0.5 + 0.4 * torch.sin(number * speeds + phases)
        frame = background.clone()
        for (y, x), colour in zip(centres, colours, strict=True):
            frame[((rows - y) / 0.25) ** 2 + ((columns.T - x) / 0.1) ** 2 < 1] = colour
        frames[number] = frame.to(torch.uint8).numpy()
    return frames
