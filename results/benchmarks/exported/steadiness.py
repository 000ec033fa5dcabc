"""Latency and memory of the demo's students after 10,000 frames: in PyTorch, and exported in float32 and int8."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from tqdm import tqdm

from callbacks.measures.latency import Latency, synchronizer
from lightning_modules.networks.detection.export_graphs import StepGraph
from lightning_modules.networks.detection.outputs import Detections, decode_detections
from lightning_modules.networks.layers.prepared import prepare_for_inference
from lightning_modules.networks.streaming import state_bytes
from lightning_modules.networks.students.detector import StreamingDetector
from lightning_modules.runtimes.sessions import installed, open_session
from results.benchmarks import student_networks
from results.benchmarks.exported.student_sizes import ExportedStream, exported
from results.benchmarks.page import Row, memory_mib, timed_in_turn

FRAMES = 10_000
BLOCKS = 10
"""Parts in which the compared frames of a form are timed."""
YOUNG_SHARE, COMPARED_SHARE = 0.01, 0.1
"""Shares of these frames: seen by the young stream before it is timed, and timed of both streams."""


class Stream(Protocol):
    """A stream of frames and its state."""

    state: Any

    def step(self) -> object:
        """The next frame to decoded detections."""


class TorchStream:
    """A stream of noise, 64 frames over and over."""

    def __init__(self, network: StreamingDetector, device: torch.device) -> None:
        self.network, self.number = network, 0
        self.frames = student_networks.normalised_frames(64, network.frame_size, device)
        self.sizes = torch.tensor([[network.frame_size] * 2], device=device)
        self.state = network.initial_state(1, device=device)

    def step(self) -> object:
        """The next frame to decoded detections."""
        frame = self.frames[:, self.number % 64][:, None]
        detections, self.state = self.network(frame, self.state, self.sizes)
        self.number += 1
        return decode_detections(Detections(*(part[:, 0] for part in detections)), self.sizes, self.sizes)


def bytes_of(state: Any) -> int:
    """Bytes of a state, of tensors or of arrays by name."""
    return sum(part.nbytes for part in state.values()) if isinstance(state, dict) else state_bytes(state)


def streams(temporal: str, device: torch.device, folder: Path) -> Iterator[tuple[str, Callable[[], Stream]]]:
    """Yield the forms of a student and what makes a stream of each; runtimes are a CPU's."""
    network: Any = student_networks.shipped(temporal)
    if device.type == "cpu" and "onnx" in installed() and find_spec("onnxscript"):
        side = network.frame_size
        graph = StepGraph(network, (side, side), "person_x_action")
        files = exported(network, folder / temporal, side)
        runs = {precision: open_session(path, "onnx") for precision, path in files.items()}
    else:
        print("without onnx and onnxscript (pip install '.[export]') PyTorch alone is measured")
        graph, side, runs = None, 0, {}
    network = network.to(device)
    prepare_for_inference(network)
    yield "PyTorch, float32", lambda: TorchStream(network, device)
    for precision, run in runs.items():
        yield f"onnxruntime, {precision}", lambda run=run: ExportedStream(run, graph, side)


def in_turn_by_blocks(
    pairs: Mapping[str, tuple[Stream, Stream]], frames: int, synchronize: Callable[[], None]
) -> dict[tuple[str, str], Latency]:
    """Time a young and an old stream of each form, frame by frame in turn, and the forms in turn block by block.

    A frame of another form would leave its weights in the processor's caches, which costs the next stream time.
    """
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for block in range(min(BLOCKS, frames)):
        rounds = len(range(block, frames, min(BLOCKS, frames)))
        for form, (young, old) in pairs.items():
            steps = {"young": young.step, "old": old.step}
            timed = timed_in_turn(steps, rounds=rounds, warmup=0, synchronize=synchronize)
            for age, latency in timed.latencies.items():
                seconds[form, age] += [sample / 1e3 for sample in latency.samples]
    return {stream: Latency.from_seconds(durations) for stream, durations in seconds.items()}


@torch.inference_mode()
def measure_steadiness(device: torch.device, side: int, rounds: int, frames: int = FRAMES) -> list[Row]:
    """The last frames of an old stream against those of a young one, frame by frame in turn.

    ``side`` and ``rounds`` are those of other parts: the students have a frame size of their own.
    """
    compared = max(2, round(COMPARED_SHARE * frames))
    age, first = frames - compared, max(1, round(YOUNG_SHARE * frames))
    rows = []
    for temporal in ("tsa", "dsta"):
        pairs: dict[str, tuple[Stream, Stream]] = {}
        states, memory = {}, {}
        with TemporaryDirectory() as folder:
            for form, make in streams(temporal, device, Path(folder)):
                young, old = pairs[form] = make(), make()
                for _ in range(first):
                    old.step()
                first_state, first_memory = bytes_of(old.state), memory_mib(device)
                for _ in tqdm(range(age - first), desc=f"{temporal}, {form}", unit="frame", leave=False):
                    old.step()
                states[form], memory[form] = (first_state, bytes_of(old.state)), (first_memory, memory_mib(device))
                for _ in range(first):
                    young.step()
        timed = in_turn_by_blocks(pairs, compared, synchronizer(device))
        plain, *_ = pairs
        for form in pairs:
            young_ms, old_ms = timed[form, "young"].p50_ms, timed[form, "old"].p50_ms
            rows.append(
                {
                    "student": temporal,
                    "form": form,
                    "young_ms": young_ms,
                    "old_ms": old_ms,
                    "ratio": old_ms / young_ms,
                    "faster": timed[plain, "old"].p50_ms / old_ms,
                    "old_p95_ms": timed[form, "old"].p95_ms,
                    "state_bytes": states[form],
                    "memory_mib": memory[form],
                    "young": first,
                    "young_to": first + compared,
                    "old": age,
                    "old_to": frames,
                }
            )
    return rows
