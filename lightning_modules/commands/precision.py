"""Which precisions a machine computes in at a useful speed."""

from __future__ import annotations

import torch
from lightning.pytorch.utilities import rank_zero_warn

BFLOAT16 = ("bf16-mixed", "bf16-true", "bf16")
FLOAT16 = ("16-mixed", "16-true", 16, "16")
FLOAT32 = "32-true"


def cpu_computes_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices itself: AVX-512 or AMX on x86, BF16 on Arm.

    Elsewhere PyTorch falls back to plain loops: 0.5 GFLOP/s where float32 reaches 70 (one core of an AMD EPYC without
    AVX-512, torch 2.14).
    """
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a device does; of accelerators it is taken for granted."""
    return device.type != "cpu" or cpu_computes_bfloat16()


def useful_precision(precision: str | int | None, accelerator: object) -> str | int | None:
    """The Trainer's ``precision``, or float32 where the processor would take a hundred times as long in bfloat16.

    The configs name bf16-mixed, which suits GPUs and new processors; they are to run on the others, too. The change is
    told, and the run's record has the precision that was used.

    Args:
        accelerator: the Trainer's; bfloat16 is left to everything that is not the CPU.

    Raises:
        ValueError: half precision (float16) on a CPU.
    """
    has_other = torch.cuda.is_available() or torch.backends.mps.is_available()
    if has_other and accelerator != "cpu":
        return precision
    if precision in FLOAT16:
        raise ValueError(
            f"precision {precision} is about a hundred times slower than 32 on a CPU; "
            "set --trainer.precision=bf16-mixed"
        )
    if precision in BFLOAT16 and not cpu_computes_bfloat16():
        rank_zero_warn(
            f"this processor has no bfloat16 arithmetic (AVX-512 or AMX), in which {precision} would take a hundred "
            f"times as long: running in {FLOAT32}"
        )
        return FLOAT32
    return precision
