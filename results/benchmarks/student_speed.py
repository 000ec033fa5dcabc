"""Speed of the streaming students at their teacher's real size: ``make bench``.

Random weights (no value changes the work), batch 1 unless lanes are the question. What is compared is timed in turn in
one process, so that whatever else the machine does meets all of it.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from callbacks.measures.flops import count_gflops
from callbacks.measures.latency import Latency, interleave, synchronizer
from lightning_modules.command_line.precision import computes_bfloat16
from lightning_modules.networks.detection.evad import EvadTeacher
from lightning_modules.networks.detection.outputs import Detections, decode_detections
from lightning_modules.networks.layers.prepared import prepare_for_inference
from lightning_modules.networks.streaming import state_bytes
from lightning_modules.networks.students.detector import StreamingDetector
from lightning_modules.networks.weights.configured import network_of
from lightning_modules.networks.weights.loading import load_exactly, read_state_dict
from results.benchmarks.page import Part, Row, main, memory_mib, row_ratio

FRAMES, SIDE = 16, 256
ROOT = Path(__file__).parents[2]
NUM_CLASSES = {"tiny": 10, "vit_b": 80}
"""Those of Puppets and of AVA, by the size of a network."""
NETWORKS = ROOT / "configs" / "networks"
KEEP_LAYERS = (3, 6, 9)
TEACHERS = {"evad, dense": 1.0, "evad, keep rate 0.7": 0.7}
"""Row -> keep rate; the first is what all are compared with."""
EVADS_HEAD: dict[str, Any] = {
    "head.localizer.num_proposals": 100,
    "head.localizer.num_stages": 6,
    "num_actors": None,
    "head.decoder.depth": 6,
    "head.decoder.context": "refined",
}
SAVINGS: dict[str, dict[str, Any]] = {
    "EVAD's head": {},
    "num_actors 20": {"num_actors": 20},
    "context as it is": {"head.decoder.context": "read"},
    "decoder_depth 3": {"head.decoder.depth": 3},
    "num_stages 2": {"head.localizer.num_stages": 2},
    "num_proposals 40": {"head.localizer.num_proposals": 40},
}
"""What each saving changes of EVAD's head."""
YOUNG, OLD, COMPARED = 100, 9_000, 1_000
"""Ages in frames of the two streams whose latency is compared, over how many frames."""
PARTS_OF_A_STEP = ("embedding", "attention", "LSTM", "MLP", "pyramid", "localizer", "decoder", "decoding")

HEADER = """# The students' speed

Written by `make bench`: ViT-B, random weights, frames of {side} x {side} (a student sees one, its teacher a clip of
16), batch 1, fp32 unless it says otherwise, from normalised frame to decoded detections. Milliseconds are medians of
calls in turn; ratios are medians over rounds. GFLOPs count a multiply-add once.
"""
SPEED_NOTE = """
*faster* is against the dense teacher's sliding window, which sees a whole clip for every new frame; beside it against
the teacher with keep rate 0.7. "EVAD's head" is the teacher's own, on one frame: {num_proposals} proposals,
{num_stages} stages, {decoder_depth} decoder blocks; each saving is made alone, "as configured" are all that
`configs/networks/*_vit_b.yaml` make; all students read the eight slots of their teacher's clip, and answers
come seven sampled frames late. What each costs in mAP: `results/pages/student_heads.md`.
"""
PARTS_NOTE = """
The students as configured; a part's time is what its modules took, the rest (position codes, residuals, the memory) is
in the last row but one.
"""
LANES_NOTE = """
Streams in one batch, as configured. Each lane has a clock of its own: state is renewed and held lane by lane
(`select_lanes`), timed with it.
"""
COMPILED_NOTE = """
`torch.compile` of the step and, where the processor computes it, bf16 autocast and both, against the plain step in
fp32: errors are the largest over 20 frames of a stream, boxes relative to their size, scores as probabilities. All
proposals are read (`num_actors` none): random weights score them so nearly alike that rounding would decide which are
chosen. Recompilations are those after the second step.
"""
STEADY_NOTE = """
The shipped students of the demo on noise: median latency of frames {young} to {young_to} of one stream and of frames
{old} to {old_to} of another, frame by frame in turn; state and memory of the process after {young} frames of the latter
and at the end.
"""


