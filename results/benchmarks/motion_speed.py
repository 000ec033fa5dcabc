"""Cost of a second of video: RGB alone, the distilled RGB detector, and the two-stream system.

    python -m results.benchmarks.motion_speed

The networks are those of the Puppets configs with random weights, on which the time does not depend. They run on the
frames of one Puppets video in one window, batch 1, fp32. The three are timed in turn in one run, from frames in memory
to segments after suppression. The clock includes the optical flow of the two-stream system. Writes
``results/pages/motion_speed.md``, with the mAP that ``results/motion_distillation.jsonl`` has for each.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from callbacks.benchmark.provenance import device_name
from callbacks.measures.flops import count_gflops
from callbacks.measures.latency import interleave, synchronizer
from datamodules.files import write_whole
from datamodules.flow.methods import DisFlow
from datamodules.frames.store import DecodedFrames, FrameScale
from datamodules.program_help import ProgramParser
from datamodules.puppets.segments import PuppetSegments
from lightning_modules.networks.layers.pixels import normalise_frames
from lightning_modules.networks.temporal.suppression import SegmentSuppression
from lightning_modules.networks.temporal.two_stream_detector import TwoStreamDetector
from lightning_modules.networks.weights.configured import network_of
from lightning_modules.segment_inputs import FLOW_UNIT
from results.experiments.lists import read_list
from results.experiments.provenance import commit
from results.tables.markdown import markdown_table

ROOT = Path(__file__).resolve().parents[2]
SHORT_SIDE, FRAME_RATE = 64, 8
"""Values of configs/rgb_baseline.yaml."""
WINDOW_THRESHOLD, WINDOW_SEGMENTS = 0.001, 1000
ROWS = {"RGB": "rgb_baseline", "RGB, distilled": "decomposed", "two-stream (RGB + flow)": "two_stream"}
"""Timed systems, and the rows of the experiments that have their mAP."""


class Cost(NamedTuple):
    """Cost of a second of video."""

    gflops: float
    milliseconds: float
    ratio: float
    """Time of the two-stream system over its own."""


def build(config: str) -> nn.Module:
    """A network of a config, with random weights, in evaluation mode."""
    return network_of(ROOT / "configs" / "networks" / f"{config}.yaml", num_classes=10).eval()


def video(folder: Path) -> Any:
    """The sampled frames of one video, uint8 (T, h, w, 3)."""
    source = PuppetSegments(folder, "small")
    source.prepare()
    path = source.videos("val")[0].media
    store = DecodedFrames(FrameScale(SHORT_SIDE))
    times = store.facts(path).times
    stride = round((len(times) - 1) / (times[-1] - times[0]) / FRAME_RATE)
    return store.get(path, range(0, len(times), stride))


def systems(frames: Any) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """Return the timed call of each system, and the GFLOPs of its networks for all the frames."""
    rgb, flow, distilled = build("temporal_tiny"), build("temporal_flow_tiny"), build("decomposed_tiny")
    both, method, suppression = (
        TwoStreamDetector(rgb.num_classes, lambda _: rgb, lambda _: flow).eval(),
        DisFlow(),
        SegmentSuppression(),
    )
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2)[None]
    mask = torch.ones(1, len(frames), dtype=torch.bool)

    def seen() -> Tensor:
        return normalise_frames(pictures)

    def with_flow() -> Tensor:
        motion = torch.from_numpy(method.of_steps(frames))[None] / FLOW_UNIT
        return torch.cat([seen(), motion], dim=2)

    def detect(network: nn.Module, look: Callable[[], Tensor]) -> Callable[[], object]:
        def run() -> object:
            dense = network(look(), mask).dense
            (found,) = network.final_head.decode(dense, WINDOW_THRESHOLD, WINDOW_SEGMENTS)
            return suppression(found)

        return run

    networks = dict(zip(ROWS, ((rgb, seen), (distilled, seen), (both, with_flow)), strict=True))
    steps = {name: detect(*parts) for name, parts in networks.items()} | {"flow alone": lambda: method.of_steps(frames)}
    gflops = {name: count_gflops(network, look(), mask).gflops for name, (network, look) in networks.items()}
    return steps, gflops


def measure(folder: Path, rounds: int) -> tuple[dict[str, Cost], float, int]:
    """Return each system's cost, the milliseconds of flow per second of video, and the number of frames."""
    frames = video(folder)
    seconds = len(frames) / FRAME_RATE
    with torch.inference_mode():
        steps, gflops = systems(frames)
        timed = interleave(steps, rounds=rounds, warmup=3, synchronize=synchronizer("cpu")).latencies
    whole = timed["two-stream (RGB + flow)"].p50_ms
    costs = {
        name: Cost(gflops[name] / seconds, timed[name].p50_ms / seconds, whole / timed[name].p50_ms) for name in ROWS
    }
    return costs, timed["flow alone"].p50_ms / seconds, len(frames)


