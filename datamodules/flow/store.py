"""Optical flow of the steps of videos, in step with their frames.

``FlowStore`` is what data sets read from; ``ComputedFlow`` computes every time, ``FlowCache`` (flow_cache.py) once.
Both give the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datamodules.errors import UserError
from datamodules.flow.methods import MethodName, OpticalFlow, flow_method
from datamodules.frames.store import FrameStore
from datamodules.video.picture_folder import Video


@dataclass(frozen=True)
class FlowSettings:
    """Settings of optical flow: its kind, and where it is kept.

    Args:
        method: what computes it: a name, or the class of a method with its settings.
        cache: folder of computed flow; None computes that of every window anew.
        cache_max_gib: what the cache may take.
        bound: largest component in pixels of the frames; what is larger is cut off.
        precision: distance in pixels between the values that components are rounded to.
        in_training_alone: evaluation and prediction do without, as an RGB detector that learned from motion can.
    """

    method: MethodName | OpticalFlow = "dis"
    cache: str | Path | None = "data/cache/flow"
    cache_max_gib: float = 64.0
    bound: float = 20.0
    precision: float = 1 / 16
    in_training_alone: bool = False


class FlowGrid:
    """Flow as whole multiples of ``precision``: off by half of it at most, and cut off at ``bound``.

    By default the error is at most 1/32 pixel, below that of any method. A compressed component takes about a quarter
    of a byte, half of what 1/64 pixel takes.
    """

    def __init__(self, bound: float, precision: float) -> None:
        if not (0 < precision <= bound and bound / precision < np.iinfo(np.int16).max):
            raise UserError(
                f"precision must be positive, and bound between precision and 32766 times that, got precision "
                f"{precision} and bound {bound}",
                where="flow",
            )
        self.precision = precision
        self.levels = round(bound / precision)
        self.dtype = np.dtype(np.int8 if self.levels <= np.iinfo(np.int8).max else np.int16)

    def to_integers(self, flow: np.ndarray) -> np.ndarray:
        return np.rint(flow / self.precision).clip(-self.levels, self.levels).astype(self.dtype)

    def to_pixels(self, integers: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """float32."""
        return np.multiply(integers, np.float32(self.precision), out=out, dtype=np.float32)

    def identity(self) -> str:
        return f"{self.levels}|{self.precision}"


class FlowStore:
    """Flow of any number of videos, of frames as a FrameStore gives them. Cheap to send to another process.

    Args:
        frames: the frames.
        settings: method and grid; nothing is kept here.
    """

    def __init__(self, frames: FrameStore, settings: FlowSettings) -> None:
        self.frames = frames
        self.method = flow_method(settings.method)
        self.grid = FlowGrid(settings.bound, settings.precision)

    def get(self, video: Video, steps: np.ndarray, start: int, stop: int) -> np.ndarray:
        """The flow that leads to steps ``start`` to ``stop``: (stop - start, 2, h, w) float32 pixels, x then y.

        Args:
            video: whose.
            steps: (N,) the frame that is shown at each step of the whole video.
            start, stop: the range; flow is zero at step 0.
        """
        raise NotImplementedError


class ComputedFlow(FlowStore):
    """Flow that is computed anew each time, for single passes over videos."""

    def get(self, video: Video, steps: np.ndarray, start: int, stop: int) -> np.ndarray:
        if start == 0:
            flow = self.method.of_steps(self.frames.get(video, steps[:stop]))
        else:
            flow = self.method.between(self.frames.get(video, steps[start - 1 : stop]))
        return self.grid.to_pixels(self.grid.to_integers(flow))
