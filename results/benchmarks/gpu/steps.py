"""Steps and clips on a GPU in every form: time alone and back to back, streams side by side, errors against float32."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from callbacks.measures.latency import interleave, synchronizer
from lightning_modules.commands.export_parity import moving_blobs
from lightning_modules.networks.detection.evad import EvadTeacher
from lightning_modules.networks.detection.outputs import decode_detections
from lightning_modules.networks.layers.pixels import normalise_frames
from lightning_modules.networks.layers.prepared import prepare_for_inference
from lightning_modules.networks.streaming import state_bytes
from results.benchmarks import student_networks
from results.benchmarks.gpu.forms import COMPILED_FORMS, FORMS, LANE_FORMS, REFERENCE, Form, Runner
from results.benchmarks.gpu.processes import Settings
from results.benchmarks.page import Row, memory_mib, row_ratio
from results.benchmarks.random_weights import randomise
from results.benchmarks.student_forms import largest_errors

SIDE = 256
"""Side of the frames of networks at ViT-B size."""
COMPARED_FRAMES, COMPARED_CLIPS, COMPARED_IN_LANES = 16, 3, 4
"""Over so many of them errors are the largest."""
GROUP_SECONDS = 4.0
"""Longest time for the timed calls of one network in all its forms."""
LANES = {"cuda": (1, 2, 4, 8, 16, 32, 64), "cpu": (1, 2)}
COMPILED_ORDER = ("bf16", "TF32", "float32")
"""The most useful first: a compilation takes a minute or two, and the time may not suffice for all."""


class Candidate(NamedTuple):
    """A network to be measured."""

    name: str
    make: Callable[[], nn.Module]
    side: int | None
    """Side of its frames; None for the side that it was made for."""


def vit_b(name: str, **changes: Any) -> nn.Module:
    """A network at ViT-B size with random weights, among which every part matters; all its actors are classified.

    Random weights score proposals so similarly that rounding would decide which are chosen.
    """
    network = student_networks.configured(f"{name}_vit_b", changes)
    if hasattr(network, "num_actors"):
        network.num_actors = None
    return randomise(network)


DENSE = {"backbone.keep_rates": dict.fromkeys(student_networks.KEEP_LAYERS, 1.0)}
VIT_B = (
    Candidate("DSTA, ViT-B", lambda: vit_b("dsta"), SIDE),
    Candidate("TSA, ViT-B", lambda: vit_b("tsa"), SIDE),
    Candidate("EVAD, ViT-B, dense", lambda: vit_b("evad", **DENSE), SIDE),
    Candidate("EVAD, ViT-B, keep rate 0.7", lambda: vit_b("evad"), SIDE),
)
TINY = tuple(
    Candidate(f"{name}.pt", lambda name=name: student_networks.shipped(name), None)
    for name in ("dsta", "tsa", "evad_16f")
)


def candidates(size: str) -> tuple[Candidate, ...]:
    """Return all networks of a size; the shipped ones are measured beside the large ones."""
    return TINY if size == "tiny" else (*VIT_B, *TINY)


def on_device(candidate: Candidate, device: torch.device) -> tuple[nn.Module, int]:
    """The network, ready for inference, and the side of its frames."""
    network: Any = candidate.make().eval().to(device)
    prepare_for_inference(network)
    return network, candidate.side or network.frame_size


def material(network: Any, side: int, lanes: int) -> Tensor:
    """Return wandering blobs: N clips (N, lanes, 3, T, H, W) or frames (N, lanes, 1, 3, H, W), different per lane."""
    is_clip = isinstance(network, EvadTeacher)
    count = COMPARED_CLIPS if is_clip else COMPARED_FRAMES if lanes == 1 else COMPARED_IN_LANES
    length = network.num_frames if is_clip else 1
    blobs = torch.from_numpy(moving_blobs(count + length + lanes, (side, side)))
    frames = normalise_frames(blobs.permute(0, 3, 1, 2)[None])[0]
    places = torch.arange(count)[:, None] + torch.arange(lanes)  # (N, lanes)
    windows = frames[places[..., None] + torch.arange(length)]  # (N, lanes, T, 3, H, W)
    return windows.transpose(2, 3) if is_clip else windows


def failure(error: RuntimeError) -> str:
    """Return in a line why the device or the compiler refused."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:200]


