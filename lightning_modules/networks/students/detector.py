"""The streaming detector: a causal trunk that sees one frame at a time, and the teacher's kind of head. The student."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..detection.head import DetectionHead, HeadFactory
from ..detection.localizer import most_person_like
from ..detection.outputs import Detections, DetectorOutputs
from ..layers.constants import constant
from ..layers.stem import pixel_size
from ..layers.trunk_size import TrunkSize
from ..streaming import StreamingModule
from .actor_queue import ActorQueue, QueueState
from .context_memory import ContextMemory, MemorySize, MemoryState
from .timing import Timing
from .trunk import EncodedFrames, StreamingTrunk, TrunkState


class DetectorState(NamedTuple):
    """State of a stream."""

    trunk: TrunkState
    memory: MemoryState
    """Tokens of past frames that the context decoder reads."""
    actors: QueueState
    """Actors whose output is still to come; none without a look-ahead."""


class StreamingDetector(StreamingModule[DetectorState]):
    """Streaming detector of actors and actions, from the newest frame and a state of constant size.

    The head localizes actors in each frame by itself. It classifies them in the newest frame, with the tokens of
    earlier frames in the context memory.

    Args:
        num_classes: K.
        trunk: encodes the frames.
        head: makes the head for the trunk's tokens.
        memory: what is kept of past frames.
        timing: delay of the output, and which frame boxes come from.
        num_actors: number of proposals, the most person-like, that the decoder reads and that are detections at
            inference; all of them by default and in training.
    """

    def __init__(
        self,
        num_classes: int,
        trunk: StreamingTrunk,
        head: HeadFactory = DetectionHead,
        memory: MemorySize = MemorySize(),  # noqa: B008  (frozen)
        timing: Timing = Timing(),  # noqa: B008  (frozen)
        num_actors: int | None = None,
    ) -> None:
        super().__init__()
        if trunk.size.grid % 2:
            raise ValueError(
                f"pretrain_size={trunk.size.pretrain_size} must be a multiple of twice "
                f"patch_size={trunk.size.patch_size}, as the pyramid's coarsest level needs"
            )
        self.trunk = trunk
        self.head = head(trunk.layout, num_classes)
        self.num_actors = num_actors
        if num_actors is not None and not 1 <= num_actors <= self.num_proposals:
            raise ValueError(f"num_actors={num_actors} must be 1 to num_proposals={self.num_proposals}")
        self.memory = ContextMemory(memory, self.head.decoder.dim, timing.keyframe_age)
        self.set_timing(timing)

    def set_timing(self, timing: Timing) -> None:
        """Predict from now on with this delay, which the weights should have been trained for.

        A state that was made for another delay fits no longer.
        """
        self.timing = timing
        self.memory.keyframe_age = timing.keyframe_age
        self.actors = ActorQueue(timing.frames_waiting, len(self.head.localizer.stages), self.num_proposals)
        read = self.memory.size.frames if self.head.decoder.reads_other_slots else 0
        field = self.trunk.receptive_field
        self.receptive_field = None if field is None else field + max(read, timing.frames_waiting)

    @property
    def size(self) -> TrunkSize:
        """Return the size of the trunk."""
        return self.trunk.size

    @property
    def num_classes(self) -> int:
        return self.head.num_classes

    @property
    def frame_size(self) -> int:
        """Side in pixels of the frames that it was made for."""
        return self.size.pretrain_size

    @property
    def patch_size(self) -> int:
        return self.size.patch_size

    @property
    def num_proposals(self) -> int:
        return self.head.localizer.num_proposals

    @property
    def look_ahead(self) -> int:
        """Delay of the output in frames of the stream, see ``Timing``."""
        return self.timing.look_ahead

    def pixel_size(self, frames: Tensor) -> tuple[int, int]:
        """Height and width in pixels of frames (B, T, C, h, w), or of those that a stem's maps are of."""
        return pixel_size(frames, self.trunk.stem)

    def new_parameters(self) -> set[str]:
        """Return the names of parameters that a teacher has no weights for: they keep their own start."""
        return {"memory.age_code", *(f"trunk.{name}" for name in self.trunk.new_parameters())}

    def head_parameters(self) -> set[str]:
        """Return the names of parameters that may learn faster than the trunk."""
        return {f"head.{name}" for name in self.head.fast_parameters()}

    def initial_state(
        self,
        batch_size: int,
        frame_size: tuple[int, int] | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> DetectorState:
        """``frame_size`` is the padded height and width of the frames to come; square at the pre-training size by
        default."""
        rows, columns = self.trunk.grid_of(*(frame_size or (self.frame_size, self.frame_size)))
        return DetectorState(
            self.trunk.initial_state(batch_size, frame_size, device=device, dtype=dtype),
            self.memory.initial_state(batch_size, rows * columns, device=device, dtype=dtype),
            self.actors.initial_state(batch_size, device, dtype),
        )

    def forward(
        self, frames: Tensor, state: DetectorState, image_sizes: Tensor | None = None
    ) -> tuple[Detections, DetectorState]:
        """Normalised frames (B, T, 3, H, W) -> detections with axes (B, T, Q, ...) and the state after the chunk.

        ``image_sizes`` (B, 2) are heights and widths before padding; the whole frame by default.
        """
        outputs, state = self.outputs(frames, state, image_sizes)
        return tree_map(lambda part: part.unflatten(0, frames.shape[:2]), outputs.detections), state

    def outputs(
        self,
        frames: Tensor,
        state: DetectorState,
        image_sizes: Tensor | None = None,
        last: int | None = None,
        deep: bool = False,
    ) -> tuple[DetectorOutputs, DetectorState]:
        """Return all that is supervised on the chunk's ``last`` frames (all by default), folded into the batch axis.

        The frames before them only advance the state: that is how training warms it up. ``deep`` asks for what training
        supervises: the action logits of every decoder block, and of all proposals, for any ``num_actors``.
        """
        encoded, trunk = self.encode(frames, state)
        outputs, memory, actors = self.detect(encoded, state, image_sizes, last, deep)
        return outputs, DetectorState(trunk, memory, actors)

    def encode(self, frames: Tensor, state: DetectorState) -> tuple[EncodedFrames, TrunkState]:
        """Normalised frames (B, T, 3, H, W) -> what the trunk makes of them, and its state after the chunk."""
        side = 2 * self.patch_size
        height, width = self.pixel_size(frames)
        if height % side or width % side:
            raise ValueError(f"frames of {(height, width)} must be padded to multiples of {side}")
        encoded = self.trunk(frames, state.trunk)
        self._check_memory(frames, state.memory)
        return encoded

    def detect(
        self,
        encoded: EncodedFrames,
        state: DetectorState,
        image_sizes: Tensor | None = None,
        last: int | None = None,
        deep: bool = False,
        ends_here: bool = False,
    ) -> tuple[DetectorOutputs, MemoryState, QueueState]:
        """Return what the head finds in encoded frames, and the rest of the state after them.

        Arguments as in ``outputs``; ``state`` is that before the chunk. ``ends_here`` saves what only later chunks ask
        for: the state is of no use.
        """
        batch, num_frames = encoded.tokens.shape[:2]
        rows, columns = encoded.maps[0].shape[-2:]
        grid = (rows, columns)
        last = num_frames if last is None else last
        if not 1 <= last <= num_frames:
            raise ValueError(f"last={last} frames asked for of a chunk of {num_frames}")
        if image_sizes is None:
            size = (rows * self.patch_size, columns * self.patch_size)
            image_sizes = constant(size, encoded.tokens, torch.long).expand(batch, 2)

        begin = self.actors.needed(num_frames, last)
        end = max(begin + 1, num_frames - self.actors.length) if ends_here else num_frames
        found = self._localize(encoded.maps, image_sizes, begin, end)
        due, waiting = self.actors(found, state.actors, num_frames, last)
        person_logits, boxes = (part.flatten(0, 1).transpose(0, 1) for part in due)  # (R, B L, P, ...)
        if self.num_actors is not None and not deep:
            person_logits, boxes = most_person_like(person_logits, boxes, self.num_actors)
        decoder = self.head.decoder
        projected = decoder.encoder_to_decoder(encoded.tokens)
        chooses = self.memory.size.chooses
        received = self.trunk.received(encoded) if chooses else projected.new_zeros(projected.shape[:3])
        past, memory = self.memory(projected, received, state.memory, last)
        context = self.memory.context(decoder, projected[:, -last:].flatten(0, 1), past, grid)
        sizes = image_sizes.repeat_interleave(last, dim=0)
        action_logits = self.head.classify(context, boxes[-1], sizes, every_block=deep)
        maps = tuple(levels[:, -last:].flatten(0, 1) for levels in encoded.maps)
        return DetectorOutputs(person_logits, boxes, action_logits, maps), memory, waiting

    def _localize(self, levels: tuple[Tensor, ...], image_sizes: Tensor, begin: int, end: int) -> QueueState:
        """Return the actors of the frames ``begin`` to ``end`` from maps (B, T, C, h, w)."""
        maps = tuple(level[:, begin:end].flatten(0, 1) for level in levels)
        actors = self.head.localize(maps, image_sizes.repeat_interleave(end - begin, dim=0))
        frames = (image_sizes.shape[0], end - begin)
        parts = (actors.person_logits, actors.boxes)
        return QueueState(*(part.transpose(0, 1).unflatten(0, frames) for part in parts))

    def _check_memory(self, frames: Tensor, state: MemoryState) -> None:
        """Refuse a memory of other frames, which would give wrong detections further down, not errors."""
        height, width = self.pixel_size(frames)
        rows, columns = self.trunk.grid_of(height, width)
        size = self.memory.size
        expected = (frames.shape[0], size.frames, size.num_kept(rows * columns), self.memory.dim)
        if tuple(state.tokens.shape) != expected:
            raise ValueError(
                f"the state's memory is {tuple(state.tokens.shape)} but {frames.shape[0]} streams of "
                f"{(height, width)} pixels need {expected}; "
                "make one with initial_state(batch_size, frame_size)"
            )
