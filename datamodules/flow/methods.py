"""Methods of optical flow: how far each pixel moves from one sampled frame to the next.

A vector lies on the pixel of the earlier frame that it moves away from. With ``flow[:, y, x]`` = (dx, dy), the point
(x, y) of the earlier frame is at (x + dx, y + dy) in the later one. No method looks further ahead than the later frame,
so flow can be computed as frames arrive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args
from urllib.error import URLError

import numpy as np

from datamodules.errors import UserError
from datamodules.tensor_file import read_tensor_file

if TYPE_CHECKING:
    from torch import nn

MethodName = Literal["dis", "tvl1", "raft"]
Preset = Literal["ultrafast", "fast", "medium"]
Variant = Literal["small", "large"]
RAFT_MULTIPLE, RAFT_LEAST = 8, 128
"""RAFT's features are an eighth of the frame and are halved three times more."""


class OpticalFlow:
    """Method that computes the motion between frames. Holds settings; cheap to send to another process."""

    name: ClassVar[str]
    device: str = "cpu"
    """Device that computes it; on the CPU several processes may compute at once, each with one thread."""

    def between(self, frames: np.ndarray) -> np.ndarray:
        """Flow from each frame to the next: (T + 1, h, w, 3) uint8 RGB -> (T, 2, h, w) float32 pixels, x then y."""
        raise NotImplementedError

    def of_steps(self, frames: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
        """The flow that leads to each frame: (T, h, w, 3) uint8 RGB -> (T, 2, h, w) float32 pixels.

        Args:
            frames: in order.
            before: (h, w, 3), the frame before them. Without one the first has none either, and its flow is zero.
        """
        if before is not None:
            return self.between(np.concatenate([before[None], frames]))
        still = np.zeros((1, 2, *frames.shape[1:3]), np.float32)
        return np.concatenate([still, self.between(frames)])

    def identity(self) -> str:
        """The method and every setting that its results depend on."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Load what is needed, so that its absence is reported before any frame is read."""

    def use_one_thread(self) -> None:
        """Called in a process that has one core to itself."""


class DisFlow(OpticalFlow):
    """Dense inverse search (Kroeger et al., ECCV 2016, https://arxiv.org/abs/1603.03590), with OpenCV.

    Args:
        preset: ``medium`` computes at half the size and refines, ``fast`` and ``ultrafast`` at a quarter.
    """

    name = "dis"

    def __init__(self, preset: Preset = "medium") -> None:
        if preset not in get_args(Preset):
            raise ValueError(f"preset must be one of {get_args(Preset)}, got {preset!r}")
        self.preset = preset

    def between(self, frames: np.ndarray) -> np.ndarray:
        import cv2

        return _pair_by_pair(cv2.DISOpticalFlow_create(get_args(Preset).index(self.preset)), frames)

    def identity(self) -> str:
        return f"{self.name}|{self.preset}"


class Tvl1Flow(OpticalFlow):
    """TV-L1 (Zach et al., DAGM 2007), with OpenCV's contrib modules: what two-stream action recognition was trained on.

    Args:
        num_scales: pyramid levels.
        num_warps: warpings a level.
        epsilon: change at which iteration stops; less is slower.
        attachment: weight of the brightness term; less gives smoother flow.
    """

    name = "tvl1"

    def __init__(
        self, num_scales: int = 5, num_warps: int = 5, epsilon: float = 0.01, attachment: float = 0.15
    ) -> None:
        self.num_scales, self.num_warps = num_scales, num_warps
        self.epsilon, self.attachment = epsilon, attachment

    def between(self, frames: np.ndarray) -> np.ndarray:
        return _pair_by_pair(self._create(), frames)

    def identity(self) -> str:
        return f"{self.name}|{self.num_scales}|{self.num_warps}|{self.epsilon}|{self.attachment}"

    def prepare(self) -> None:
        self._create()

    def _create(self) -> Any:
        import cv2

        if not hasattr(cv2, "optflow"):
            raise ModuleNotFoundError(
                "TV-L1 is in OpenCV's contrib modules, which replace the plain package: pip uninstall -y "
                "opencv-python opencv-python-headless && pip install opencv-contrib-python-headless; or use DisFlow"
            )
        return cv2.optflow.DualTVL1OpticalFlow_create(
            lambda_=self.attachment, nscales=self.num_scales, warps=self.num_warps, epsilon=self.epsilon
        )


class RaftFlow(OpticalFlow):
    """RAFT (Teed and Deng, ECCV 2020, https://arxiv.org/abs/2003.12039), with torchvision.

    Args:
        variant: size of the network.
        weights: file of a state dict, or the name of torchvision's weights of this variant, which it downloads.
        num_updates: iterations.
        batch_size: pairs of frames at a time.
        device: such as ``cpu`` or ``cuda``.
    """

    name = "raft"

    def __init__(
        self,
        variant: Variant = "small",
        weights: str | Path = "DEFAULT",
        num_updates: int = 12,
        batch_size: int = 8,
        device: str = "cpu",
    ) -> None:
        if variant not in get_args(Variant):
            raise ValueError(f"variant must be one of {get_args(Variant)}, got {variant!r}")
        if num_updates < 1 or batch_size < 1:
            raise ValueError(f"num_updates and batch_size must be at least 1, got {num_updates} and {batch_size}")
        self.variant, self.weights = variant, weights
        self.num_updates, self.batch_size = num_updates, batch_size
        self.device = device
        self._network: nn.Module | None = None
        self._weights_name: str | None = None

    def between(self, frames: np.ndarray) -> np.ndarray:
        import torch
        from torch.nn.functional import pad

        network = self._loaded()
        height, width = frames.shape[1:3]
        rows, columns = _raft_padding(height), _raft_padding(width)
        flow = np.empty((len(frames) - 1, 2, height, width), np.float32)
        for start in range(0, len(flow), self.batch_size):
            clip = torch.from_numpy(frames[start : start + self.batch_size + 1]).to(self.device)
            clip = clip.permute(0, 3, 1, 2).float() / 127.5 - 1
            clip = pad(clip, (*columns, *rows), mode="replicate")
            with torch.inference_mode():
                found = network(clip[:-1], clip[1:], num_flow_updates=self.num_updates)[-1]
            inside = found[:, :, rows[0] : rows[0] + height, columns[0] : columns[0] + width]
            flow[start : start + self.batch_size] = inside.float().cpu().numpy()
        return flow

    def identity(self) -> str:
        if self._weights_name is None:
            path = Path(self.weights)
            is_file = path.is_file()
            self._weights_name = hashlib.sha256(path.read_bytes()).hexdigest() if is_file else str(self._published())
        return f"{self.name}|{self.variant}|{self._weights_name}|{self.num_updates}"

    def prepare(self) -> None:
        self._loaded()

    def use_one_thread(self) -> None:
        import torch

        torch.set_num_threads(1)

    def _loaded(self) -> nn.Module:
        if self._network is None:
            from torchvision.models import get_model

            if Path(self.weights).is_file():
                state = read_tensor_file(self.weights)
            else:
                published = self._published()
                try:
                    state = published.get_state_dict(progress=False)
                except URLError as error:
                    raise UserError(
                        f"cannot download {published.url} ({error.reason})",
                        remedy="bring the file here and name it as weights",
                    ) from error
            network = get_model(f"raft_{self.variant}", weights=None)
            try:
                network.load_state_dict(state)
            except (RuntimeError, TypeError) as error:
                raise UserError(f"holds no weights of torchvision's raft_{self.variant}", where=self.weights) from error
            self._network = network.eval().requires_grad_(False).to(self.device)
        return self._network

    def _published(self) -> Any:
        """torchvision's weights of that name."""
        from torchvision.models import get_model_weights

        known = get_model_weights(f"raft_{self.variant}")
        if str(self.weights) not in known.__members__:
            raise UserError(
                f"weights of RAFT: {self.weights} is neither a file nor one of {', '.join(known.__members__)}"
            )
        return known[str(self.weights)]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_network": None}


def flow_method(method: MethodName | OpticalFlow) -> OpticalFlow:
    """A method, or that of a name with its default settings."""
    if isinstance(method, OpticalFlow):
        return method
    known = {kind.name: kind for kind in (DisFlow, Tvl1Flow, RaftFlow)}
    if method not in known:
        raise UserError(f"no optical flow is called {method!r}; choose one of {', '.join(known)}")
    return known[method]()


def _pair_by_pair(method: Any, frames: np.ndarray) -> np.ndarray:
    """Flow with one of OpenCV's methods, which take grey frames."""
    import cv2

    flow = np.empty((len(frames) - 1, 2, *frames.shape[1:3]), np.float32)
    with _one_opencv_thread():
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
        for index in range(len(flow)):
            # None: from nothing, not from the last pair's result, so that flow does not depend on where a chunk begins.
            flow[index] = method.calc(grey[index], grey[index + 1], None).transpose(2, 0, 1)
    return flow


@contextmanager
def _one_opencv_thread() -> Iterator[None]:
    """DIS cuts the frame into as many stripes as there are threads, and gives another flow for another number."""
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _raft_padding(length: int) -> tuple[int, int]:
    """Pixels to add before and after a side.

    >>> _raft_padding(128), _raft_padding(131), _raft_padding(96)
    ((0, 0), (2, 3), (16, 16))
    """
    missing = max(RAFT_LEAST, -(-length // RAFT_MULTIPLE) * RAFT_MULTIPLE) - length
    return missing // 2, missing - missing // 2
