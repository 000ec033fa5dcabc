"""Choice of the precision in which a machine computes at a useful speed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from datamodules.errors import UserError

BFLOAT16 = ("bf16-mixed", "bf16-true", "bf16")
FLOAT16 = ("16-mixed", "16-true", 16, "16")
FLOAT32 = "32-true"
SIDE = 512
"""Side of the square matrices whose product is measured: a few milliseconds on one core."""
ROUNDS = 7
CHOSEN = "ONLOOKER_CPU_PRECISION"
"""Environment variable in which the first process of a run passes its choice on to those that it starts."""


class ProductTimes(NamedTuple):
    """Times of a product of two matrices."""

    float32_ms: float
    bfloat16_ms: float


def measured_products(clock: Callable[[], float] = time.perf_counter) -> ProductTimes:
    """Time a product on the CPU in float32 and, as mixed precision computes it, in bfloat16: the best of some rounds.

    The two take turns, so that another program's load meets both.
    """
    left, right = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE)

    def seconds(half: bool) -> float:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            start = clock()
            left @ right
            return clock() - start

    seconds(False), seconds(True)  # the first product of a kind prepares it
    rounds = [(seconds(False), seconds(True)) for _ in range(ROUNDS)]
    return ProductTimes(*(1000 * min(times) for times in zip(*rounds, strict=True)))


def cpu_computes_bfloat16() -> bool:
    """Return whether this processor multiplies bfloat16 matrices itself: AVX-512 or AMX on x86, BF16 on Arm.

    Elsewhere PyTorch falls back to plain loops: 0.5 GFLOP/s where float32 reaches 70 (one core of an AMD EPYC without
    AVX-512, torch 2.14).
    """
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def computes_bfloat16(device: torch.device) -> bool:
    """Return whether a device does; of accelerators it is taken for granted."""
    return device.type != "cpu" or cpu_computes_bfloat16()


def useful_precision(
    precision: str | int | None,
    accelerator: object,
    resumed: str | None = None,
    measure: Callable[[], ProductTimes] = measured_products,
) -> str | int | None:
    """Return the Trainer's ``precision``, or float32 where bfloat16 makes the CPU no faster.

    The configs name bf16-mixed, which suits GPUs and some processors; they are to run on the others, too. One line says
    what is chosen and why, and the run's record has the precision that is used.

    Args:
        precision: the Trainer's.
        accelerator: the Trainer's; bfloat16 is left to everything that is not the CPU.
        resumed: the precision of the resumed run, which decides instead of a measurement: two of them may
            differ where both products take about as long.
        measure: times the products; only asked where the CPU is to compute in bfloat16.

    Raises:
        UserError: half precision (float16) on a CPU.
    """
    has_other = torch.cuda.is_available() or torch.backends.mps.is_available()
    if has_other and accelerator != "cpu":
        return precision
    if precision in FLOAT16:
        raise UserError(
            f"precision {precision} is about a hundred times slower than 32 on a CPU",
            remedy="set --trainer.precision=bf16-mixed",
        )
    if precision not in BFLOAT16:
        return precision
    # Processes of one run compute in one precision; child processes find the choice in their environment.
    if rank_zero_only.rank > 0 and (chosen := os.environ.get(CHOSEN)):
        return chosen
    os.environ[CHOSEN] = chosen = _chosen(str(precision), resumed, measure)
    return chosen


def _chosen(precision: str, resumed: str | None, measure: Callable[[], ProductTimes]) -> str:
    if not cpu_computes_bfloat16():
        rank_zero_info(
            f"precision {FLOAT32} instead of {precision}: this processor has no bfloat16 arithmetic (AVX-512 or AMX)"
        )
        return FLOAT32
    if resumed in (precision, FLOAT32):
        rank_zero_info(f"precision {resumed}: that of the resumed run")
        return resumed
    times = measure()
    is_faster = times.bfloat16_ms < times.float32_ms
    rank_zero_info(
        (f"precision {precision}" if is_faster else f"precision {FLOAT32} instead of {precision}")
        + f": on this CPU a product of {SIDE} x {SIDE} matrices takes {times.bfloat16_ms:.2g} ms in bfloat16, "
        f"{times.float32_ms:.2g} ms in float32"
    )
    return precision if is_faster else FLOAT32
