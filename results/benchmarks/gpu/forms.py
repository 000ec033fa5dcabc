"""Forms of a detector's step on a GPU: arithmetic, compilation, and capture as a CUDA graph with the state in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_modules.command_line.precision import computes_bfloat16
from lightning_modules.networks.detection.evad import EvadTeacher
from lightning_modules.networks.detection.outputs import Detections
from lightning_modules.networks.streaming import select_lanes
from lightning_modules.networks.students.detector import StreamingDetector

Output = TypeVar("Output")
WARMUP = 3
"""Calls before a capture, on a stream of their own: libraries choose kernels and memory in the first ones."""


class Form(NamedTuple):
    """One way to compute a step."""

    name: str
    tf32: bool = False
    """True if products and convolutions of float32 tensors may round their inputs to TF32."""
    bf16: bool = False
    """bf16 autocast."""
    separable: bool = True
    """RoIAlign as products; else by torchvision's operator, for which each level waits for the number of its boxes."""
    graph: bool = False
    compiled: bool = False

    def runs_on(self, device: torch.device) -> bool:
        """Return whether a device supports it: CUDA graphs and TF32 are a GPU's, bfloat16 is not every processor's."""
        is_gpu = device.type == "cuda"
        return (is_gpu or not (self.graph or self.tf32)) and (not self.bf16 or computes_bfloat16(device))

    @contextmanager
    def arithmetic(self, device: torch.device) -> Iterator[None]:
        """Compute in this form's precision inside the block."""
        set_tf32(self.tf32)
        # Casts of weights that a capture has made must not be found again outside of it.
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=not self.graph):
            yield


def set_tf32(allowed: bool) -> None:
    """Allow TF32 in products and convolutions, or forbid it; torch allows it in convolutions by itself."""
    # For all backends at once, as the command line does: torch refuses to tell the precision where they differ.
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


REFERENCE = Form("float32")
FORMS = (
    REFERENCE,
    Form("float32, torchvision's RoIAlign", separable=False),
    Form("TF32", tf32=True),
    Form("bf16", bf16=True),
    Form("float32, CUDA graph", graph=True),
    Form("TF32, CUDA graph", tf32=True, graph=True),
    Form("bf16, CUDA graph", bf16=True, graph=True),
)
LANE_FORMS = tuple(form for form in FORMS if form.name in ("float32", "bf16", "bf16, CUDA graph"))
COMPILED_FORMS = {
    name: (
        Form(f"{name}, compiled", compiled=True, **settings),
        Form(f"{name}, compiled, CUDA graph", compiled=True, graph=True, **settings),
    )
    for name, settings in {"bf16": {"bf16": True}, "TF32": {"tf32": True}, "float32": {}}.items()
}
"""Arithmetic -> forms of one compilation."""


class Captured(Generic[Output]):
    """A call captured as a CUDA graph: each replay reads and writes the memory of the capture.

    The call must not wait for the GPU, and must take its inputs from tensors that stay where they are. What it returns
    is overwritten by the next replay.
    """

    def __init__(self, call: Callable[[], Output], device: torch.device) -> None:
        main, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        side.wait_stream(main)
        with torch.cuda.stream(side):
            for _ in range(WARMUP):
                call()
        main.wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = call()

    def __call__(self) -> Output:
        self.graph.replay()
        return self.output


class Runner:
    """A detector that runs again and again on the same tensors: put a clip or frames into ``inputs``, then ``run()``.

    Args:
        network: in eval mode, on its device.
        form: how it runs.
        side: of the frames, in pixels.
        lanes: streams side by side, or clips.
        call: compiled form of the network; itself by default.
    """

    def __init__(
        self, network: nn.Module, form: Form, side: int, lanes: int = 1, call: Callable[..., Any] | None = None
    ) -> None:
        self.network, self.form, self.call = network, form, call or network
        device = next(network.parameters()).device
        self.device = device
        self.sizes = torch.tensor([[side, side]] * lanes, device=device)
        self.begins = torch.ones(lanes, dtype=torch.bool, device=device)
        """Lanes whose stream begins with these frames."""
        self.holds = torch.zeros(lanes, dtype=torch.bool, device=device)
        """Lanes that have no frame now: their state stays."""
        self.state: Any = None
        if isinstance(network, StreamingDetector):
            self.inputs = torch.zeros(lanes, 1, 3, side, side, device=device)
            self.fresh = network.initial_state(lanes, (side, side), device=device)
            self.state = network.initial_state(lanes, (side, side), device=device)
            advance = self._step
        elif isinstance(network, EvadTeacher):
            self.inputs = torch.zeros(lanes, 3, network.num_frames, side, side, device=device)
            advance = self._clip
        else:
            raise TypeError(f"a detector is EvadTeacher or StreamingDetector, got {type(network).__name__}")
        self.run: Callable[[], Detections] = Captured(advance, device) if form.graph else advance
        self.begins.zero_()

    @property
    def is_stream(self) -> bool:
        return self.state is not None

    def _clip(self) -> Detections:
        self._choose_kernel()
        with self.form.arithmetic(self.device):
            return self.call(self.inputs, self.sizes)

    def _step(self) -> Detections:
        self._choose_kernel()
        with self.form.arithmetic(self.device):
            before = select_lanes(self.begins, self.fresh, self.state)
            detections, after = self.call(self.inputs, before, self.sizes)
            if len(self.holds) > 1:  # a stream alone that has no frame makes no step
                after = select_lanes(self.holds, self.state, after)
        if self.form.graph:  # each replay begins with the state that the one before it has left in the same tensors
            for old, new in zip(tree_leaves(self.state), tree_leaves(after), strict=True):
                old.copy_(new)
        else:
            self.state = after
        return Detections(*(part[:, 0] for part in detections))

    def _choose_kernel(self) -> None:
        self.network.head.localizer.roi_kernel = "separable" if self.form.separable else "torchvision"

    def outputs(self, material: Tensor) -> list[Detections]:
        """Detections in float32 of consecutive clips or frames (N, lanes, ...), from the start of each stream."""
        found = []
        for number, inputs in enumerate(material):
            self.inputs.copy_(inputs)
            self.begins.fill_(number == 0)
            found.append(Detections(*(part.float().clone() for part in self.run())))
        self.begins.zero_()
        return found