def mean_ap(results: Path, row: str) -> str:
    """Mean and spread over seeds of a row's mAP, in percent; a dash where it was not trained.

    Args:
        results: of a list beside it, ``lists/<name>.yaml``: lines of rows and seeds that it lacks are kept there too.
    """
    if not results.is_file():
        return "-"
    runs = [json.loads(line) for line in results.read_text().splitlines()]
    if (listing := results.parent / "lists" / f"{results.stem}.yaml").is_file():
        seeds = {listed.name: listed.own_seeds for listed in read_list(listing).rows}
        runs = [run for run in runs if run["seed"] in seeds.get(run["experiment"], [])]
    values = [100 * run["metrics"]["test/map"] for run in runs if run["experiment"] == row]
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.2f} ({len(values)} seeds)" if len(values) > 1 else " (1 seed)"
    return f"{statistics.mean(values):.2f}{spread}"


def page(costs: dict[str, Cost], flow_ms: float, num_frames: int, results: Path) -> str:
    machine = f"{device_name(torch.device('cpu'))}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    lines = [
        "# What the motion costs",
        "",
        "Written by `python -m results.benchmarks.motion_speed`: RGB detector, distilled one and two-stream system on",
        f"one window of {num_frames} frames ({FRAME_RATE} a second, {SHORT_SIDE} x {SHORT_SIDE} pixels), batch 1,",
        "fp32, timed in turn. The clock runs from frames in memory to segments after suppression; the two-stream",
        f"system computes its optical flow (DIS, {flow_ms:.1f} ms a second of video) within it. GFLOPs are those of",
        "the networks, a multiply-add counted once. mAP: segment mAP@tIoU 0.3:0.1:0.7 on Puppets, from",
        "`motion_distillation.md`.",
        "",
        f"{machine}, commit {commit(ROOT)}.",
        "",
    ]
    head = ("system", "mAP %", "GFLOPs per second of video", "ms per second of video", "faster than two-stream")
    rows = [
        [name, mean_ap(results, ROWS[name]), f"{cost.gflops:.3f}", f"{cost.milliseconds:.2f}", f"{cost.ratio:.2f}x"]
        for name, cost in costs.items()
    ]
    return "\n".join([*lines, markdown_table(head, rows)]) + "\n"


def main(args: list[str] | None = None) -> None:
    parser = ProgramParser(__doc__, "python -m results.benchmarks.motion_speed")
    parser.add_argument("--rounds", type=int, default=30, help="timed calls of each system")
    parser.add_argument("--root", type=Path, default=Path("data/puppets"), help="folder of the Puppets")
    parser.add_argument("--output", type=Path, default=Path("results/pages/motion_speed.md"))
    parser.add_argument("--results", type=Path, default=Path("results/motion_distillation.jsonl"), help="where mAP is")
    options = parser.parse_args(args)
    text = page(*measure(options.root, options.rounds), options.results)
    write_whole(options.output, text)
    print(text)


if __name__ == "__main__":
    main()
