"""Other forms of the students' steps, compiled and in bf16, and what becomes of a step after thousands of frames."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from callbacks.measures.latency import interleave, synchronizer
from lightning_modules.command_line.precision import computes_bfloat16
from lightning_modules.networks.detection.outputs import Detections, decode_detections
from lightning_modules.networks.layers.prepared import prepare_for_inference
from lightning_modules.networks.streaming import state_bytes
from lightning_modules.networks.students.detector import StreamingDetector
from lightning_modules.networks.weights.loading import load_exactly, read_state_dict
from results.benchmarks import student_networks
from results.benchmarks.page import Row, memory_mib, row_ratio

YOUNG, OLD, COMPARED = 100, 9_000, 1_000
"""Ages in frames of the two streams whose latency is compared, over how many frames."""


@torch.no_grad()
def measure_compiled(device: torch.device, side: int, rounds: int) -> list[Row]:
    """The step under torch.compile and bf16, where the device has that: time, errors over a stream, recompilations."""
    from torch._dynamo.utils import counters

    mode = "reduce-overhead" if device.type == "cuda" else "default"  # the former runs CUDA graphs
    frames, sizes = student_networks.normalised_frames(20, side, device), torch.tensor([[side, side]], device=device)
    rows = []
    for temporal in ("tsa", "dsta"):
        torch._dynamo.reset()
        plain = student_networks.student(temporal, device, changes={"num_actors": None})
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
        network = student_networks.configured(f"{temporal}_tiny", {}).eval().to(device)
        load_exactly(network, read_state_dict(student_networks.ROOT / "results" / "weights" / f"{temporal}.pt"))
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
        self.frames = student_networks.normalised_frames(64, network.frame_size, device)
        self.sizes = torch.tensor([[network.frame_size] * 2], device=device)
        self.state = network.initial_state(1, device=device)

    def step(self) -> None:
        """The next frame to decoded detections."""
        frame = self.frames[:, self.number % 64][:, None]
        detections, self.state = self.network(frame, self.state, self.sizes)
        decode_detections(Detections(*(part[:, 0] for part in detections)), self.sizes, self.sizes)
        self.number += 1
