"""Context refinement decoder: actors joined with all kept tokens (EVAD, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from ..layers.attention import SelfAttention
from ..layers.constants import constant
from ..layers.linear import Linear, Mlp
from ..layers.positions import SpaceTimePositions, keyframe_slot
from ..layers.prepared import Preparable, in_float32_on_cpu
from ..layers.roi_align import separable_roi_align
from ..layers.roi_gather import bin_cells, weighted_sums
from ..layers.trunk_size import NORM_EPS, TokenLayout
from .localizer import at_least_float32
from .vit import EncodedClip


class SceneContext(NamedTuple):
    """Context to classify actors in: B scenes of T' slots of S = h w tokens, C channels, position codes added.

    A clip makes it of its slots, a stream of its context memory.
    """

    canvas: Tensor
    """(B, T', S, C): every place of the slots that actors are pooled in, the mask token where a token is missing."""
    slot_weights: Tensor | None
    """(B, T') summing to one: weight of each slot in the pooling; None for equal weights."""
    sequence: Tensor
    """(B, M, C): the tokens that actors attend to."""
    readable: Tensor | None
    """(B, M) bool: which of them exist; None where all do."""
    grid: tuple[int, int]
    """h, w."""


def extend_boxes(boxes: Tensor, extension: tuple[float, float], image_sizes: Tensor) -> Tensor:
    """Widen xyxy boxes (B, P, 4) by fractions of their width and height, then keep them inside the unpadded frame."""
    start, end = boxes.chunk(2, dim=-1)
    grow = constant(extension, boxes) * (end - start + 1) / 2  # (B, P, 2)
    last = (image_sizes.flip(-1).repeat(1, 2)[:, None] - 1).to(boxes.dtype)  # (B, 1, 4): width, height, width, height
    return torch.minimum(torch.cat([start - grow, end + grow], dim=-1).clamp(min=0), last)


class DecoderBlock(nn.Module):
    """Pre-norm block of joint self-attention over tokens and actors, with its own action head on the actors."""

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, hidden_dim: int, num_classes: int, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = SelfAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, round(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.act_module = nn.Sequential(Linear(dim, hidden_dim, bias=False), nn.LayerNorm(hidden_dim), nn.ReLU())
        self.action_logits = Linear(hidden_dim, num_classes)

    def forward(self, sequence: Tensor, mask: Tensor | None, num_outputs: int | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C), or the last ``num_outputs`` tokens only."""
        kept = sequence if num_outputs is None else sequence[:, -num_outputs:]
        kept = kept + self.drop_path(self.attn(self.norm1(sequence), mask, num_outputs))
        return kept + self.drop_path(self.mlp(self.norm2(kept)))

    def classify(self, actors: Tensor) -> Tensor:
        """(B, P, C) -> (B, P, num_classes)."""
        return at_least_float32(self.action_logits(self.act_module(actors)))


class ContextDecoder(Preparable):
    """Pool each actor over all slots of a scene and refine it with every token, seen or remembered.

    Prepared for inference on a CPU, it reads no more of the slots than actors ask for.

    Shapes: B scenes, P actors, C decoder width, K classes.

    Args:
        tokens: what the trunk hands over. num_classes: K.
        dim, depth, num_heads, mlp_ratio, drop_path_rate: sizes of the transformer.
        hidden_dim: hidden dimension of each block's action head.
        roi_size: bins along a side of an actor's RoI. roi_extension: how much wider and taller than its box it is.
        context: what blocks do with the tokens around the actors. ``refined``: they compute both tokens and actors (as
            published). ``read``: they compute the actors alone, which read the tokens as the trunk left them, and each
            other. ``none``: actors are classified from their RoI features, reading each other.
        temporal_roi: an actor is pooled over all slots; in the keyframe's alone otherwise. No token is missing there,
            so the mask token is not trained.
    """

    def __init__(
        self,
        tokens: TokenLayout,
        num_classes: int,
        dim: int = 384,
        depth: int = 6,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        hidden_dim: int = 2048,
        roi_size: int = 7,
        roi_extension: tuple[float, float] = (0.4, 0.2),
        drop_path_rate: float = 0.0,
        context: Literal["refined", "read", "none"] = "refined",
        temporal_roi: bool = True,
    ) -> None:
        super().__init__()
        self.context, self.temporal_roi = context, temporal_roi
        self.dim, self.num_classes = dim, num_classes
        self.roi_size, self.roi_extension, self.patch_size = roi_size, roi_extension, tokens.patch_size
        self.encoder_to_decoder = Linear(tokens.dim, dim, bias=False)
        # Frozen where nothing reads it: a trained parameter without a gradient would stop DistributedDataParallel.
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim), requires_grad=temporal_roi)
        self.positions = SpaceTimePositions(tokens.num_slots, tokens.grid, dim, keyframe=tokens.keyframe)
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            DecoderBlock(dim, num_heads, mlp_ratio, hidden_dim, num_classes, rate) for rate in rates
        )
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @property
    def reads_other_slots(self) -> bool:
        """Return whether anything but the keyframe's slot changes the outputs."""
        return self.temporal_roi or self.context != "none"

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that do not decay although they are matrices."""
        return {"mask_token"}

    def clip_context(self, encoded: EncodedClip) -> SceneContext:
        """Return the scene of a clip's keyframe: M tokens of all slots that token dropout has kept."""
        slots, height, width = encoded.grid
        key, num_keyframe = keyframe_slot(slots, self.positions.keyframe), height * width
        tokens = self.encoder_to_decoder(encoded.tokens)
        positions = self.positions(slots, height, width).to(tokens.dtype)  # (T', S, C)
        keyframe, others = tokens[:, :num_keyframe], tokens[:, num_keyframe:]

        past_and_future = torch.cat([positions[:key], positions[key + 1 :]]).flatten(0, 1)  # without the keyframe
        if self.temporal_roi:
            places = encoded.kept[..., None].expand_as(others)
            canvas = self.mask_token.to(tokens.dtype).expand(tokens.shape[0], len(past_and_future), -1)
            canvas = canvas.scatter(1, places, others).unflatten(1, (slots - 1, num_keyframe))
            canvas = torch.cat([canvas[:, :key], keyframe[:, None], canvas[:, key:]], dim=1) + positions
        else:
            canvas = (keyframe + positions[key])[:, None]
        sequence = torch.cat([keyframe + positions[key], others + past_and_future[encoded.kept]], dim=1)
        return SceneContext(canvas, None, sequence, None, (height, width))

    def forward(self, context: SceneContext, boxes: Tensor, image_sizes: Tensor, every_block: bool = False) -> Tensor:
        """Return action logits (depth or 1, B, P, K) of the last block, or of every block for deep supervision.

        boxes (B, P, 4) xyxy in pixels, image_sizes (B, 2) height, width before padding.
        """
        actors = self.pool_actors(context.canvas, boxes, image_sizes, context.grid, context.slot_weights)
        sequence, mask = torch.cat([context.sequence, actors], dim=1), None
        if context.readable is not None:
            always = context.readable.new_ones(actors.shape[:2])
            mask = torch.cat([context.readable, always], dim=1)[:, None, None]
        return self.refine(sequence, actors.shape[1], mask, every_block)

    def pool_actors(
        self,
        canvas: Tensor,
        boxes: Tensor,
        image_sizes: Tensor,
        grid: tuple[int, int],
        slot_weights: Tensor | None = None,
    ) -> Tensor:
        """Return one vector per actor: RoIAlign of its extended box in every slot, maximum over bins, mean over slots.

        Shapes: canvas (B, T', S, C), boxes (B, P, 4), slot_weights (B, T') summing to one, equal by default;
        returns (B, P, C).
        """
        boxes = extend_boxes(boxes.detach(), self.roi_extension, image_sizes)
        if self.kept is not None and in_float32_on_cpu(canvas):
            pooled = self._pool_gathered(canvas, boxes, grid)
        else:
            maps = canvas.permute(0, 1, 3, 2).flatten(1, 2).unflatten(2, grid)  # (B, T' C, h, w)
            crops = separable_roi_align(maps, boxes, self.roi_size, 1 / self.patch_size)
            pooled = crops.flatten(3).max(dim=3).values.unflatten(2, canvas.shape[1::2])  # (B, P, T', C)
        if slot_weights is None:
            return pooled.mean(dim=2)
        return torch.einsum("bptc,bt->bpc", pooled, slot_weights.to(pooled.dtype))

    def _pool_gathered(self, canvas: Tensor, boxes: Tensor, grid: tuple[int, int]) -> Tensor:
        """The largest value of each box's bins in every slot: (B, P, T', C), boxes (B, P, 4)."""
        batch, slots, cells = canvas.shape[:3]
        height, width = constant(((grid[0], grid[1]),), boxes).split(1, dim=1)
        found = bin_cells(boxes.flatten(0, 1), 1 / self.patch_size, width, height, self.roi_size)
        first = torch.arange(0, batch * slots * cells, cells, device=boxes.device).view(batch, 1, slots, 1, 1)
        places = found.places.view(*boxes.shape[:2], 1, *found.places.shape[1:]) + first  # (B, P, T', r r, k)
        weights = found.weights.view(*boxes.shape[:2], 1, *found.places.shape[1:]).expand_as(places)
        return weighted_sums(canvas.flatten(0, 2), places, weights).amax(dim=3)

    def made_of_weights(self) -> bool:
        """Return that there is something to gain, though it keeps nothing itself."""
        return True

    def refine(
        self, sequence: Tensor, num_actors: int, mask: Tensor | None = None, every_block: bool = False
    ) -> Tensor:
        """Action logits of the last ``num_actors`` entries of the sequence (B, N, C); mask as in ``SelfAttention``.

        What the last block makes of the other tokens is not read by anything, so it computes the actors alone.
        """
        if self.context == "none":
            sequence = sequence[:, -num_actors:]
            mask = None if mask is None else mask[..., -num_actors:]
        logits, tokens, alone = [], sequence[:, :-num_actors], self.context != "refined"
        blocks: Iterable[Any] = self.blocks
        for number, block in enumerate(blocks, start=1):
            last = number == len(self.blocks)
            sequence = block(sequence, mask, num_actors if last or alone else None)
            if last or every_block:
                logits.append(block.classify(sequence[:, -num_actors:]))
            if alone and not last:
                sequence = torch.cat([tokens, sequence], dim=1)
        return torch.stack(logits)
