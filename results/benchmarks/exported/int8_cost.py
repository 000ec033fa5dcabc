"""Cost of int8 for the shipped detectors in mAP, and what it saves.

    python -m results.benchmarks.exported.int8_cost

Each is exported once in float32, then quantised: ``int8``, and ``static-int8`` with three draws of calibration videos.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from callbacks.measures.latency import interleave
from datamodules.clip import ClipDataModule
from datamodules.detection import DetectionDataModule
from datamodules.puppets import Puppets
from datamodules.settings import FrameSettings, KeyframeLoaderSettings
from datamodules.stream import StreamDataModule
from lightning_modules.clip_detection import ClipDetectionModule
from lightning_modules.commands.export_data import clips_of, measure_map, quantizer_of
from lightning_modules.commands.export_graph import export_graph, graph_of
from lightning_modules.commands.export_parity import first_inputs, load, moving_blobs
from lightning_modules.commands.quantization import Quantization, QuantizationSettings, measure_differences
from lightning_modules.detection_base import DetectionModule
from lightning_modules.networks.detection.evad import EvadTeacher
from lightning_modules.networks.weights.configured import load_network
from lightning_modules.stream_detection import StreamDetectionModule
from results.benchmarks.page import Part, Row, main

ROOT = Path(__file__).parents[3]
DATA, SIZE = ROOT / "data" / "puppets", "full"
VIDEOS, STEPS = 48, 200
"""Validation videos of the mAP, frames over which differences are measured."""
SETTINGS = QuantizationSettings()
FORMS: dict[str, tuple[Quantization | None, int]] = {
    "float32": (None, 0),
    "int8": ("int8", 0),
    **{f"static-int8, draw {seed}": ("static-int8", seed) for seed in range(3)},
}
"""Row -> how it is quantised, and the seed of its calibration videos."""
HEADER = f"""# What int8 costs

Written by `python -m results.benchmarks.exported.int8_cost`: the shipped weights on Puppets `{SIZE}`, frames of
{{side}} x {{side}}, in onnxruntime. `int8` finds ranges in every call (`export --quantize int8`); `static-int8` has
them from {SETTINGS.videos} training videos, {SETTINGS.frames} frames of each, drawn three times. mAP is frame mAP at
IoU 0.5 on the validation videos' keyframes. Differences are those of people (score 0.5 or more in float32) over {STEPS}
frames, mean and largest. Times are medians of calls in turn.
"""
NOTE = """
{num_videos} validation videos.
"""
COLUMNS = {
    "form": lambda row: row["form"],
    "mAP, %": lambda row: f"{100 * row['map']:.2f}",
    "loses": lambda row: "-" if row["form"] == "float32" else f"{100 * row['loses']:.2f}",
    "boxes, pixels": lambda row: _pair(row, "boxes_pixels", 2),
    "person scores": lambda row: _pair(row, "person_scores", 3),
    "action scores": lambda row: _pair(row, "action_scores", 3),
    "MB": lambda row: f"{row['megabytes']:.1f}",
    "ms": lambda row: f"{row['ms']:.1f}",
}
PARTS = {
    "dsta": Part("DSTA student, a step", NOTE, COLUMNS),
    "tsa": Part("TSA student, a step", NOTE, COLUMNS),
    "evad_dense": Part("Dense teacher, a clip of 8 frames", NOTE, COLUMNS),
}


def _pair(row: Row, name: str, digits: int) -> str:
    if row["differences"] is None:
        return "-"
    mean, largest = row["differences"][name]
    return f"{mean:.{digits}f} / {largest:.{digits}f}"


def experiment(name: str) -> tuple[DetectionModule, DetectionDataModule]:
    """The shipped detector and the data that it was trained on, one stream or clip at a time."""
    network, _ = load_network(ROOT / "results" / "weights" / f"{name}.pt")
    source, frames = Puppets(root=DATA, size=SIZE), FrameSettings(cache=None)
    if isinstance(network, EvadTeacher):
        loader = KeyframeLoaderSettings(eval_batch_size=8)
        return ClipDetectionModule(network), ClipDataModule(source, 8, 2, frames=frames, loader=loader)
    return StreamDetectionModule(network), StreamDataModule(source, frame_stride=2, frames=frames)


def measure(part: str, device: torch.device, side: int, rounds: int) -> list[Row]:
    """A network in float32 and in every form of int8; all on the CPU."""
    model, data = experiment(part)
    graph = graph_of(model, (side, side), getattr(data, "num_frames", None))
    blobs = moving_blobs(20, (side, side))
    rows: list[Row] = []
    with TemporaryDirectory() as folder:
        exported = export_graph(graph, Path(folder) / "float32", blobs, data.class_names, steps=10)
        float32 = load(exported.path)
        inputs = first_inputs(graph)
        frames = np.concatenate(list(clips_of(data, "val", (side, side), length=STEPS, total=STEPS)))
        runs = {}
        for form, (kind, seed) in FORMS.items():
            path = exported.path
            if kind is not None:
                settings = QuantizationSettings(SETTINGS.videos, SETTINGS.frames, seed)
                path = Path(folder) / f"{form}.onnx"
                quantizer_of(kind, settings, model, data, graph).write(exported.path, path, graph, float32, 1)
            runs[form] = load(path)
            found = None
            if kind is not None:
                sides = (float32, runs[form])
                found = asdict(measure_differences(graph, sides, frames, 1, STEPS))
            row = {"form": form, "map": measure_map(runs[form], model, data, graph, VIDEOS), "num_videos": VIDEOS}
            rows.append(row | {"differences": found, "megabytes": path.stat().st_size / 1e6})
            print(form, rows[-1]["map"], flush=True)
        steps = {form: (lambda run=run: run(inputs)) for form, run in runs.items()}
        timed = interleave(steps, rounds=rounds, warmup=3, synchronize=lambda: None)
    for row in rows:
        row["loses"], row["ms"] = rows[0]["map"] - row["map"], timed.latencies[row["form"]].p50_ms
    return rows


if __name__ == "__main__":
    main(__doc__, HEADER, PARTS, measure, side=128, rounds=30, out="results/pages/int8.md")