def normalised_frames(count: int, side: int, device: torch.device, lanes: int = 1) -> Tensor:
    """(lanes, count, 3, side, side) random pixels."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(lanes, count, 3, side, side, generator=generator).to(device)


def configured(name: str, changes: Mapping[str, Any]) -> nn.Module:
    """The network of a file in ``configs/networks`` with changes: place -> value."""
    told = [f"{place}={json.dumps(value)}" for place, value in changes.items()]
    return network_of(NETWORKS / f"{name}.yaml", NUM_CLASSES[name.partition("_")[2]], told)


def named(place: str) -> str:
    """The name of a setting of the head on the page."""
    return place.replace("head.decoder.", "decoder_").rpartition(".")[2]


def teacher(keep_rate: float, device: torch.device) -> EvadTeacher:
    rates = dict.fromkeys(KEEP_LAYERS, keep_rate)
    changes = {"backbone.size.num_frames": FRAMES, "backbone.keep_rates": rates}
    network = configured("evad_vit_b", changes).eval().to(device)
    prepare_for_inference(network)
    return network


def student(
    temporal: str,
    device: torch.device,
    trunk: StreamingDetector | None = None,
    changes: Mapping[str, Any] | None = None,
) -> StreamingDetector:
    """The ViT-B student as configured, but for ``changes``; its trunk may be another's, which saves memory."""
    network = configured(f"{temporal}_vit_b", changes or {}).eval().to(device)
    if trunk is not None:
        network.trunk = trunk.trunk
    prepare_for_inference(network)
    return network


def clip_step(network: EvadTeacher, side: int, device: torch.device) -> Callable[[], object]:
    """One clip to decoded detections."""
    clip = normalised_frames(FRAMES, side, device).transpose(1, 2)
    sizes = torch.tensor([[side, side]], device=device)
    return lambda: decode_detections(network(clip, sizes), sizes, sizes)


def frame_step(
    network: Callable, initial: Any, side: int, device: torch.device, lanes: int = 1
) -> Callable[[], object]:
    """The next frame of a stream, from the state that the one before it left, to decoded detections."""
    frames = normalised_frames(1, side, device, lanes)
    sizes, state = torch.tensor([[side, side]] * lanes, device=device), initial

    def step() -> list:
        nonlocal state
        detections, state = network(frames, state, sizes)
        return decode_detections(Detections(*(part[:, 0] for part in detections)), sizes, sizes)

    return step


@torch.inference_mode()
def measure_speed(device: torch.device, side: int, rounds: int) -> list[Row]:
    """Teachers, students with every saving alone, students as configured: all in turn."""
    networks: dict[str, nn.Module] = {name: teacher(rate, device) for name, rate in TEACHERS.items()}
    for temporal in ("tsa", "dsta"):
        trunk = student(temporal, device)
        for name, changes in SAVINGS.items():
            if temporal == "tsa" or not changes:  # the head is the same in both
                networks[f"{temporal}, {name}"] = student(temporal, device, trunk, EVADS_HEAD | changes)
        networks[f"{temporal}, as configured"] = trunk
    steps = {
        name: clip_step(network, side, device)
        if isinstance(network, EvadTeacher)
        else frame_step(network, network.initial_state(1, (side, side), device=device), side, device)
        for name, network in networks.items()
    }
    # A student's memory is full, and a step costs what it always will, after as many steps as it remembers frames.
    timed = interleave(steps, rounds=rounds, warmup=3, synchronize=synchronizer(device))
    dense, dropping = TEACHERS
    return [
        {
            "name": name,
            "gflops": gflops(network, side, device)[0],
            "ms": timed.latencies[name].p50_ms,
            "faster": 1 / row_ratio(timed, name, dense),
            "faster_than_dropping": 1 / row_ratio(timed, name, dropping),
            **{
                place.replace("head.decoder.", "decoder_").rpartition(".")[2]: size
                for place, size in EVADS_HEAD.items()
            },
        }
        for name, network in networks.items()
    ]


def gflops(network: nn.Module, side: int, device: torch.device) -> tuple[float, dict[str, float]]:
    """GFLOPs of a clip or a frame, and those of every sub-module."""
    sizes = torch.tensor([[side, side]], device=device)
    if isinstance(network, EvadTeacher):
        inputs: tuple = (normalised_frames(FRAMES, side, device).transpose(1, 2), sizes)
    else:
        state = network.initial_state(1, (side, side), device=device)
        inputs = (normalised_frames(1, side, device), state, sizes)
    count = count_gflops(network, *inputs)
    if count.uncounted:
        raise RuntimeError(f"nothing counts {', '.join(count.uncounted)}")
    return count.gflops, count.by_module


