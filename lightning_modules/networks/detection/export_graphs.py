"""Graphs of exported networks: from uint8 pixels to decoded detections, their states by name.

    detections, state = StepGraph(student, (240, 320))(frames, state)      # frames (B, H, W, 3)
    detections = ClipGraph(teacher, (240, 320), num_frames=16)(frames)     # frames (B, T, H, W, 3)

Everything that a program without this repository would have to repeat lies inside: normalisation, padding, decoding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import GetAttrKey, MappingKey, SequenceKey, tree_leaves, tree_map, tree_map_with_path

from ..layers.pixels import normalise_frames
from ..streaming import State, StreamingModule
from .evad import EvadTeacher
from .outputs import Detections, ScoreRule, score_proposals

FRAMES = "frames"
DETECTIONS = ("boxes", "person_scores", "action_scores")
STATE, NEXT = "state.", "next_"
"""``state.memory.tokens`` goes in, ``next_state.memory.tokens`` comes out."""


def state_names(state: State) -> State:
    """Return the same nesting with a name in place of every tensor, such as ``state.trunk.blocks.0.hidden``.

    Tensors without elements stay as they are: they hold what an option leaves out, and few runtimes take them.
    """
    return tree_map_with_path(
        lambda path, leaf: STATE + ".".join(map(_step_name, path)) if leaf.numel() else leaf, state
    )


def _step_name(step: GetAttrKey | MappingKey[Any, Any] | SequenceKey[Any]) -> str:
    if isinstance(step, GetAttrKey):
        return step.name
    return str(step.key if isinstance(step, MappingKey) else step.idx)


def by_name(names: State, state: State) -> dict[str, Tensor]:
    """The tensors of a state under the names that ``state_names`` gave them."""
    pairs = zip(tree_leaves(names), tree_leaves(state), strict=True)
    return {name: leaf for name, leaf in pairs if isinstance(name, str)}


def nested(names: State, state: dict[str, Tensor], batch_size: int) -> State:
    """The state whose tensors are given by name."""

    def find(leaf: str | Tensor) -> Tensor:
        if isinstance(leaf, str):
            return state[leaf]
        return torch.zeros(batch_size, *leaf.shape[1:], dtype=leaf.dtype)

    return tree_map(find, names)


class ExportGraph(nn.Module):
    """Base of what is exported: a network in eval mode with its first and last steps.

    Args:
        network: the detector.
        image_size: height and width of the frames; they are padded inside to what the network takes.
        score: see ``decode_detections``, which every program has to threshold for itself: shapes are constant here.
    """

    input_names: tuple[str, ...] = (FRAMES,)
    output_names: tuple[str, ...] = DETECTIONS
    frame_dims: tuple[int, ...]
    """Shape of ``frames`` without the batch."""

    def __init__(self, network: nn.Module, image_size: tuple[int, int], score: ScoreRule) -> None:
        super().__init__()
        if min(image_size) < 1:
            raise ValueError(f"image_size is a height and a width of at least 1 pixel, got {list(image_size)}")
        self.network: Any = network.eval()  # a teacher or a student, which have sizes and methods of their own
        self.image_size, self.score = (image_size[0], image_size[1]), score
        patch_size: Any = network.patch_size
        multiple = 2 * patch_size
        height, width = (-(-side // multiple) * multiple for side in image_size)
        self.padded_size: tuple[int, int] = (height, width)

    def sizes(self, frames: Tensor) -> Tensor:
        """(B, 2): height and width before padding."""
        return torch.tensor(self.image_size, device=frames.device).expand(frames.shape[0], 2)

    def normalise(self, frames: Tensor) -> Tensor:
        """(B, T, H, W, 3) uint8 -> (B, T, 3, H', W'), padded with zeros as batches are."""
        normalised = normalise_frames(frames.movedim(-1, -3))
        (height, width), (padded_height, padded_width) = self.image_size, self.padded_size
        return F.pad(normalised, (0, padded_width - width, 0, padded_height - height))

    def decode(self, detections: Detections, sizes: Tensor) -> dict[str, Tensor]:
        """``boxes`` (B, Q, 4) xyxy in pixels of the frame, ``person_scores`` (B, Q), ``action_scores`` (B, Q, K)."""
        scored = score_proposals(detections, sizes, sizes, self.score)
        return {"boxes": scored.boxes, "person_scores": scored.person_scores, "action_scores": scored.scores}

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        """Return the inputs beside ``frames`` when a stream begins; none for a clip."""
        return {}


class StepGraph(ExportGraph):
    """Graph of one new frame per stream: (B, H, W, 3) uint8 RGB and a state by name -> detections, next state.

    The state is the nested NamedTuple of the network; its names and shapes are read from its initial state. The state
    that comes back has the names of the one that went in.
    """

    def __init__(self, network: StreamingModule[Any], image_size: tuple[int, int], score: ScoreRule) -> None:
        super().__init__(network, image_size, score)
        self.frame_dims = (*self.image_size, 3)
        self.names: Any = state_names(self.network.initial_state(1, self.padded_size))
        inputs = tuple(name for name in tree_leaves(self.names) if isinstance(name, str))
        self.input_names = (FRAMES, *inputs)
        self.output_names = (*DETECTIONS, *(NEXT + name for name in inputs))

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        return by_name(self.names, self.network.initial_state(batch_size, self.padded_size))

    def forward(self, frames: Tensor, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        sizes = self.sizes(frames)
        before = nested(self.names, state, frames.shape[0])
        detections, after = self.network(self.normalise(frames[:, None]), before, sizes)
        # Copies, so that a part of the state that stays as it is comes out as another tensor than went in.
        after = {name: part.clone() for name, part in by_name(self.names, after).items()}
        return self.decode(Detections(*(part[:, 0] for part in detections)), sizes), after


class ClipGraph(ExportGraph):
    """A whole clip: (B, T, H, W, 3) uint8 RGB -> detections in its keyframe."""

    def __init__(self, network: EvadTeacher, image_size: tuple[int, int], score: ScoreRule, num_frames: int) -> None:
        super().__init__(network, image_size, score)
        self.frame_dims = (num_frames, *self.image_size, 3)

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        sizes = self.sizes(frames)
        return self.decode(self.network(self.normalise(frames).transpose(1, 2), sizes), sizes)
