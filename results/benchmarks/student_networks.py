"""The networks whose speed is measured, at their real size with random weights, and one step of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from callbacks.measures.flops import count_gflops
from lightning_modules.networks.detection.evad import EvadTeacher
from lightning_modules.networks.detection.outputs import Detections, decode_detections
from lightning_modules.networks.layers.prepared import prepare_for_inference
from lightning_modules.networks.students.detector import StreamingDetector
from lightning_modules.networks.weights.configured import load_network, network_of

FRAMES = 16
ROOT = Path(__file__).parents[2]
NETWORKS = ROOT / "configs" / "networks"
NUM_CLASSES = {"tiny": 10, "vit_b": 80, "vit_s": 80, "vit_ti": 80}
"""Classes of Puppets and of AVA, by the size of a network."""
KEEP_LAYERS = (3, 6, 9)


def normalised_frames(count: int, side: int, device: torch.device, lanes: int = 1) -> Tensor:
    """(lanes, count, 3, side, side) random pixels."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(lanes, count, 3, side, side, generator=generator).to(device)


def configured(name: str, changes: Mapping[str, Any]) -> nn.Module:
    """The network of a file in ``configs/networks`` with changes: place -> value."""
    # A word in quotation marks would be taken for a word that has them.
    texts = {place: value if isinstance(value, str) else json.dumps(value) for place, value in changes.items()}
    arguments = [f"{place}={text}" for place, text in texts.items()]
    num_classes = next(classes for size, classes in NUM_CLASSES.items() if name.endswith(f"_{size}"))
    return network_of(NETWORKS / f"{name}.yaml", num_classes, arguments)


def shipped(name: str) -> nn.Module:
    """Return one of the demo's trained networks."""
    return load_network(ROOT / "results" / "weights" / f"{name}.pt")[0]


def teacher(keep_rate: float, device: torch.device) -> EvadTeacher:
    rates = dict.fromkeys(KEEP_LAYERS, keep_rate)
    changes = {"backbone.size.num_frames": FRAMES, "backbone.keep_rates": rates}
    network = configured("evad_vit_b", changes).eval().to(device)
    prepare_for_inference(network)
    return network


def student(
    temporal: str,
    device: torch.device,
    trunk: StreamingDetector | None = None,
    changes: Mapping[str, Any] | None = None,
) -> StreamingDetector:
    """The ViT-B student as configured, but for ``changes``; its trunk may be another's, which saves memory."""
    network = configured(f"{temporal}_vit_b", changes or {}).eval().to(device)
    if trunk is not None:
        network.trunk = trunk.trunk
    prepare_for_inference(network)
    return network


def gflops(network: nn.Module, side: int, device: torch.device) -> tuple[float, dict[str, float]]:
    """GFLOPs of a clip or a frame, and those of every sub-module."""
    sizes = torch.tensor([[side, side]], device=device)
    if isinstance(network, EvadTeacher):
        inputs: tuple = (normalised_frames(FRAMES, side, device).transpose(1, 2), sizes)
    else:
        state = network.initial_state(1, (side, side), device=device)
        inputs = (normalised_frames(1, side, device), state, sizes)
    count = count_gflops(network, *inputs)
    if count.uncounted:
        raise RuntimeError(f"nothing counts {', '.join(count.uncounted)}")
    return count.gflops, count.by_module


def clip_step(network: EvadTeacher, side: int, device: torch.device) -> Callable[[], object]:
    """Return a call from one clip to decoded detections."""
    clip = normalised_frames(FRAMES, side, device).transpose(1, 2)
    sizes = torch.tensor([[side, side]], device=device)
    return lambda: decode_detections(network(clip, sizes), sizes, sizes)


def frame_step(
    network: Callable, initial: Any, side: int, device: torch.device, lanes: int = 1
) -> Callable[[], object]:
    """The next frame of a stream, from the state that the one before it left, to decoded detections."""
    frames = normalised_frames(1, side, device, lanes)
    sizes, state = torch.tensor([[side, side]] * lanes, device=device), initial

    def step() -> list:
        nonlocal state
        detections, state = network(frames, state, sizes)
        return decode_detections(Detections(*(part[:, 0] for part in detections)), sizes, sizes)

    return step
