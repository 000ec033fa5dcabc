"""Cost of int8 for the shipped detectors in mAP, and what it saves.

    python -m results.benchmarks.exported.int8_cost

Each is exported once in float32, then quantised: ``int8``, and ``static-int8`` with three draws of calibration videos.
To try it: ``--parts dsta --quick --out /tmp/int8.md``.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

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
from results.benchmarks.page import Part, Row, page_parser, timed_in_turn, write_page

ROOT = Path(__file__).parents[3]
DATA, SIZE = ROOT / "data" / "puppets", "full"


class Extent(NamedTuple):
    """Amount of data that is measured."""

    videos: int = 48
    """Validation videos of the mAP."""
    steps: int = 200
    """Frames over which differences are measured."""
    calibration: QuantizationSettings = QuantizationSettings()


QUICK = Extent(1, 4, QuantizationSettings(1, 8))
FORMS: dict[str, tuple[Quantization | None, int]] = {
    "float32": (None, 0),
    "int8": ("int8", 0),
    **{f"static-int8, draw {seed}": ("static-int8", seed) for seed in range(3)},
}
"""Row -> how it is quantised, and the seed of its calibration videos."""
STATIC = "static-int8, its draws"
"""Row of what the draws give together."""
HEADER = f"""# What int8 costs

Written by `python -m results.benchmarks.exported.int8_cost`: the shipped weights on Puppets `{SIZE}`, frames of
{{side}} x {{side}} at stride 2, in onnxruntime on the CPU; the students have no delay. `int8` finds ranges
in every call (`export --quantize int8`); `static-int8` has them from training videos, drawn three times. mAP is frame
mAP at IoU 0.5 on the validation videos' keyframes; "loses" is against float32, of the draws their mean, smallest and
largest. Differences are those of people (score 0.5 or more in float32), mean and largest. Times are medians of calls in
turn.
"""
NOTE = """
{num_videos} validation videos; differences over {steps} frames; calibration on {calibration_videos} videos,
{calibration_frames} frames of each, seeds 0, 1 and 2.
"""
COLUMNS = {
    "form": lambda row: row["form"],
    "mAP, %": lambda row: f"{100 * row['map']:.2f}",
    "loses": lambda row: _lost(row),
    "boxes, pixels": lambda row: _pair(row, "boxes_pixels", 2),
    "person scores": lambda row: _pair(row, "person_scores", 3),
    "action scores": lambda row: _pair(row, "action_scores", 3),
    "MB": lambda row: f"{row['megabytes']:.1f}" if "megabytes" in row else "-",
    "ms": lambda row: f"{row['ms']:.1f}" if "ms" in row else "-",
}
PARTS = {
    "dsta": Part("DSTA student, a step", NOTE, COLUMNS),
    "tsa": Part("TSA student, a step", NOTE, COLUMNS),
    "evad_dense": Part("Dense teacher, a clip of 8 frames", NOTE, COLUMNS),
}


def _lost(row: Row) -> str:
    if row["form"] == "float32":
        return "-"
    lost = f"{100 * row['loses']:.2f}"
    return f"{lost} ({100 * row['least']:.2f} to {100 * row['most']:.2f})" if "least" in row else lost


def _pair(row: Row, name: str, digits: int) -> str:
    if row.get("differences") is None:
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


def measure(part: str, side: int, rounds: int, extent: Extent) -> list[Row]:
    """A network in float32 and in every form of int8; all on the CPU."""
    model, data = experiment(part)
    graph = graph_of(model, (side, side), getattr(data, "num_frames", None))
    facts = {"num_videos": extent.videos, "steps": extent.steps}
    facts |= {"calibration_videos": extent.calibration.videos, "calibration_frames": extent.calibration.frames}
    rows: list[Row] = []
    with TemporaryDirectory() as folder:
        blobs = moving_blobs(10, (side, side))
        exported = export_graph(graph, Path(folder) / "float32", blobs, data.class_names, steps=min(10, extent.steps))
        float32 = load(exported.path)
        inputs = first_inputs(graph)
        frames = np.concatenate(list(clips_of(data, "val", (side, side), length=extent.steps, total=extent.steps)))
        runs = {}
        bar = tqdm(FORMS.items(), unit="form", leave=False)
        for form, (kind, seed) in bar:
            bar.set_description(form)
            path = exported.path
            if kind is not None:
                settings = QuantizationSettings(extent.calibration.videos, extent.calibration.frames, seed)
                path = Path(folder) / f"{form}.onnx"
                quantizer_of(kind, settings, model, data, graph).write(exported.path, path, graph, float32, 1)
            runs[form] = load(path)
            found = None
            if kind is not None:
                found = asdict(measure_differences(graph, (float32, runs[form]), frames, 1, extent.steps))
            row = {"form": form, "map": measure_map(runs[form], model, data, graph, extent.videos)} | facts
            rows.append(row | {"differences": found, "megabytes": path.stat().st_size / 1e6})
        steps = {form: (lambda run=run: run(inputs)) for form, run in runs.items()}
        timed = timed_in_turn(steps, rounds=rounds, warmup=3, synchronize=lambda: None)
    for row in rows:
        row["loses"], row["ms"] = rows[0]["map"] - row["map"], timed.latencies[row["form"]].p50_ms
    return [*rows, together(rows) | facts]


def together(rows: list[Row]) -> Row:
    """Return the mean loss of the draws of calibration videos, and its spread."""
    draws = [row for row in rows if row["form"].startswith("static-int8, draw")]
    lost = [row["loses"] for row in draws]
    mean_map = statistics.fmean(row["map"] for row in draws)
    return {"form": STATIC, "map": mean_map, "loses": statistics.fmean(lost), "least": min(lost), "most": max(lost)}


def main(args: list[str] | None = None) -> None:
    name, out = "python -m results.benchmarks.exported.int8_cost", "results/pages/int8.md"
    parser = page_parser(__doc__, PARTS, side=128, rounds=30, out=out, prog=name)
    parser.add_argument("--videos", type=int, default=Extent().videos, help="of the mAP (%(default)s)")
    parser.add_argument("--frames", type=int, default=Extent().steps, help="that differences are over (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one video of each kind, to try the program")
    given = parser.parse_args(args)
    extent = QUICK if given.quick else Extent(given.videos, given.frames)
    write_page(given, HEADER, PARTS, lambda part, _: measure(part, given.side, given.rounds, extent))


if __name__ == "__main__":
    main()
