"""Time an exported network beside PyTorch, and beside the teacher that it was distilled from, in the same runtimes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from callbacks.benchmark.rows import enter
from callbacks.measures.exported_latency import RuntimeStep, runtime_rows

from ..detection_base import DetectionModule
from ..networks.detection.export_graphs import ClipGraph, ExportGraph
from ..networks.layers.prepared import prepare_for_inference
from ..networks.streaming import state_bytes
from ..stream_distillation import DistillationModule
from .export_graph import SUFFIXES, export_graph
from .export_parity import first_inputs, load, look_ahead, moving_blobs, run_torch
from .quantization import Quantization

RUNTIME_OF = {".onnx": "onnxruntime", ".pt2": "torch.export"}


class _Side(NamedTuple):
    """A network in both runtimes."""

    name: str
    weights: str
    graph: ExportGraph
    path: Path
    quantize: Quantization | None = None
    reference: _Side | None = None

    def runtimes(self) -> tuple[str, str]:
        exported = RUNTIME_OF[self.path.suffix]
        return f"{exported}, {self.quantize}" if self.quantize else exported, "PyTorch, same inputs"

    def experiments(self) -> list[str]:
        return [f"{self.name} ({runtime})" for runtime in self.runtimes()]

    def steps(self) -> Iterator[RuntimeStep]:
        """One new frame of a stream that begins, or one clip: of the exported file, then of PyTorch."""
        graph, network, inputs = self.graph, self.graph.network, first_inputs(self.graph)
        references: Sequence[str | None] = (None, None) if self.reference is None else self.reference.experiments()
        if isinstance(graph, ClipGraph):
            unit, delay, state_mib = "clip", network.frames_after_keyframe(graph.frame_dims[0]), None
        else:
            unit, delay, state_mib = "frame", look_ahead(graph), state_bytes(graph.initial_state(1)) / 2**20
        runs = load(self.path), run_torch(graph)
        for experiment, run, precision, reference in zip(
            self.experiments(), runs, (self.quantize or "32-true", "32-true"), references, strict=True
        ):
            yield RuntimeStep(
                experiment,
                lambda run=run: run(inputs),
                self.weights,
                precision,
                parameters=sum(parameter.numel() for parameter in network.parameters()),
                unit=unit,
                frame=graph.padded_size,
                delay=delay,
                state_mib=state_mib,
                reference=reference,
            )


def benchmark_exported(
    path: Path,
    graph: ExportGraph,
    model: DetectionModule,
    name: str,
    weights: str,
    class_names: Sequence[str],
    quantize: Quantization | None = None,
) -> str:
    """Time an exported file and PyTorch on the same graph in turn; return the table with their rows.

    The teacher of a distilled student is exported for the measurement, in float32 and for frames of the student's size.
    Its clip is timed in the same turns; the student's speed-up is over the teacher in the same runtime.
    """
    with TemporaryDirectory() as folder:
        teacher = None
        if isinstance(model, DistillationModule):
            network = model.teacher.network
            clip = ClipGraph(network, graph.image_size, graph.score, network.num_frames)
            # A handful of clips shows that the file computes what PyTorch does.
            written = export_graph(
                clip,
                Path(folder) / "teacher",
                moving_blobs(network.num_frames, graph.image_size),
                class_names,
                next(format for format, suffix in SUFFIXES.items() if suffix == path.suffix),
                steps=4,
            )
            prepare_for_inference(network)
            teacher = _Side(f"{name}, its teacher", model.teacher_weights, clip, written.path)
        prepare_for_inference(model.network)
        student = _Side(name, weights, graph, path, quantize, teacher)
        rows = runtime_rows([step for side in (teacher, student) if side is not None for step in side.steps()])
    return [enter(Path("results"), row) for row in rows][-1]
