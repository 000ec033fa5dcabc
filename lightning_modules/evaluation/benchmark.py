"""The measured unit of an experiment: one call of its network, and one step from pixels to decoded predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

Step = Callable[[], object]
"""One timed unit of work; every call costs the same."""


class FrameSize(NamedTuple):
    """Size of the frames that a detector is measured on: heights and widths in pixels."""

    padded: tuple[int, int]
    image: tuple[int, int]
    """Size before padding."""


@dataclass(frozen=True)
class Benchmark:
    """One call of a network at batch 1, on the module's device and in the run's precision.

    Only the first process of a run is asked for it, so making it must not use collectives.
    """

    network: nn.Module
    """Operations and parameters are counted in it."""
    inputs: tuple[Any, ...]
    """Arguments of one call of ``network``, for the count of operations."""
    unit: str
    """The word for that call in tables: ``clip``, ``frame``, ``window of 48 frames``."""
    step: Step
    """Call from normalised pixels to decoded predictions, which is timed."""
    frame: tuple[int, int] | None = None
    """Height and width of a detector's frames in pixels, padding included; None of other networks."""
    new_frames: int = 1
    """Sampled frames that one step adds: 1 for a stream and for a sliding window, more for a window as a whole."""
    delay: int | None = None
    """Sampled frames after a frame that its prediction waits for; None where a window is predicted as a whole."""
    state: Any = None
    """State of one stream, nested tensors; None for a network without one."""
    reference: Step | None = None
    """The step that the speed-up is relative to, timed in turn: a student's teacher on one full clip."""
    published_gflops: float | None = None
    """Operations of the published implementation for the same call, where they are known."""
