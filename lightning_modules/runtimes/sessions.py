"""Runtimes for ONNX files: which are installed, and how each opens a file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from datamodules.errors import UserError

Runtime = Literal["onnx", "openvino"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
PACKAGES: dict[Runtime, str] = {"onnx": "onnxruntime", "openvino": "openvino"}
EXTRAS: dict[Runtime, str] = {"onnx": "export", "openvino": "openvino"}
"""Command that brings a package: ``pip install 'onlooker[export]'``."""

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
"""One call of a graph: arrays by the names of its inputs -> arrays by the names of its outputs."""


def installed() -> tuple[Runtime, ...]:
    """Return the runtimes whose packages are there."""
    return tuple(runtime for runtime in RUNTIMES if importlib.util.find_spec(PACKAGES[runtime]) is not None)


def require_installed(runtime: Runtime) -> None:
    """Refuse a runtime whose package is missing.

    Raises:
        UserError: with the command that brings it.
    """
    if runtime not in RUNTIMES:
        raise UserError(f"runtime must be one of {', '.join(RUNTIMES)}, got {runtime!r}")
    if runtime not in installed():
        raise UserError(
            f"runtime {runtime} needs {PACKAGES[runtime]}",
            remedy=f"pip install 'onlooker[{EXTRAS[runtime]}]' brings it",
        )


def open_session(path: Path, runtime: Runtime = "onnx") -> Run:
    """Open an ONNX file on the CPU, ready to run on as many threads as PyTorch has.

    Raises:
        UserError: the runtime is not installed, or cannot read the file.
    """
    require_installed(runtime)
    if not path.is_file():
        raise UserError("no such file", where=path)
    return _onnxruntime(path) if runtime == "onnx" else _openvino(path)


def _onnxruntime(path: Path) -> Run:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Waiting threads would burn the cores that PyTorch computes on in between.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors; hints about its own optimisations are no user's business
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except (errors.InvalidProtobuf, errors.InvalidGraph, errors.NoSuchFile, errors.NotImplemented) as error:
        raise UserError(f"onnxruntime cannot read it: {_reason(error)}", where=path) from error
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, dict(inputs)), strict=True))


def _openvino(path: Path) -> Run:
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        # On processors with bf16 it would round to that by itself.
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        compiled = core.compile_model(str(path), "CPU", settings)
    except RuntimeError as error:
        raise UserError(f"openvino cannot read it: {_reason(error)}", where=path) from error
    request, names = compiled.create_infer_request(), [output.any_name for output in compiled.outputs]

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = request.infer(dict(inputs))
        # Copies: the next call writes over what this one returned.
        return {name: np.array(found[number]) for number, name in enumerate(names)}

    return run


def _reason(error: Exception) -> str:
    """The last line of a message: those before it say where in the runtime's own source it was raised."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
