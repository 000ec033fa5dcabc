"""Measure how long a step takes, as a person waiting for it would: every call by itself, device included.

A step takes one new frame to its detections. Warm-up is excluded (allocation, kernel selection, compilation). The
device is waited for before the clock starts and before it stops. Median and tail are reported, since a live stream is
late as often as its 95th percentile says, not as its mean says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

Step = Callable[[], object]
Clock = Callable[[], float]


class Latency(NamedTuple):
    """Duration of single calls."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    frames_per_second: float
    """Steps a second back to back, one frame a step: the inverse of the mean, not of the median."""
    samples: tuple[float, ...]
    """All durations in ms, in the order measured."""

    @classmethod
    def from_seconds(cls, durations: Sequence[float]) -> Latency:
        """Percentiles by linear interpolation between the two nearest samples."""
        samples = torch.tensor(durations, dtype=torch.float64) * 1e3
        p50, p95, p99 = torch.quantile(samples, torch.tensor([0.5, 0.95, 0.99], dtype=torch.float64)).tolist()
        mean = samples.mean().item()
        return cls(p50, p95, p99, mean, 1e3 / mean if mean else float("inf"), tuple(samples.tolist()))


class Interleaved(NamedTuple):
    """Several steps measured in one run."""

    latencies: dict[str, Latency]
    ratios: dict[str, float]
    """Median of the first step divided by the median of each: how many times faster than the first it is."""


def synchronizer(device: torch.device | str) -> Callable[[], None]:
    """The call that waits until a device has finished its work; nothing to wait for on a CPU."""
    device = torch.device(device)
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    if device.type == "mps":
        return torch.mps.synchronize
    if device.type == "cpu":
        return lambda: None
    raise ValueError(f"do not know how to wait for {device}; pass its own synchronize function")


def measure_latency(
    step: Step,
    *,
    warmup: int,
    repeats: int,
    synchronize: Callable[[], None],
    clock: Clock = time.perf_counter,
) -> Latency:
    """Time ``repeats`` single calls after ``warmup`` untimed ones.

    Args:
        synchronize: waits for the device; ``synchronizer(device)``.
        clock: seconds from anywhere, monotonic.
    """
    alone = interleave({"step": step}, rounds=repeats, warmup=warmup, synchronize=synchronize, clock=clock)
    return alone.latencies["step"]


def interleave(
    steps: Mapping[str, Step],
    *,
    rounds: int,
    warmup: int,
    synchronize: Callable[[], None],
    clock: Clock = time.perf_counter,
    tick: Callable[[], object] = lambda: None,
    untimed: int = 0,
) -> Interleaved:
    """Time several steps in turn, one call of each a round.

    A temporary slowdown of the machine (a neighbour, heat, frequency scaling) then affects all of them equally. Ratios
    hold even where absolute figures do not. ``tick`` is called after each round of a step, outside its time.
    ``untimed`` calls of a step precede each timed one: the processor's caches then hold its weights instead of those of
    the step before it, as where it runs alone.
    """
    if not steps:
        raise ValueError("there is no step to measure")
    if rounds < 1:
        raise ValueError(f"the number of timed calls must be at least 1, got {rounds}")
    if warmup < 0:
        raise ValueError(f"warmup must not be negative, got {warmup}")
    durations: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(-warmup, rounds):
        for name, step in steps.items():
            for _ in range(untimed):
                step()
            synchronize()
            begin = clock()
            step()
            synchronize()
            end = clock()
            if number >= 0:
                durations[name].append(end - begin)
            tick()
    latencies = {name: Latency.from_seconds(seconds) for name, seconds in durations.items()}
    first = next(iter(latencies.values()))
    ratios = {
        name: first.p50_ms / latency.p50_ms if latency.p50_ms else float("inf") for name, latency in latencies.items()
    }
    return Interleaved(latencies, ratios)
