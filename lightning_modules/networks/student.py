"""The streaming detector: EVAD's parts around a causal trunk that sees one frame at a time. The student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .actor_queue import ActorQueue, QueueState
from .carried_proposals import CarriedProposals, ProposalState
from .context_decoder import ContextDecoder
from .context_memory import ContextMemory, MemoryState
from .detection_head import DetectionHead
from .detections import Detections, DetectorOutputs
from .frame_embedding import EmbeddingState, FramePairEmbedding
from .localizer import Localizer, most_person_like
from .positions import Keyframe, SpaceTimePositions
from .pyramid import KeyframePyramid
from .roi_align import RoiKernel
from .streaming import StreamingModule
from .streaming_block import StreamingBlock, causal_attention
from .temporal_shift import ShiftMode
from .vit import NORM_EPS, TUBELET


class EncodedFrames(NamedTuple):
    """What the trunk makes of a chunk: T frames of B streams, N = h w tokens each."""

    tokens: Tensor
    """(B, T, N, C) after the last block, not normed."""
    maps: tuple[Tensor, ...]
    """(B, T, C, h, w) after each of ``pyramid_layers``."""
    received: Tensor
    """(B, T, N): the attention that each token receives inside its frame in the last block."""


class StudentState(NamedTuple):
    """What a stream remembers."""

    embedding: EmbeddingState
    blocks: tuple
    """The states of the blocks, first to last."""
    memory: MemoryState
    """What the context decoder reads of past frames."""
    proposals: ProposalState
    """What the localizer starts from; nothing is in it where no proposals are carried."""
    actors: QueueState
    """Those that are not answered for yet; none without a look-ahead."""


class StreamingDetector(StreamingModule[StudentState]):
    """Detects actors and actions in the newest frame of a stream from that frame and a state of constant size.

    Each frame is a slot of its own: embedded with the frame before it as a tubelet of the teacher is, and with the
    position code of the teacher's keyframe slot whatever its time. The pyramid and the localizer read each frame by
    itself; the context decoder reads the newest whole and the tokens kept of the ``window`` frames before it. Arguments
    are those of ``EvadTeacher`` except:

    Args:
        temporal: ``tsa``, Temporal Shift Attention, or ``dsta``, Decomposed Spatial-Temporal Attention.
        shift_mode, shift_rate: see ``TemporalShiftAttention``.
        lstm_dim: width of the LSTM of ``dsta``; a quarter of ``dim`` by default.
        lstm_blocks: the blocks of ``dsta`` (from 0) that have one; all by default.
        num_frames: frames of the teacher's clip, for its position codes.
        keyframe: where its keyframe stands in it, for the same.
        window: past frames in the context memory. memory_keep_rate: share of their tokens that is kept.
        memory_stride: the context decoder reads the past frames that are so many, twice so many ... frames old. 2, with
            all tokens kept, gives it slots as the teacher's, which do not share frames.
        keyframe_code: which frame's tokens the context decoder finds where the teacher's keyframe is: those of the
            ``newest`` frame, or of the one that is ``answered`` for, so that newer frames stand in its future.
        carried_proposals: how many of the ``num_proposals`` start where the previous frame's most person-like ones
            ended, see ``CarriedProposals``.
        look_ahead: what is said at frame t is about frame t - look_ahead, in frames of the stream: answers come that
            much later and know that much more. The network is trained so, and who reads its answers has to know.
        localizes: with a look-ahead, which frame boxes are found in: the one that is answered for, so that they wait
            in the state (``ActorQueue``) while the context decoder goes on to newer frames; the ``next`` one, whose
            tokens are of the answered frame and itself, as those of the teacher's keyframe are; or the newest, which
            then has to tell where people were.
        num_actors: at inference the context decoder reads, and the detections are, the so many most person-like
            proposals; all of them by default and in training.
        decoder_refines_context: see ``ContextDecoder``.
    """

    def __init__(
        self,
        temporal: Literal["tsa", "dsta"],
        num_classes: int = 80,
        num_frames: int = 16,
        pretrain_size: int = 224,
        shift_mode: ShiftMode = "concat_kv",
        shift_rate: float = 0.25,
        lstm_dim: int | None = None,
        lstm_blocks: Sequence[int] | None = None,
        window: int = 7,
        memory_keep_rate: float = 0.5,
        memory_stride: int = 1,
        keyframe_code: Literal["newest", "answered"] = "newest",
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        patch_size: int = 16,
        mlp_ratio: float = 4.0,
        pyramid_layers: Sequence[int] = (2, 5, 8, 11),
        head_dim: int = 256,
        num_proposals: int = 100,
        num_stages: int = 6,
        localizer_heads: int = 8,
        dynamic_dim: int = 64,
        localizer_hidden: int = 2048,
        localizer_roi_size: int = 7,
        proposal_boxes: Literal["image", "grid"] = "image",
        roi_kernel: RoiKernel = "torchvision",
        decoder_dim: int = 384,
        decoder_depth: int = 6,
        decoder_heads: int = 6,
        decoder_hidden: int = 2048,
        decoder_roi_size: int = 7,
        roi_extension: tuple[float, float] = (0.4, 0.2),
        carried_proposals: int = 0,
        look_ahead: int = 0,
        localizes: Literal["answered", "next", "newest"] = "answered",
        num_actors: int | None = None,
        decoder_refines_context: bool = True,
        keyframe: Keyframe = "middle",
    ) -> None:
        super().__init__()
        if num_actors is not None and not 1 <= num_actors <= num_proposals:
            raise ValueError(f"num_actors={num_actors} must be 1 to num_proposals={num_proposals}")
        if look_ahead < 0:
            raise ValueError(f"look_ahead is a number of frames, at least 0, got {look_ahead}")
        self.lateness = int(localizes == "next")
        if self.lateness > look_ahead:
            raise ValueError(f"localizes=next needs a look_ahead of at least 1, got {look_ahead}")
        if temporal == "tsa" and lstm_blocks is not None:
            raise ValueError(f"lstm_blocks={list(lstm_blocks)} says where dsta has LSTMs; tsa has none")
        if not set(lstm_blocks or ()) <= set(range(depth)):
            raise ValueError(f"lstm_blocks={list(lstm_blocks)} must lie in 0..{depth - 1}")
        if pretrain_size % (2 * patch_size):
            raise ValueError(f"pretrain_size={pretrain_size} must be a multiple of twice patch_size={patch_size}")
        if num_frames % TUBELET:
            raise ValueError(f"num_frames={num_frames} must be a multiple of the teacher's tubelet of {TUBELET}")
        self.num_classes, self.patch_size, self.frame_size = num_classes, patch_size, pretrain_size
        self.num_proposals, self.look_ahead = num_proposals, look_ahead
        self.dim, self.decoder_dim = dim, decoder_dim
        self.pyramid_layers = tuple(pyramid_layers)
        grid, num_slots = pretrain_size // patch_size, num_frames // TUBELET
        self.patch_embed = FramePairEmbedding(dim, patch_size, (grid, grid))
        self.positions = SpaceTimePositions(num_slots, grid, dim, keyframe=keyframe)
        widths = [lstm_dim if lstm_blocks is None or layer in lstm_blocks else 0 for layer in range(depth)]
        self.blocks = nn.ModuleList(
            StreamingBlock(
                dim,
                mlp_ratio,
                causal_attention(temporal, dim, num_heads, grid**2, shift_mode, shift_rate, width),
            )
            for width in widths
        )
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.pyramid = KeyframePyramid(dim, head_dim, patch_size)
        self.localizer = Localizer(
            dim=head_dim,
            num_proposals=num_proposals,
            num_stages=num_stages,
            num_heads=localizer_heads,
            dynamic_dim=dynamic_dim,
            hidden_dim=localizer_hidden,
            roi_size=localizer_roi_size,
            proposal_boxes=proposal_boxes,
            roi_kernel=roi_kernel,
        )
        self.decoder = ContextDecoder(
            encoder_dim=dim,
            num_classes=num_classes,
            dim=decoder_dim,
            depth=decoder_depth,
            num_heads=decoder_heads,
            hidden_dim=decoder_hidden,
            roi_size=decoder_roi_size,
            roi_extension=roi_extension,
            patch_size=patch_size,
            num_slots=num_slots,
            pretrain_grid=grid,
            refines_context=decoder_refines_context,
            keyframe=keyframe,
        )
        ahead = look_ahead - self.lateness
        keyframe_age = ahead if keyframe_code == "answered" else 0
        self.memory = ContextMemory(decoder_dim, window, memory_keep_rate, TUBELET, memory_stride, keyframe_age)
        waits = 0 if localizes == "newest" else ahead
        self.actors = ActorQueue(waits, num_stages, num_proposals)
        self.carried, self.num_actors = CarriedProposals(carried_proposals, num_proposals), num_actors
        # The embedding and every block look back one frame; the memory keeps what the last block made of its frames.
        recurrent = temporal == "dsta" or carried_proposals > 0
        self.receptive_field = None if recurrent else depth + TUBELET + max(window, waits)

    def initial_state(
        self,
        batch_size: int,
        frame_size: tuple[int, int] | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> StudentState:
        """``frame_size`` is the padded height and width of the frames to come; square at the pre-training size by
        default."""
        height, width = frame_size or (self.frame_size, self.frame_size)
        grid = (height // self.patch_size, width // self.patch_size)
        patches = grid[0] * grid[1]
        return StudentState(
            self.patch_embed.initial_state(batch_size, grid, device=device, dtype=dtype),
            tuple(block.initial_state(batch_size, patches, device=device, dtype=dtype) for block in self.blocks),
            self.memory.initial_state(batch_size, patches, self.decoder_dim, device, dtype),
            self.carried.initial_state(batch_size, self.localizer.dim, device, dtype),
            self.actors.initial_state(batch_size, device, dtype),
        )

    def forward(
        self, frames: Tensor, state: StudentState, image_sizes: Tensor | None = None
    ) -> tuple[Detections, StudentState]:
        """Normalised frames (B, T, 3, H, W) -> detections with axes (B, T, Q, ...) and the state after the chunk.

        ``image_sizes`` (B, 2) are heights and widths before padding; the whole frame by default.
        """
        outputs, state = self.outputs(frames, state, image_sizes)
        return tree_map(lambda part: part.unflatten(0, frames.shape[:2]), outputs.detections), state

    def outputs(
        self,
        frames: Tensor,
        state: StudentState,
        image_sizes: Tensor | None = None,
        last: int | None = None,
        deep: bool = False,
    ) -> tuple[DetectorOutputs, StudentState]:
        """All there is to supervise on the chunk's ``last`` frames (all by default), their axis folded into the batch.

        The frames before them only advance the state: that is how training warms it up. ``deep`` asks for what training
        supervises: the action logits of every decoder block, and of all proposals whatever ``num_actors`` says.
        """
        encoded, trunk_state = self.encode(frames, state)
        outputs, head_state = self.detect(encoded, state, image_sizes, last, deep)
        return outputs, StudentState(*trunk_state, *head_state)

    def encode(self, frames: Tensor, state: StudentState) -> tuple[EncodedFrames, tuple[EmbeddingState, tuple]]:
        """Normalised frames (B, T, 3, H, W) -> what the trunk makes of them, and its state after the chunk."""
        grid = (frames.shape[-2] // self.patch_size, frames.shape[-1] // self.patch_size)
        self._check(frames, state, grid)
        tokens, embedding = self.patch_embed(frames, state.embedding)  # (B, T, N, C)
        keyframe_slot = torch.tensor([self.positions.keyframe_slot], device=frames.device)
        tokens = tokens + self.positions.slots(keyframe_slot, *grid).to(tokens.dtype)
        maps, block_states = {}, []
        for layer, (block, block_state) in enumerate(zip(self.blocks, state.blocks, strict=True)):
            if layer == len(self.blocks) - 1:
                received = self._received(block, tokens)
            tokens, block_state = block(tokens, block_state)
            block_states.append(block_state)
            if layer in self.pyramid_layers:
                maps[layer] = tokens.transpose(2, 3).unflatten(3, grid)  # (B, T, C, h, w)
        encoded = EncodedFrames(tokens, tuple(maps[layer] for layer in self.pyramid_layers), received)
        return encoded, (embedding, tuple(block_states))

    @property
    def head(self) -> DetectionHead:
        """What turns encoded frames into detections."""
        return DetectionHead(self.norm, self.pyramid, self.localizer, self.decoder)

    def detect(
        self,
        encoded: EncodedFrames,
        state: StudentState,
        image_sizes: Tensor | None = None,
        last: int | None = None,
        deep: bool = False,
        head: DetectionHead | None = None,
        ends_here: bool = False,
    ) -> tuple[DetectorOutputs, tuple[MemoryState, ProposalState, QueueState]]:
        """What the head, or another one in its place, finds in encoded frames, and the rest of the state after them.

        Arguments as in ``outputs``; ``state`` is that before the chunk. The context memory stays the student's own,
        filled by the head's projection. ``ends_here`` saves what only later chunks ask for: the state is of no use.
        """
        head = head or self.head
        batch, num_frames = encoded.tokens.shape[:2]
        grid = tuple(encoded.maps[0].shape[-2:])
        last = num_frames if last is None else last
        if not 1 <= last <= num_frames:
            raise ValueError(f"last={last} frames asked for of a chunk of {num_frames}")
        if image_sizes is None:
            height, width = (side * self.patch_size for side in grid)
            image_sizes = torch.tensor([height, width], device=encoded.tokens.device).expand(batch, 2)

        begin = self.actors.needed(num_frames, last)
        end = max(begin + 1, num_frames - self.actors.length) if ends_here else num_frames
        found, proposals = self._localize(head, encoded.maps, state.proposals, image_sizes, begin, end)
        answered, waiting = self.actors(found, state.actors, num_frames, last)
        person_logits, boxes = (part.flatten(0, 1).transpose(0, 1) for part in answered)  # (R, B L, P, ...)
        if self.num_actors is not None and not deep:
            person_logits, boxes = most_person_like(person_logits, boxes, self.num_actors)
        projected = head.decoder.encoder_to_decoder(head.norm(encoded.tokens))
        past, memory = self.memory(projected, encoded.received, state.memory, last)
        newest = projected[:, -last:].flatten(0, 1)
        sizes = image_sizes.repeat_interleave(last, dim=0)
        action_logits = self.memory.read(head.decoder, newest, past, boxes[-1], sizes, grid, every_block=deep)
        maps = tuple(levels[:, -last:].flatten(0, 1) for levels in encoded.maps)
        return DetectorOutputs(person_logits, boxes, action_logits, maps), (memory, proposals, waiting)

    def _localize(
        self,
        head: DetectionHead,
        levels: tuple[Tensor, ...],
        state: ProposalState,
        image_sizes: Tensor,
        begin: int,
        end: int,
    ) -> tuple[QueueState, ProposalState]:
        """Actors of the frames ``begin`` to ``end`` from maps (B, T, C, h, w), and what the last of them leaves."""
        if not self.carried.count:
            maps = head.pyramid(tuple(level[:, begin:end].flatten(0, 1) for level in levels))
            sizes = image_sizes.repeat_interleave(end - begin, dim=0)
            actors = head.localizer(maps, head.pyramid.strides, sizes)
            frames = (image_sizes.shape[0], end - begin)
            parts = (actors.person_logits, actors.boxes)
            return QueueState(*(part.transpose(0, 1).unflatten(0, frames) for part in parts)), state
        learned, found = head.localizer.proposals(image_sizes), []
        for frame in range(end):
            is_read = frame >= begin
            with torch.set_grad_enabled(is_read and torch.is_grad_enabled()):
                maps = head.pyramid(tuple(level[:, frame] for level in levels))
                start = self.carried.mix(*learned, state)
                actors = head.localizer(maps, head.pyramid.strides, image_sizes, start)
                state = self.carried.select(actors, state)
            if is_read:
                found.append(QueueState(actors.person_logits.transpose(0, 1), actors.boxes.transpose(0, 1)))
        return QueueState(*(torch.stack(parts, dim=1) for parts in zip(*found, strict=True))), state

    @torch.no_grad()
    def _received(self, block: StreamingBlock, tokens: Tensor) -> Tensor:
        """(B, T, N): the attention that each token of a frame receives inside that frame in this block."""
        if self.memory.window == 0 or self.memory.keep_rate == 1:
            return tokens.new_zeros(tokens.shape[:3])  # nothing is chosen by it
        query, key, _ = block.temporal.attn.project(block.temporal.norm1(tokens))
        attention = (query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)).softmax(-1)  # (B, T, H, N, N)
        return attention.mean(dim=(-3, -2))

    def _check(self, frames: Tensor, state: StudentState, grid: tuple[int, int]) -> None:
        """A state made for other frames would give wrong answers, not errors, further down."""
        side = 2 * self.patch_size
        if frames.shape[-2] % side or frames.shape[-1] % side:
            raise ValueError(f"frames of {tuple(frames.shape[-2:])} must be padded to multiples of {side}")
        embedded = (frames.shape[0], *grid, self.dim)
        if tuple(state.embedding.past.shape) != embedded:
            raise ValueError(
                f"the state is one of {tuple(state.embedding.past.shape)} (streams, rows, columns, channels) but the "
                f"frames need {embedded}; where the number of streams or the size of their frames changes, start anew "
                "with initial_state(batch_size, frame_size)"
            )
        expected = (frames.shape[0], self.memory.window, self.memory.num_kept(grid[0] * grid[1]), self.decoder_dim)
        if tuple(state.memory.tokens.shape) != expected:
            raise ValueError(
                f"the state's memory is {tuple(state.memory.tokens.shape)} but {frames.shape[0]} streams of "
                f"{tuple(frames.shape[-2:])} pixels need {expected}; "
                "make one with initial_state(batch_size, frame_size)"
            )
