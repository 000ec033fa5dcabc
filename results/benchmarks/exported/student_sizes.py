"""Students of every size beside the dense ViT-B teacher: in PyTorch, and exported in float32 and int8."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from tqdm import tqdm

from lightning_modules.commands.export_graph import export_graph
from lightning_modules.commands.export_parity import load, moving_blobs
from lightning_modules.commands.quantization import Quantizer
from lightning_modules.networks.detection.export_graphs import FRAMES, NEXT, StepGraph
from lightning_modules.networks.layers.linear import linear
from lightning_modules.networks.layers.prepared import prepare_for_inference
from lightning_modules.networks.students.detector import StreamingDetector
from lightning_modules.runtimes.sessions import Run, installed, open_session
from results.benchmarks import student_networks
from results.benchmarks.evad_speed import matrix_product
from results.benchmarks.page import Row, row_ratio, timed_in_turn

TEACHER = "evad_vit_b, dense"
STUDENTS = ("dsta_vit_b", "tsa_vit_b", "dsta_vit_s", "tsa_vit_s", "dsta_vit_ti")
"""Files of ``configs/networks``."""
PYTORCH, PRODUCT = "PyTorch, float32", "product of matrices"
NAMES = {"onnx": "onnxruntime", "openvino": "OpenVINO"}


@torch.inference_mode()
def measure_sizes(device: torch.device, side: int, rounds: int, students: Sequence[str] = STUDENTS) -> list[Row]:
    """The teacher's clip and a step of each student in every form, all in turn, on the CPU."""
    cpu = torch.device("cpu")
    teacher = student_networks.teacher(1.0, cpu)
    steps = {(TEACHER, PYTORCH): student_networks.clip_step(teacher, side, cpu)}
    product, multiply_adds = matrix_product(cpu, torch.float32, linear)
    gigaflops = {(TEACHER, PYTORCH): student_networks.gflops(teacher, side, cpu)[0]}
    sizes: dict[tuple[str, str], float] = {}
    with TemporaryDirectory() as folder:
        for name in tqdm(students, desc="exporting", unit="student", leave=False):
            network = student_networks.configured(name, {}).eval()
            files = exported(network, Path(folder) / name, side)
            prepare_for_inference(network)
            start = network.initial_state(1, (side, side))
            steps[name, PYTORCH] = student_networks.frame_step(network, start, side, cpu)
            gigaflops[name, PYTORCH] = student_networks.gflops(network, side, cpu)[0]
            graph = StepGraph(network, (side, side), "person_x_action")
            for precision, path in files.items():
                for runtime in installed():
                    form = name, f"{NAMES[runtime]}, {precision}"
                    steps[form] = ExportedStream(open_session(path, runtime), graph, side).step
                    sizes[form] = path.stat().st_size / 1e6
        named = {", ".join(form): step for form, step in steps.items()} | {PRODUCT: product}
        timed = timed_in_turn(named, rounds=rounds, warmup=1, synchronize=lambda: None, untimed=1)

    def share(form: tuple[str, str]) -> float | None:
        """Part of a step's time that its multiply-adds would take in one large product."""
        if form not in gigaflops:
            return None
        return gigaflops[form] * 1e9 / multiply_adds / row_ratio(timed, ", ".join(form), PRODUCT)

    return [
        {
            "name": name,
            "form": form,
            "ms": timed.latencies[f"{name}, {form}"].p50_ms,
            "faster": 1 / row_ratio(timed, f"{name}, {form}", f"{TEACHER}, {PYTORCH}"),
            "limit_share": share((name, form)),
            "product_gflops": 2e-6 * multiply_adds / timed.latencies[PRODUCT].p50_ms,
            "megabytes": sizes.get((name, form)),
        }
        for name, form in steps
    ]


@torch.no_grad()
def exported(network: StreamingDetector, path: Path, side: int) -> dict[str, Path]:
    """Files of a step in float32 and int8.

    Differences are not bounded: random weights score proposals so similarly that rounding decides which are chosen.
    """
    graph, blobs = StepGraph(network, (side, side), "person_x_action"), moving_blobs(2, (side, side))
    names = [str(number) for number in range(network.num_classes)]
    made = export_graph(graph, path, blobs, names, steps=1, box_tolerance=math.inf, score_tolerance=math.inf)
    int8 = path.with_name(f"{path.name}.int8.onnx")
    Quantizer("int8").write(made.path, int8, graph, load(made.path), 1)
    return {"float32": made.path, "int8": int8}


class ExportedStream:
    """A stream of noise through an exported graph, 64 frames over and over."""

    def __init__(self, run: Run, graph: StepGraph, side: int) -> None:
        self.run, self.number = run, 0
        self.frames = np.random.default_rng(1).integers(0, 256, (64, 1, side, side, 3), dtype=np.uint8)
        self.state = {name: value.numpy() for name, value in graph.initial_state(1).items()}

    def step(self) -> dict[str, np.ndarray]:
        """The next frame from pixels to decoded detections, from the state that the one before it left."""
        outputs = self.run({FRAMES: self.frames[self.number % 64], **self.state})
        self.state = {name: outputs[NEXT + name] for name in self.state}
        self.number += 1
        return outputs
