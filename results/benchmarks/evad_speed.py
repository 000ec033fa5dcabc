"""Speed of EVAD against its published arithmetic: ``make bench-evad``.

    python -m results.benchmarks.evad_speed

Same weights (random ones: no value changes the work), same clip, same outputs. The figures of a table come from runs in
turn in one process, so other load on the machine meets all of them. Memory is measured in a process of its own for
each.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from callbacks.measures.latency import synchronizer
from lightning_modules.command_line.precision import computes_bfloat16
from lightning_modules.losses.detection import DetectionLoss
from lightning_modules.networks.detection.evad import EvadTeacher
from lightning_modules.networks.detection.head import DetectionHead, HeadFactory
from lightning_modules.networks.detection.outputs import DetectorOutputs
from lightning_modules.networks.detection.published_cost import published_gflops
from lightning_modules.networks.detection.vit import VideoViT
from lightning_modules.networks.layers.linear import linear
from results.benchmarks.evad_speed_page import HEADER, PARTS
from results.benchmarks.naive_evad import NaiveOutputs, naive_evad
from results.benchmarks.page import main, memory_mib, row_ratio, timed_in_turn
from results.benchmarks.random_weights import randomise

FRAMES, SIDE = 16, 288
KEEP_LAYERS = (3, 6, 9)


class Setting(NamedTuple):
    """A published configuration of token dropout."""

    name: str
    keep_rate: float
    enhanced_weight: float

    def teacher(self, device: torch.device | str, head: HeadFactory | None = None, **changes: Any) -> EvadTeacher:
        """Return a teacher in eval mode; its random weights (seed 0) use every part and keep boxes in reach."""
        rates = dict.fromkeys(KEEP_LAYERS, self.keep_rate)
        backbone = VideoViT(keep_rates=rates, enhanced_weight=self.enhanced_weight, **changes)
        teacher = EvadTeacher(80, backbone, head or DetectionHead)
        return randomise(teacher).eval().to(device)


MODES = {
    "autocast": (("fp32", False, False), ("bf16", False, True)),
    "compiled": (("fp32", False, False), ("fp32 compiled", True, False), ("bf16 compiled", True, True)),
}
"""Name, whether torch.compile is used, whether bf16 autocast is; the first is what the others are compared with."""
SETTINGS = (Setting("1.0", 1.0, 1.0), Setting("0.7", 0.7, 1.0), Setting("0.6, e 4", 0.6, 4.0))


def clip_on(device: torch.device | str, side: int) -> tuple[Tensor, Tensor]:
    """A normalised clip (1, 3, T, side, side) of random pixels, and its size (1, 2)."""
    generator = torch.Generator().manual_seed(1)
    clip = torch.randn(1, 3, FRAMES, side, side, generator=generator)
    return clip.to(device), torch.tensor([[side, side]], device=device)


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16)


def matrix_product(
    device: torch.device, dtype: torch.dtype, product: Callable = F.linear
) -> tuple[Callable[[], object], float]:
    """A product as large as the encoder's largest, ten times over, and its multiply-adds.

    No result is kept while the next is made: ten of them would be fresh memory, whose pages take time of their own.
    """
    tokens = torch.randn(2592, 768, device=device, dtype=dtype)
    weight = torch.randn(3072, 768, device=device, dtype=dtype)

    def ten_products() -> None:
        for _ in range(10):
            product(tokens, weight)

    return ten_products, 10 * 2592 * 768 * 3072


def difference(found: DetectorOutputs | NaiveOutputs, expected: DetectorOutputs | NaiveOutputs) -> tuple[float, float]:
    """Largest error of the last stage's boxes, relative to their size, and of the action probabilities."""
    true = expected.boxes[-1].float()
    size = (true[..., 2:] - true[..., :2]).amax(-1, keepdim=True)
    boxes = ((found.boxes[-1].float() - true).abs() / size).max()
    actions = (found.action_logits[-1].float().sigmoid() - expected.action_logits[-1].float().sigmoid()).abs().max()
    return float(boxes), float(actions)


