"""A stem on many frames: in OpenVINO where it is installed, in PyTorch otherwise."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from datamodules.errors import UserError

from ..networks.layers.pixels import normalise_frames
from ..networks.layers.stem import ConvolutionalStem

StemRuntime = Literal["auto", "openvino", "torch"]


class _Maps(nn.Module):
    def __init__(self, stem: ConvolutionalStem) -> None:
        super().__init__()
        self.stem = stem

    def forward(self, frames: Tensor) -> Tensor:
        return self.stem.maps(frames)


def stem_runner(
    stem: ConvolutionalStem, runtime: StemRuntime = "auto", num_threads: int | None = None
) -> Callable[[np.ndarray, tuple[int, int]], np.ndarray]:
    """Return what makes maps (N, C, h, w) of padded uint8 frames (N, 3, H, W) and their size before padding.

    In float32: the two agree to rounding. On one thread of an EPYC with AVX-512, EfficientNet-Lite0 takes 20 ms of a
    frame of 256 x 320 in OpenVINO and 55 ms in PyTorch.

    Args:
        stem: in any mode.
        runtime: ``auto`` takes OpenVINO where it is installed.
        num_threads: None for as many as there are processors.

    Raises:
        UserError: OpenVINO is asked for and not installed.
    """
    installed = importlib.util.find_spec("openvino") is not None
    if runtime == "openvino" and not installed:
        raise UserError("OpenVINO is not installed", "runtime", "pip install 'onlooker[openvino]', or take torch")
    stem = stem.eval().cpu()
    if runtime == "torch" or not installed:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        compute = _in_torch(stem)
    else:
        compute = _in_openvino(stem, num_threads or len(os.sched_getaffinity(0)))

    def run(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        frames = normalise_frames(torch.from_numpy(pixels)[None], torch.tensor([size]))[0]
        return compute(frames)

    return run


def _in_torch(stem: ConvolutionalStem) -> Callable[[Tensor], np.ndarray]:
    @torch.inference_mode()
    def compute(frames: Tensor) -> np.ndarray:
        return stem.maps(frames.contiguous(memory_format=torch.channels_last)).numpy()

    return compute


def _in_openvino(stem: ConvolutionalStem, num_threads: int) -> Callable[[Tensor], np.ndarray]:
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": num_threads}
    compiled: dict[torch.Size, Any] = {}

    def compute(frames: Tensor) -> np.ndarray:
        size = frames.shape[1:]
        if size not in compiled:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of tracing, which OpenVINO does: sizes are meant to be constants
                # Traced with one frame: PyTorch runs it a few times.
                model = openvino.convert_model(_Maps(stem), example_input=frames[:1], input=[-1, *size])
            compiled[size] = openvino.compile_model(model, "CPU", hints)
        return compiled[size](frames.numpy())[0]

    return compute
