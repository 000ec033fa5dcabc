"""Speed of the streaming students at their teacher's real size: ``make bench``.

    python -m results.benchmarks.student_speed

Random weights (no value changes the work), batch 1 unless lanes are the question. Compared calls are timed in turn in
one process, so that other load of the machine affects all of them.
"""

from __future__ import annotations

import contextlib
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from callbacks.measures.latency import Latency, synchronizer
from lightning_modules.networks.detection.evad import EvadTeacher
from lightning_modules.networks.detection.outputs import Detections
from lightning_modules.networks.streaming import state_bytes
from lightning_modules.networks.students.detector import StreamingDetector
from results.benchmarks.exported.steadiness import FRAMES, measure_steadiness
from results.benchmarks.exported.student_sizes import STUDENTS, measure_sizes
from results.benchmarks.page import Row, page_parser, row_ratio, timed_in_turn, write_page
from results.benchmarks.student_forms import measure_compiled
from results.benchmarks.student_networks import clip_step, frame_step, gflops, student, teacher
from results.benchmarks.student_speed_page import HEADER, PARTS

SIDE = 256

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
"""Changes of each saving to EVAD's head."""
PARTS_OF_A_STEP = ("embedding", "attention", "LSTM", "MLP", "pyramid", "localizer", "decoder", "decoding")


def named(place: str) -> str:
    """The name of a setting of the head on the page."""
    return place.replace("head.decoder.", "decoder_").rpartition(".")[2]


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
    # After as many steps as its memory has frames the memory is full, and a step costs what it always will.
    timed = timed_in_turn(steps, rounds=rounds, warmup=3, synchronize=synchronizer(device))
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
    # Time after the localizer is the decoder's, reading of the memory included.
    handles += [network.head.localizer.register_forward_hook(begin("decoder"))]
    handles += [network.register_forward_hook(end("decoder", "decoder"))]
    try:
        yield spent
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def measure_parts(device: torch.device, side: int, rounds: int) -> list[Row]:
    """Measure the cost of every part of a step."""
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
        timed = timed_in_turn(steps, rounds=rounds, warmup=2, synchronize=synchronizer(device))
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


def measure(part: str, device: torch.device, given: Namespace) -> list[Row]:
    """The rows of one part; ``given`` are the arguments of the command line."""
    common = (device, given.side, given.rounds)
    if part == "sizes":
        return measure_sizes(*common, given.students)
    if part == "steady":
        return measure_steadiness(*common, given.frames)
    measures = {"speed": measure_speed, "parts": measure_parts, "lanes": measure_lanes, "compiled": measure_compiled}
    return measures[part](*common)


def main(args: list[str] | None = None) -> None:
    name, out = "python -m results.benchmarks.student_speed", "results/pages/student_speed.md"
    parser = page_parser(__doc__, PARTS, side=SIDE, rounds=5, out=out, prog=name)
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=STUDENTS, help="of the part sizes")
    parser.add_argument("--frames", type=int, default=FRAMES, help="of a stream in the part steady (%(default)s)")
    given = parser.parse_args(args)
    write_page(given, HEADER, PARTS, lambda part, device: measure(part, device, given))


if __name__ == "__main__":
    main()