@torch.no_grad()
def measure_forward(setting: Setting, device: torch.device, side: int, rounds: int) -> dict[str, Any]:
    """Measure one row of the table of forward passes."""
    teacher, (clip, sizes) = setting.teacher(device), clip_on(device, side)

    def in_bf16() -> Any:
        with autocast(device):
            return teacher.outputs(clip, sizes)

    product, multiply_adds = matrix_product(device, torch.float32)
    onednn_product, _ = matrix_product(device, torch.float32, linear)
    steps = {
        "published": lambda: naive_evad(teacher, clip, sizes),
        "ours": lambda: teacher.outputs(clip, sizes),
        "product": product,
        "product onednn": onednn_product,
    }
    has_bf16 = computes_bfloat16(device)
    if has_bf16:
        steps |= {"ours bf16": in_bf16, "product bf16": matrix_product(device, torch.bfloat16)[0]}
    timed = timed_in_turn(steps, rounds=rounds, warmup=1, synchronize=synchronizer(device))
    seconds = dict.fromkeys(("ours bf16", "product bf16"), math.nan)
    seconds |= {name: latency.p50_ms / 1e3 for name, latency in timed.latencies.items()}
    expected = naive_evad(teacher, clip, sizes)
    cost = published_gflops(teacher, side, side).total * 1e9
    limits = {name: cost / multiply_adds * seconds[name] for name in ("product", "product onednn", "product bf16")}
    plain = difference(teacher.outputs(clip, sizes), expected)
    half = difference(in_bf16(), expected) if has_bf16 else (math.nan, math.nan)
    return {
        "setting": setting.name,
        "published_s": seconds["published"],
        "ours_s": seconds["ours"],
        "ratio": row_ratio(timed, "ours", "published"),
        "limit_ratio": limits["product"] / seconds["published"],
        "limit_share": limits["product"] / seconds["ours"],
        "onednn_limit_share": limits["product onednn"] / seconds["ours"],
        "error_boxes": plain[0],
        "error_actions": plain[1],
        "bf16_s": seconds["ours bf16"],
        "bf16_ratio": row_ratio(timed, "ours bf16", "published") if has_bf16 else math.nan,
        "bf16_limit_share": limits["product bf16"] / seconds["ours bf16"],
        "bf16_error_boxes": half[0],
        "bf16_error_actions": half[1],
        "product_gflops": 2e-9 * multiply_adds / seconds["product"],
        "onednn_gflops": 2e-9 * multiply_adds / seconds["product onednn"],
        "product_bf16_gflops": 2e-9 * multiply_adds / seconds["product bf16"],
    }


def training_step(
    teacher: EvadTeacher, clip: Tensor, sizes: Tensor, outputs_of: Callable | None = None, context: Any = None
) -> Callable[[], object]:
    """Forward, loss and backward with two people in the clip. Another form of ``teacher.outputs`` may be given, and the
    context (such as autocast) to call it in."""
    outputs_of = outputs_of or teacher.outputs
    loss, device, side = DetectionLoss(), clip.device, clip.shape[-1]
    boxes = torch.tensor([[0.1, 0.2, 0.4, 0.9], [0.5, 0.1, 0.8, 0.95]], device=device) * side
    labels = torch.zeros(2, teacher.num_classes, device=device)
    labels[:, 3] = 1

    def step() -> None:
        teacher.zero_grad(set_to_none=True)
        with context or contextlib.nullcontext():
            outputs = outputs_of(clip, sizes, deep=True)
        annotated = torch.ones(1, dtype=torch.bool, device=device)
        losses = loss(outputs.person_logits, outputs.boxes, outputs.action_logits, [boxes], [labels], annotated, sizes)
        losses["total"].backward()

    return step


def measure_training(device: torch.device, side: int, rounds: int) -> list[dict[str, Any]]:
    """Seconds of a training step: keep rates 1 and 0.7, blocks recomputed in the backward pass or not."""
    clip, sizes = clip_on(device, side)
    steps = {}
    for setting in SETTINGS[:2]:
        for recompute in (False, True):
            teacher = setting.teacher(device, checkpoint_blocks=recompute, drop_path_rate=0.1).train()
            steps[setting.name, recompute] = training_step(teacher, clip, sizes)
    named = {str(key): step for key, step in steps.items()}
    timed = timed_in_turn(named, rounds=rounds, warmup=1, synchronize=synchronizer(device))
    return [
        {
            "setting": name,
            "recompute": recompute,
            "seconds": timed.latencies[str((name, recompute))].p50_ms / 1e3,
            "faster_than_keep_1": 1 / row_ratio(timed, str((name, recompute)), str((SETTINGS[0].name, recompute))),
        }
        for name, recompute in steps
    ]