def part_of(name: str) -> str | None:
    """The part of a step that a sub-module belongs to, None where its parent or nothing does."""
    if name == "trunk.patch_embed":
        return "embedding"
    if name in ("head.pyramid", "head.localizer"):
        return name.removeprefix("head.")
    if name.startswith("trunk.blocks."):
        *_, last = name.split(".")
        if last in ("temporal_norm", "into_lstm", "lstm", "out_of_lstm"):
            return "LSTM"
        if last in ("attention", "norm2", "mlp") and name.count(".") == 3:
            return "attention" if last == "attention" else "MLP"
    return None


@contextlib.contextmanager
def stopwatches(network: StreamingDetector, synchronize: Callable[[], None]) -> Iterator[dict[str, float]]:
    """Seconds spent in every part; what an LSTM takes counts as attention too, which it is a part of."""
    spent: dict[str, float] = defaultdict(float)
    begun: dict[str, float] = {}

    def begin(name: str) -> Callable:
        def hook(*_: Any) -> None:
            synchronize()
            begun[name] = time.perf_counter()

        return hook

    def end(name: str, part: str) -> Callable:
        def hook(*_: Any) -> None:
            synchronize()
            spent[part] += time.perf_counter() - begun[name]

        return hook

    handles = []
    for name, module in network.named_modules():
        if (part := part_of(name)) is not None:
            handles += [module.register_forward_pre_hook(begin(name)), module.register_forward_hook(end(name, part))]
    # Whatever comes after the localizer is the decoder's, the memory it reads included.
    handles += [network.head.localizer.register_forward_hook(begin("decoder"))]
    handles += [network.register_forward_hook(end("decoder", "decoder"))]
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def measure_parts(device: torch.device, side: int, rounds: int) -> list[Row]:
    """What every part of a step costs."""
    rows: list[Row] = [{"part": part} for part in (*PARTS_OF_A_STEP, "the rest", "all")]
    synchronize = synchronizer(device)
    for temporal in ("tsa", "dsta"):
        network = student(temporal, device)
        total, by_module = gflops(network, side, device)
        step = frame_step(network, network.initial_state(1, (side, side), device=device), side, device)
        for _ in range(network.memory.size.frames + 1):
            step()
        samples: dict[str, list[float]] = defaultdict(list)
        for _ in range(rounds * 3):
            with stopwatches(network, synchronize) as spent:
                began = time.perf_counter()
                detect = network.register_forward_hook(lambda *_: spent.__setitem__("network", time.perf_counter()))
                step()
                detect.remove()
            whole = time.perf_counter() - began
            decoding = time.perf_counter() - spent.pop("network")
            spent["attention"] -= spent["LSTM"]
            spent["decoding"] = decoding
            for part in PARTS_OF_A_STEP:
                samples[part].append(spent[part])
            samples["all"].append(whole)
            samples["the rest"].append(whole - sum(spent[part] for part in PARTS_OF_A_STEP))
        cost: dict[str, float] = defaultdict(float)
        for name, count in by_module.items():
            if (part := part_of(name)) is not None:
                cost[part] += count
        cost["attention"] -= cost["LSTM"]
        cost["decoder"] = (
            by_module["head.decoder.encoder_to_decoder"]
            + total
            - sum(cost.values(), by_module["head.decoder.encoder_to_decoder"])
        )
        cost["all"] = total
        for row in rows:
            row[f"{temporal}_gflops"] = cost[row["part"]]
            row[f"{temporal}_ms"] = Latency.from_seconds(samples[row["part"]]).p50_ms
    return rows


@torch.inference_mode()
def measure_lanes(device: torch.device, side: int, rounds: int) -> list[Row]:
    """Frames a second against streams in one batch."""
    from lightning_modules.networks.streaming import select_lanes

    rows = []
    for temporal in ("tsa", "dsta"):
        network = student(temporal, device)

        def lanes_step(lanes: int, network: StreamingDetector = network) -> Callable[[], object]:
            fresh = network.initial_state(lanes, (side, side), device=device)
            stays = torch.zeros(lanes, dtype=torch.bool, device=device)

            def advance(frames: Tensor, state: Any, sizes: Tensor) -> tuple[Detections, Any]:
                detections, after = network(frames, select_lanes(stays, fresh, state), sizes)
                return detections, select_lanes(~stays, after, state)

            return frame_step(advance, fresh, side, device, lanes)

        counts = (1, 2, 4, 8) if device.type == "cpu" else (1, 4, 16, 64)
        steps = {str(lanes): lanes_step(lanes) for lanes in counts}
        timed = interleave(steps, rounds=rounds, warmup=2, synchronize=synchronizer(device))
        rows += [
            {
                "student": temporal,
                "lanes": lanes,
                "ms": timed.latencies[str(lanes)].p50_ms,
                "frames_per_second": lanes * 1e3 / timed.latencies[str(lanes)].p50_ms,
                "state_mib": state_bytes(network.initial_state(lanes, (side, side), device=device)) / 2**20,
            }
            for lanes in counts
        ]
    return rows


