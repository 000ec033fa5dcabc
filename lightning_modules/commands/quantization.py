"""Quantisation of an ONNX file's products to int8 by onnxruntime, and its effect on the outputs."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from datamodules.settings import require_at_least

from ..networks.detection.export_graphs import DETECTIONS, FRAMES, NEXT, ClipGraph, ExportGraph
from ..runtimes.sessions import Run
from .export_parity import side_by_side

Quantization = Literal["int8", "static-int8"]
"""``int8`` finds the range of what comes into a product anew in every call; ``static-int8`` has it from data."""
OPERATORS = ["MatMul", "Gemm"]
"""Convolutions stay in float32: onnxruntime's in int8 are slower on a CPU, and here they take little of the time."""
PERSON = 0.5
"""Person score from which a proposal counts as a person, as where predictions are written."""


@dataclass(frozen=True)
class QuantizationSettings:
    """Frames that a quantised network is calibrated and compared on.

    Args:
        videos: number of training videos, drawn at random, whose frames calibrate ``static-int8``.
        frames: number of frames of each of these videos, from its start.
        seed: seed of the draw.
        map_videos: number of validation videos on which mAP is measured in float32 and int8; 0 for none.
    """

    videos: int = 8
    frames: int = 24
    seed: int = 0
    map_videos: int = 0

    def __post_init__(self) -> None:
        require_at_least(1, videos=self.videos, frames=self.frames)
        require_at_least(0, seed=self.seed, map_videos=self.map_videos)


class Quantizer(NamedTuple):
    """Settings by which a graph is quantised."""

    kind: Quantization
    clips: Sequence[np.ndarray] = ()
    """Calibration: consecutive frames of videos, uint8 (N, H, W, 3) each."""
    measure_map: Callable[[Run], float] | None = None
    """Gives the mAP of a graph; None where it is not wanted."""
    about: Mapping[str, Any] = {}
    """Goes into the metadata."""

    def write(self, source: Path, target: Path, graph: ExportGraph, run: Run, lanes: int) -> None:
        """Quantise the file ``source``, which ``run`` runs on so many streams per call; weights have one scale each."""
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

        logger = logging.getLogger()
        level = logger.level
        logger.setLevel(logging.ERROR)  # it advises a preparation that the exporter has done
        try:
            if self.kind == "int8":
                quantize_dynamic(source, target, op_types_to_quantize=OPERATORS, weight_type=QuantType.QInt8)
                return
            quantize_static(
                source,
                target,
                _reader(calibration_inputs(graph, run, self.clips, lanes)),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=OPERATORS,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )
        finally:
            logger.setLevel(level)

    def cost(
        self, graph: ExportGraph, sides: tuple[Run, Run], frames: np.ndarray, lanes: int, steps: int
    ) -> dict[str, Any]:
        """Return what the metadata say of a quantised graph beside the one in float32."""
        found: dict[str, Any] = {"kind": self.kind, "steps": steps, **self.about}
        found["differences"] = asdict(measure_differences(graph, sides, frames, lanes, steps))
        if self.measure_map is not None:
            found["map"] = dict(zip(("float32", "int8"), map(self.measure_map, sides), strict=True))
        return found


@dataclass(frozen=True)
class Differences:
    """Mean and largest absolute differences of proposals in int8 from those in float32, pair by pair.

    Args:
        compared: how many pairs. people: whether they are those that float32 takes for people; else all, where it finds
            none.
        boxes: of a corner, as a fraction of the frame's width or height. boxes_pixels: in pixels of the frame.
        person_scores, action_scores: of scores.
    """

    compared: int
    people: bool
    boxes: tuple[float, float]
    boxes_pixels: tuple[float, float]
    person_scores: tuple[float, float]
    action_scores: tuple[float, float]

    def __str__(self) -> str:
        what = "people" if self.people else "proposals"
        parts = (
            f"{self.boxes_pixels[0]:.2f} pixels in boxes (at most {self.boxes_pixels[1]:.1f})",
            *(
                f"{mean:.4f} in {name} scores (at most {most:.3f})"
                for name, (mean, most) in (("person", self.person_scores), ("action", self.action_scores))
            ),
        )
        return f"{', '.join(parts)} on average over {self.compared} {what}"


def measure_differences(
    graph: ExportGraph, sides: tuple[Run, Run], frames: np.ndarray, lanes: int, steps: int
) -> Differences:
    """Compare two graphs over consecutive frames, see ``side_by_side``.

    Proposals are paired so that the sum of differences of boxes and person scores is smallest: a graph that chooses
    among them may put the same person in another place.
    """
    height, width = graph.image_size
    sides_of = np.asarray([width, height, width, height])
    rows: list[np.ndarray] = []
    for outputs in side_by_side(graph, sides, frames, lanes, steps, "float32"):
        for lane in range(lanes):
            (boxes, persons, actions), others = ([out[name][lane] for name in DETECTIONS] for out in outputs)
            distance = np.abs((boxes[:, None] - others[0]) / sides_of).mean(-1) + np.abs(persons[:, None] - others[1])
            own, other = linear_sum_assignment(np.nan_to_num(distance, nan=1e9))
            pixels = np.abs(boxes[own] - others[0][other])
            scores = np.abs(persons[own] - others[1][other]), np.abs(actions[own] - others[2][other])
            parts = ((pixels / sides_of), pixels, scores[0][:, None], scores[1])
            figures = [figure for part in parts for figure in (part.mean(1), part.max(1))]
            rows.append(np.stack([persons[own], *figures], axis=1))
    table = np.concatenate(rows)
    people = table[table[:, 0] >= PERSON]
    kept = people if len(people) else table
    means, largest = kept[:, 1::2].mean(0).tolist(), kept[:, 2::2].max(0).tolist()
    pairs = list(zip(means, largest, strict=True))
    return Differences(len(kept), len(people) > 0, *pairs)


def calibration_inputs(
    graph: ExportGraph, run: Run, clips: Sequence[np.ndarray], lanes: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the inputs of calls on videos: a step's with the state that the frame before it left, a clip's."""
    fresh = {name: value.numpy() for name, value in graph.initial_state(lanes).items()}
    for frames in clips:
        if isinstance(graph, ClipGraph):
            length = graph.frame_dims[0]
            for start in range(0, max(len(frames) - length, 0) + 1, length):
                places = np.minimum(np.arange(start, start + length), len(frames) - 1)
                yield {FRAMES: np.stack([frames[places]] * lanes)}
            continue
        state = fresh
        for frame in frames:
            inputs = {FRAMES: np.stack([frame] * lanes), **state}
            yield inputs
            outputs = run(inputs)
            state = {name: outputs[NEXT + name] for name in fresh}


def _reader(inputs: Iterator[dict[str, np.ndarray]]) -> Any:
    """Calibration data in the form that onnxruntime asks for, one call after another."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(inputs, None)

    return Reader()


def write_with_metadata(source: Path, target: Path, metadata: Mapping[str, Any]) -> None:
    """Write an ONNX file again with metadata, values other than text as JSON."""
    import onnx

    model = onnx.load(source)
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.save(model, target)
