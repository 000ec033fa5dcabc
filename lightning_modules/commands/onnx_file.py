"""Write a captured graph as an ONNX file, in the version of the operators that is asked for."""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from datamodules.errors import UserError

from ..networks.detection.export_graphs import ExportGraph

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSETS = range(18, 26)
"""Versions of the operators that PyTorch can write: it translates to 18, and what it has converts upwards only."""
LARGEST_FILE = 2**31 - 2**24
"""An ONNX file ends before 2 GiB: larger weights go into a second file."""


def check_onnx(opset: int) -> None:
    """Refuse at once what would fail after the graph has been captured.

    Raises:
        UserError: packages are missing, or there is no such version of the operators.
    """
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"format=onnx needs {', '.join(missing)}", remedy="pip install '.[export]' brings them")
    if opset not in OPSETS:
        raise UserError(f"opset {opset} cannot be written", remedy=f"choose one of {OPSETS.start} to {OPSETS.stop - 1}")


def onnx_writer(program: ExportedProgram, graph: ExportGraph, opset: int) -> Callable[[Path, Mapping[str, Any]], None]:
    """Translate a captured graph; return what writes it with metadata (values other than text as JSON).

    Raises:
        UserError: this graph cannot be converted to the version of the operators.
    """
    with torch.no_grad(), warnings.catch_warnings(), _quiet("onnxscript", "onnx_ir"):
        warnings.filterwarnings("ignore", message="_check_is_size will be removed")  # from inside PyTorch
        program = program.run_decompositions({torch.ops.aten.scaled_dot_product_attention.default: _plain_attention})
        onnx = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=list(graph.input_names),
            output_names=list(graph.output_names),
            verbose=False,
        )
    # The exporter keeps the version that it has where it cannot convert.
    if (got := onnx.model.opset_imports.get("")) != opset:
        raise UserError(f"this network was translated to opset {got}, not to {opset}", remedy=f"choose opset {got}")
    batch = onnx.model.graph.inputs[0].shape[0]
    if not isinstance(batch, int):
        onnx.rename_axes({batch: "batch"})
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())

    def write(path: Path, metadata: Mapping[str, Any]) -> None:
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
        onnx.model.metadata_props.update(texts)
        onnx.save(path, external_data=size > LARGEST_FILE)

    return write


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Keep what these packages say of their optimisations off the screen."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def opset_of(path: Path) -> int:
    """Return the version of the operators that an ONNX file names."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    (opset,) = (entry.version for entry in model.opset_import if not entry.domain)
    return opset


def _plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention in products and a softmax: PyTorch's own translation to ONNX knows tensors of four axes only."""
    if dropout_p or is_causal or enable_gqa:
        raise NotImplementedError("attention with dropout, a causal mask or grouped queries is not translated to ONNX")
    scores = query * (query.shape[-1] ** -0.5 if scale is None else scale) @ key.transpose(-2, -1)
    if attn_mask is not None:
        is_boolean = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if is_boolean else scores + attn_mask
    return scores.softmax(-1) @ value