@torch.no_grad()
def measure_compiled(device: torch.device, side: int, rounds: int) -> list[Row]:
    """The step under torch.compile and bf16, where the device has that: time, errors over a stream, recompilations."""
    from torch._dynamo.utils import counters

    mode = "reduce-overhead" if device.type == "cuda" else "default"  # the former runs CUDA graphs
    frames, sizes = normalised_frames(20, side, device), torch.tensor([[side, side]], device=device)
    rows = []
    for temporal in ("tsa", "dsta"):
        torch._dynamo.reset()
        plain = student(temporal, device, num_actors=None)
        compiled = torch.compile(plain, fullgraph=True, dynamic=False, mode=mode)
        forms: dict[str, tuple[Callable, bool]] = {"fp32": (plain, False), "bf16": (plain, True)}
        forms |= {"fp32 compiled": (compiled, False), "bf16 compiled": (compiled, True)}
        forms = {name: form for name, form in forms.items() if not form[1] or computes_bfloat16(device)}
        expected, steps, errors = None, {}, {}
        for name, (network, half) in forms.items():
            found, begun = [], time.perf_counter()
            state = plain.initial_state(1, (side, side), device=device)
            for number, frame in enumerate(frames.split(1, dim=1)):
                with torch.autocast(device.type, torch.bfloat16, enabled=half):
                    detections, state = network(frame, state, sizes)
                found.append(Detections(*(part.float().clone() for part in detections)))
                state = torch.utils._pytree.tree_map(torch.clone, state)  # CUDA graphs write over what they returned
                if number == 1:
                    first, graphs = time.perf_counter() - begun, counters["stats"]["unique_graphs"]
            expected = expected or found
            errors[name] = (*largest_errors(found, expected), counters["stats"]["unique_graphs"] - graphs, first)
            steps[name] = autocast_step(network, plain, half, frames[:, :1], sizes)
        timed = interleave(steps, rounds=rounds, warmup=2, synchronize=synchronizer(device))
        for name, (boxes, scores, recompiled, first) in errors.items():
            rows.append(
                {
                    "student": temporal,
                    "form": name,
                    "ms": timed.latencies[name].p50_ms,
                    "ratio": row_ratio(timed, name, "fp32"),
                    "error_boxes": boxes,
                    "error_scores": scores,
                    "recompilations": recompiled,
                    "first_s": first,
                }
            )
    return rows


def autocast_step(
    network: Callable, plain: StreamingDetector, half: bool, frame: Tensor, sizes: Tensor
) -> Callable[[], object]:
    state = plain.initial_state(1, tuple(frame.shape[-2:]), device=frame.device)

    def step() -> object:
        with torch.autocast(frame.device.type, torch.bfloat16, enabled=half):
            detections, _ = network(frame, state, sizes)
        return decode_detections(Detections(*(part[:, 0] for part in detections)), sizes, sizes)

    return step


def largest_errors(found: list[Detections], expected: list[Detections]) -> tuple[float, float]:
    """Of boxes relative to their size, and of person and action probabilities."""
    boxes = scores = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        size = (theirs.boxes[..., 2:] - theirs.boxes[..., :2]).amax(-1, keepdim=True).clamp(min=1)
        boxes = max(boxes, float(((ours.boxes - theirs.boxes).abs() / size).max()))
        scores = max(
            scores,
            float((ours.person_logits.softmax(-1) - theirs.person_logits.softmax(-1)).abs().max()),
            float((ours.action_logits.sigmoid() - theirs.action_logits.sigmoid()).abs().max()),
        )
    return boxes, scores


