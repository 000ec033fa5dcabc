"""An exported step or clip behind the interface of the network that it was made of."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from datamodules.errors import UserError

from ..networks.detection.export_graphs import DETECTIONS, FRAMES, NEXT
from ..networks.detection.outputs import Detections, ScoreRule
from ..networks.layers.pixels import MEAN, STD
from .sessions import Run

LEAST = 1e-7
"""Scores nearer to 0 or 1 have no finite logit in float32."""


class ExportedNetwork(nn.Module):
    """Base of exported graphs that stand in for a network.

    Frames come normalised and padded, as to every network, and logits go out: the file has both steps inside, so they
    are undone here. Each loses less than rounding.

    Args:
        run: one call of the graph.
        num_classes: K.
        image_size: height and width of the frames before padding, the only ones that the graph takes.
        score: how its scores were made.
    """

    def __init__(self, run: Run, num_classes: int, image_size: tuple[int, int], score: ScoreRule) -> None:
        super().__init__()
        self.run, self.num_classes, self.image_size, self.score = run, num_classes, image_size, score

    def pixels(self, frames: Tensor, image_sizes: Tensor) -> np.ndarray:
        """Normalised (B, T, 3, H', W') -> uint8 (B, T, H, W, 3) as they were read.

        Raises:
            UserError: frames of another size than the graph takes.
        """
        wrong = [size for size in image_sizes.tolist() if size != list(self.image_size)]
        if wrong:
            (height, width), (rows, columns) = wrong[0], self.image_size
            raise UserError(
                f"frames have {width}x{height} pixels, the exported network takes {columns}x{rows}",
                remedy=f"export it with --image_size=[{height},{width}], or --video of such a film",
            )
        height, width = self.image_size
        shown = (frames[..., :height, :width].float() * STD + MEAN) * 255
        return shown.round().clamp(0, 255).to(torch.uint8).movedim(-3, -1).cpu().numpy()

    def detections(self, outputs: Mapping[str, np.ndarray]) -> Detections:
        """Return boxes and scores of a call, (B, Q, ...), as boxes and logits."""
        boxes, persons, scores = (torch.from_numpy(outputs[name]) for name in DETECTIONS)
        if self.score == "person_x_action":
            scores = scores / persons[..., None].clamp(min=torch.finfo(persons.dtype).tiny)
        person_logits = torch.stack([_logit(persons), torch.zeros_like(persons)], dim=-1)
        return Detections(person_logits, boxes, _logit(scores))


class ExportedDetector(ExportedNetwork):
    """A student's exported step, called as a ``StreamingDetector``: chunks of any length, any number of lanes.

    Args:
        run, num_classes, image_size, score: see ``ExportedNetwork``.
        initial_state: of one stream, by the names of the inputs.
        look_ahead: delay of its predictions in frames.
        batch_size: lanes of a call; with 1 they are fed one by one. None for any number.
    """

    def __init__(
        self,
        run: Run,
        num_classes: int,
        image_size: tuple[int, int],
        score: ScoreRule,
        initial_state: Mapping[str, np.ndarray],
        look_ahead: int,
        batch_size: int | None = 1,
    ) -> None:
        super().__init__(run, num_classes, image_size, score)
        self.first = {name: torch.from_numpy(np.array(value)) for name, value in initial_state.items()}
        self.look_ahead, self.batch_size = look_ahead, batch_size

    def initial_state(
        self,
        batch_size: int,
        frame_size: tuple[int, int] | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> dict[str, Tensor]:
        """Return the state in which streams begin, by name; frames have one size and state one type only."""
        return {name: value.repeat_interleave(batch_size, dim=0).to(device) for name, value in self.first.items()}

    @staticmethod
    def pixel_size(frames: Tensor) -> tuple[int, int]:
        """Height and width of frames (B, T, 3, H, W)."""
        return frames.shape[-2], frames.shape[-1]

    def forward(
        self, frames: Tensor, state: dict[str, Tensor], image_sizes: Tensor
    ) -> tuple[Detections, dict[str, Tensor]]:
        """Normalised frames (B, T, 3, H', W') -> detections (B, T, Q, ...) and the state after the chunk."""
        lanes = len(frames)
        if self.batch_size not in (None, 1, lanes):
            raise UserError(
                f"the exported network takes {self.batch_size} streams a call, got {lanes}",
                remedy="export it with --dynamic_batch=true",
            )
        pixels, found = self.pixels(frames, image_sizes), []
        for time in range(frames.shape[1]):
            detections, state = self._step(pixels[:, time], state)
            found.append(detections)
        device = frames.device
        state = {name: value.to(device) for name, value in state.items()}
        return Detections(*(torch.stack(parts, dim=1).to(device) for parts in zip(*found, strict=True))), state

    def _step(self, frames: np.ndarray, state: dict[str, Tensor]) -> tuple[Detections, dict[str, Tensor]]:
        if self.batch_size != 1 or len(frames) == 1:
            outputs = self.run({FRAMES: frames, **{name: value.cpu().numpy() for name, value in state.items()}})
            return self.detections(outputs), {name: torch.from_numpy(outputs[NEXT + name]) for name in state}
        alone = [
            self._step(frames[lane : lane + 1], tree_map(lambda part, at=lane: part[at : at + 1], state))
            for lane in range(len(frames))
        ]
        joined = Detections(*(torch.cat(parts) for parts in zip(*(detections for detections, _ in alone), strict=True)))
        return joined, {name: torch.cat([after[name] for _, after in alone]) for name in state}


class ExportedClip(ExportedNetwork):
    """A teacher's exported clip, called as an ``EvadTeacher``; clips of a batch are fed one by one."""

    def forward(self, clips: Tensor, image_sizes: Tensor) -> Detections:
        """Normalised (B, 3, T, H', W') -> detections in the keyframes, (B, Q, ...)."""
        pixels = self.pixels(clips.transpose(1, 2), image_sizes)
        found = [self.detections(self.run({FRAMES: clip[None]})) for clip in pixels]
        return Detections(*(torch.cat(parts).to(clips.device) for parts in zip(*found, strict=True)))


def _logit(scores: Tensor) -> Tensor:
    # A comparison with NaN is false, so NaN stays.
    return torch.where(scores < LEAST, LEAST, torch.where(scores > 1 - LEAST, 1 - LEAST, scores)).logit()
