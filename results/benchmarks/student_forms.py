"""Other forms of the students' steps: compiled, and in bf16."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from callbacks.measures.latency import synchronizer
from lightning_modules.command_line.precision import computes_bfloat16
from lightning_modules.networks.detection.outputs import Detections, decode_detections
from lightning_modules.networks.students.detector import StreamingDetector
from results.benchmarks import student_networks
from results.benchmarks.page import Row, row_ratio, timed_in_turn


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
        timed = timed_in_turn(steps, rounds=rounds, warmup=2, synchronize=synchronizer(device))
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
    """Return the largest errors of boxes relative to their size, and of person and action probabilities."""
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