@torch.inference_mode()
def measure_steadiness(device: torch.device, side: int, rounds: int) -> list[Row]:
    """Latency and memory of the demo's students after 10,000 frames, against those of a young stream."""
    rows = []
    for temporal in ("tsa", "dsta"):
        network = configured(f"{temporal}_tiny", {}).eval().to(device)
        load_exactly(network, read_state_dict(ROOT / "results" / "weights" / f"{temporal}.pt"))
        prepare_for_inference(network)
        young, old = Stream(network, device), Stream(network, device)
        for _ in range(YOUNG):
            old.step()
        first_state, first_memory = state_bytes(old.state), memory_mib(device)
        for _ in range(OLD - YOUNG):
            old.step()
        for _ in range(YOUNG):
            young.step()
        steps = {"young": young.step, "old": old.step}
        timed = interleave(steps, rounds=COMPARED, warmup=0, synchronize=synchronizer(device))
        rows.append(
            {
                "student": temporal,
                "young_ms": timed.latencies["young"].p50_ms,
                "old_ms": timed.latencies["old"].p50_ms,
                "ratio": timed.latencies["old"].p50_ms / timed.latencies["young"].p50_ms,
                "state_bytes": (first_state, state_bytes(old.state)),
                "memory_mib": (first_memory, memory_mib(device)),
                "young": YOUNG,
                "young_to": YOUNG + COMPARED,
                "old": OLD,
                "old_to": OLD + COMPARED,
            }
        )
    return rows


class Stream:
    """A stream of noise, 64 frames over and over."""

    def __init__(self, network: StreamingDetector, device: torch.device) -> None:
        self.network, self.number = network, 0
        self.frames = normalised_frames(64, network.frame_size, device)
        self.sizes = torch.tensor([[network.frame_size] * 2], device=device)
        self.state = network.initial_state(1, device=device)

    def step(self) -> None:
        """The next frame to decoded detections."""
        frame = self.frames[:, self.number % 64][:, None]
        detections, self.state = self.network(frame, self.state, self.sizes)
        decode_detections(Detections(*(part[:, 0] for part in detections)), self.sizes, self.sizes)
        self.number += 1


MEASURES = {
    "speed": measure_speed,
    "parts": measure_parts,
    "lanes": measure_lanes,
    "compiled": measure_compiled,
    "steady": measure_steadiness,
}
PARTS = {
    "speed": Part(
        "Against the teacher",
        SPEED_NOTE,
        {
            "network": lambda row: row["name"],
            "GFLOPs": lambda row: f"{row['gflops']:.1f}",
            "ms": lambda row: f"{row['ms']:.0f}",
            "faster": lambda row: f"{row['faster']:.2f}x",
            "than keep rate 0.7": lambda row: f"{row['faster_than_dropping']:.2f}x",
        },
    ),
    "parts": Part(
        "Where a step's time goes",
        PARTS_NOTE,
        {
            "part": lambda row: row["part"],
            "TSA, GFLOPs": lambda row: f"{row['tsa_gflops']:.2f}",
            "TSA, ms": lambda row: f"{row['tsa_ms']:.1f}",
            "DSTA, GFLOPs": lambda row: f"{row['dsta_gflops']:.2f}",
            "DSTA, ms": lambda row: f"{row['dsta_ms']:.1f}",
        },
    ),
    "lanes": Part(
        "Several streams at once",
        LANES_NOTE,
        {
            "student": lambda row: row["student"],
            "streams": lambda row: str(row["lanes"]),
            "ms a step": lambda row: f"{row['ms']:.0f}",
            "frames/s": lambda row: f"{row['frames_per_second']:.1f}",
            "state MiB": lambda row: f"{row['state_mib']:.1f}",
        },
    ),
    "compiled": Part(
        "Compiled, and in bf16",
        COMPILED_NOTE,
        {
            "student": lambda row: row["student"],
            "form": lambda row: row["form"],
            "ms": lambda row: f"{row['ms']:.0f}",
            "ratio": lambda row: f"{row['ratio']:.2f}",
            "error boxes / scores": lambda row: f"{row['error_boxes']:.1e} / {row['error_scores']:.1e}",
            "recompilations": lambda row: str(row["recompilations"]),
            "first two steps, s": lambda row: f"{row['first_s']:.0f}",
        },
    ),
    "steady": Part(
        "10,000 frames later",
        STEADY_NOTE,
        {
            "student": lambda row: row["student"],
            "young, ms": lambda row: f"{row['young_ms']:.2f}",
            "old, ms": lambda row: f"{row['old_ms']:.2f}",
            "old / young": lambda row: f"{row['ratio']:.3f}",
            "state, bytes": lambda row: " -> ".join(f"{count:,}" for count in row["state_bytes"]),
            "memory, MiB": lambda row: " -> ".join(f"{mib:.0f}" for mib in row["memory_mib"]),
        },
    ),
}


def measure(part: str, device: torch.device, side: int, rounds: int) -> list[Row]:
    """The rows of one part."""
    return MEASURES[part](device, side, rounds)


if __name__ == "__main__":
    main(__doc__, HEADER, PARTS, measure, side=SIDE, rounds=7, out="results/pages/student_speed.md")