def free(device: torch.device) -> None:
    """Give back what is not used any more, so that the next network finds the memory whole."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def back_to_back_ms(call: Callable[[], object], device: torch.device, calls: int) -> float:
    """Return the milliseconds per call where the CPU does not wait in between."""
    wait = synchronizer(device)
    wait()
    if device.type != "cuda":
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        return 1e3 * (time.perf_counter() - begin) / calls
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        call()
    end.record()
    wait()
    return start.elapsed_time(end) / calls


def fitting_rounds(calls: Sequence[Callable[[], object]], rounds: int, device: torch.device) -> int:
    """Return the rounds of these calls that fit into ``GROUP_SECONDS``: ``rounds`` at most, 3 at least."""
    wait = synchronizer(device)
    wait()
    begin = time.perf_counter()
    for call in calls:
        call()
    wait()
    return max(3, min(rounds, int(GROUP_SECONDS / max(time.perf_counter() - begin, 1e-9))))


@torch.no_grad()
def measure_forms(
    facts: Row,
    network: nn.Module,
    forms: Sequence[Form],
    side: int,
    lanes: int,
    rounds: int,
    call: Callable[..., Any] | None = None,
) -> list[Row]:
    """Rows of a network in several forms, timed in turn; errors are relative to the first one, see ``largest_errors``.

    A form that the device refuses (no memory, no capture) gets a row that says so. ``call`` is the compiled network.
    """
    device = next(network.parameters()).device
    inputs = material(network, side, lanes).to(device)
    rows: list[Row] = []
    runners: dict[str, Runner] = {}
    expected = None
    for form in forms:
        if not form.runs_on(device):
            continue
        row = facts | {"form": form.name, "lanes": lanes}
        free(device)
        begin = time.perf_counter()
        try:
            runner = Runner(network, form, side, lanes, call if form.compiled else None)
            found = runner.outputs(inputs)
        except RuntimeError as error:
            rows.append(row | {"failed": failure(error)})
            continue
        row |= {"first_s": time.perf_counter() - begin, "memory_mib": memory_mib(device, peak=True)}
        if form == forms[0]:
            expected = found
        if expected is not None:
            row["error_boxes"], row["error_scores"] = largest_errors(found, expected)
        if runner.is_stream:
            row["state_mib"] = state_bytes(runner.state) / 2**20
        rows.append(row)
        runners[form.name] = runner
    steps = {
        name: lambda runner=runner: decode_detections(runner.run(), runner.sizes, runner.sizes)
        for name, runner in runners.items()
    }
    if not steps:
        return rows
    number = fitting_rounds(list(steps.values()), rounds, device)
    timed = interleave(steps, rounds=number, warmup=2, synchronize=synchronizer(device))
    first = next(iter(steps))
    for row in rows:
        if runner := runners.get(row["form"]):
            latency = timed.latencies[row["form"]]
            row |= {
                "ms": latency.p50_ms,
                "p95_ms": latency.p95_ms,
                "ratio": row_ratio(timed, row["form"], first),
                "network_ms": back_to_back_ms(runner.run, device, number),
                "rounds": number,
            }
            row["frames_per_second"] = lanes * 1e3 / row["ms"]
    return rows


def measure_steps(settings: Settings) -> Iterator[Row]:
    """Measure every network in every form, one stream or clip."""
    device = torch.device(settings.device)
    for candidate in candidates(settings.size):
        network, side = on_device(candidate, device)
        facts = {"part": "steps", "network": candidate.name, "side": side}
        yield from measure_forms(facts, network, FORMS, side, 1, settings.rounds)
        del network


def measure_lanes(settings: Settings) -> Iterator[Row]:
    """Measure students on 1 to 64 streams side by side, each with its own clock: state is renewed and held by lane."""
    device = torch.device(settings.device)
    for candidate in (TINY if settings.size == "tiny" else VIT_B)[:2]:
        network, side = on_device(candidate, device)
        facts = {"part": "lanes", "network": candidate.name, "side": side}
        for lanes in LANES["cuda" if device.type == "cuda" else "cpu"]:
            yield from measure_forms(facts, network, LANE_FORMS, side, lanes, settings.rounds)
        del network


def measure_compiled(settings: Settings) -> Iterator[Row]:
    """Measure networks under ``torch.compile``, launched call by call and as a CUDA graph."""
    device = torch.device(settings.device)
    some = TINY[:1] if settings.size == "tiny" else (VIT_B[0], VIT_B[2], VIT_B[1])
    for arithmetic in COMPILED_ORDER:
        for candidate in some:
            torch._dynamo.reset()
            network, side = on_device(candidate, device)
            compiled = torch.compile(network, dynamic=False)
            forms = (REFERENCE, *COMPILED_FORMS[arithmetic])
            facts = {"part": "compiled", "network": candidate.name, "side": side}
            yield from measure_forms(facts, network, forms, side, 1, settings.rounds, compiled)
            del network, compiled