def peak_memory(work: str, setting: Setting, device: str, side: int, recompute: bool = False) -> float:
    """MiB that a forward pass (``published``, ``ours``) or a ``training`` step needs beyond weights and clip.

    To be called in a fresh process, whose memory nothing else has stretched.
    """
    changes = {"checkpoint_blocks": recompute} if work == "training" else {}
    teacher, (clip, sizes) = setting.teacher(device, **changes), clip_on(device, side)
    before = memory_mib(torch.device(device))
    if torch.device(device).type == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    if work == "training":
        training_step(teacher.train(), clip, sizes)()
    else:
        with torch.no_grad():
            naive_evad(teacher, clip, sizes) if work == "published" else teacher.outputs(clip, sizes)
    return memory_mib(torch.device(device), peak=True) - before


def peak_memory_alone(threads: int, *arguments: Any) -> float:
    """``peak_memory`` in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1, torch.set_num_threads, (threads,)) as pool:
        return pool.apply(peak_memory, arguments)


def gradients(step: Callable[[], object], teacher: EvadTeacher) -> Tensor:
    """Return all gradients of one training step, concatenated."""
    step()
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in teacher.parameters()]
    )


def measure_modes(part: str, setting: Setting, device: torch.device, side: int, rounds: int) -> list[dict[str, Any]]:
    """Forward and backward compiled and under bf16 autocast, where the device has that: time against plain fp32, and
    errors."""
    teacher, (clip, sizes) = setting.teacher(device), clip_on(device, side)
    plain = teacher.outputs
    forward, backward, first = {}, {}, {}
    expected = expected_gradients = None
    rows = []
    for name, compiled, half in MODES[part]:
        if half and not computes_bfloat16(device):
            continue
        print(f"  {name} ...", flush=True)
        outputs = torch.compile(plain) if compiled else plain

        def run(outputs: Callable[..., Any] = outputs, half: bool = half, deep: bool = False) -> Any:
            with torch.no_grad(), autocast(device) if half else contextlib.nullcontext():
                return outputs(clip, sizes, deep=deep)

        train = training_step(teacher, clip, sizes, outputs, autocast(device) if half else contextlib.nullcontext())
        begin = time.perf_counter()
        found, found_gradients = run(), gradients(train, teacher)
        first[name], forward[name], backward[name] = time.perf_counter() - begin, run, train
        if expected is None:
            expected, expected_gradients = found, found_gradients
        boxes, actions = difference(found, expected)
        distance = float((found_gradients - expected_gradients).norm() / expected_gradients.norm())
        rows.append(
            {
                "setting": setting.name,
                "mode": name,
                "error_boxes": boxes,
                "error_actions": actions,
                "error_gradients": distance,
            }
        )
    timed = {
        kind: timed_in_turn(steps, rounds=rounds, warmup=0, synchronize=synchronizer(device))
        for kind, steps in (("forward", forward), ("training", backward))
    }
    for row in rows:
        row["first_call_s"] = first[row["mode"]]
        for kind, measured in timed.items():
            row[f"{kind}_ratio"] = row_ratio(measured, row["mode"], rows[0]["mode"])
    return rows


def measure(part: str, device: torch.device, side: int, rounds: int) -> list[dict[str, Any]]:
    """The rows of one part."""
    threads = torch.get_num_threads()
    if part == "forward":
        rows = [measure_forward(setting, device, side, rounds) for setting in SETTINGS]
        for setting, row in zip(SETTINGS, rows, strict=True):
            for work in ("published", "ours"):
                row[f"{work}_mib"] = peak_memory_alone(threads, work, setting, str(device), side)
    elif part == "training":
        rows = measure_training(device, side, rounds)
        by_name = {setting.name: setting for setting in SETTINGS}
        for row in rows:
            setting = by_name[row["setting"]]
            row["mib"] = peak_memory_alone(threads, "training", setting, str(device), side, row["recompute"])
    else:
        rows = measure_modes(part, SETTINGS[1], device, side, rounds)
    return rows


if __name__ == "__main__":
    main(__doc__, HEADER, PARTS, measure, side=SIDE, rounds=5, out="results/pages/evad_speed.md")
