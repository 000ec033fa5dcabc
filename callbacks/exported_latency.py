"""Rows of the benchmark table for a network outside its experiment: another runtime beside PyTorch, timed in turn."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from callbacks.benchmark import commit, device_name
from callbacks.latency import Step, interleave, synchronizer


def runtime_rows(
    experiment: str,
    weights: str,
    steps: Mapping[str, Step],
    reference: Step | None,
    parameters: int,
    state_mib: float | None,
    warmup: int = 5,
    repeats: int = 50,
) -> list[dict[str, Any]]:
    """One row a runtime, named ``<experiment> (<runtime>)``; accuracy and operations are those of the experiment's row.

    Args:
        steps: runtime -> one new frame (clip) from uint8 pixels to decoded detections, on the CPU.
        reference: what the speed-up is relative to, see ``Benchmarkable.benchmark_reference``.
    """
    timed_steps = dict(steps) if reference is None else {"reference": reference, **steps}
    timed = interleave(timed_steps, rounds=repeats, warmup=warmup, synchronize=synchronizer("cpu"))
    shared = {
        "weights": weights,
        "protocol": "-",
        "map": None,
        "parameters": parameters,
        "gflops": None,
        "gflops_published": None,
        "gflops_unit": None,
        "uncounted_operators": [],
        "state_mib": state_mib,
        "device": device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "precision": "32-true",
        "seed": int(seed) if (seed := os.environ.get("PL_GLOBAL_SEED")) else None,
        "commit": commit(Path(__file__).parent),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return [
        {
            "experiment": f"{experiment} ({runtime})",
            **shared,
            "latency_p50_ms": timed.latencies[runtime].p50_ms,
            "latency_p95_ms": timed.latencies[runtime].p95_ms,
            "latency_p99_ms": timed.latencies[runtime].p99_ms,
            "frames_per_second": timed.latencies[runtime].frames_per_second,
            "speedup": None if reference is None else timed.ratios[runtime],
        }
        for runtime in steps
    ]
