"""Context refinement decoder: actors joined with all kept tokens (EVAD, section 3.3; `evad-facts`, section 6)."""

from __future__ import annotations

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from .attention import SelfAttention
from .linear import Linear, Mlp
from .localizer import at_least_float32
from .positions import Keyframe, SpaceTimePositions, keyframe_slot
from .roi_align import separable_roi_align
from .vit import NORM_EPS, EncodedClip


def extend_boxes(boxes: Tensor, extension: tuple[float, float], image_sizes: Tensor) -> Tensor:
    """Widen xyxy boxes (B, P, 4) by fractions of their width and height, then keep them inside the unpadded frame."""
    left, top, right, bottom = boxes.unbind(-1)
    grow_x = extension[0] * (right - left + 1) / 2
    grow_y = extension[1] * (bottom - top + 1) / 2
    height, width = (image_sizes.to(boxes.dtype)[:, None] - 1).unbind(-1)  # (B, 1) each
    zero = torch.zeros_like(height)
    return torch.stack(
        [
            torch.clamp(left - grow_x, zero, width),
            torch.clamp(top - grow_y, zero, height),
            torch.clamp(right + grow_x, zero, width),
            torch.clamp(bottom + grow_y, zero, height),
        ],
        dim=-1,
    )


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


class ContextDecoder(nn.Module):
    """Pools each actor over all slots and refines it with every kept token, seen or forgotten.

    Three switches leave parts of it out; weights fit whatever they say.

    - ``refines_context=False`` leaves the tokens as they come from the encoder: every block then computes the actors
      alone, which read the tokens and each other.
    - ``reads_context=False`` leaves the tokens out: actors are classified from their RoI features, reading each other.
    - ``temporal_roi=False`` pools an actor in the keyframe's slot alone. No token is missing there, so the mask token
      is not trained.

    Shapes: B clips, T' slots of S = h w tokens, M kept tokens outside the keyframe, P actors, C decoder width.
    """

    def __init__(
        self,
        encoder_dim: int,
        num_classes: int,
        dim: int = 384,
        depth: int = 6,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        hidden_dim: int = 2048,
        roi_size: int = 7,
        roi_extension: tuple[float, float] = (0.4, 0.2),
        drop_path_rate: float = 0.0,
        patch_size: int = 16,
        num_slots: int = 8,
        pretrain_grid: int = 14,
        refines_context: bool = True,
        reads_context: bool = True,
        temporal_roi: bool = True,
        keyframe: Keyframe = "middle",
    ) -> None:
        super().__init__()
        self.refines_context, self.reads_context = refines_context, reads_context
        self.temporal_roi = temporal_roi
        self.dim, self.num_classes = dim, num_classes
        self.roi_size, self.roi_extension, self.patch_size = roi_size, roi_extension, patch_size
        self.encoder_to_decoder = Linear(encoder_dim, dim, bias=False)
        # Frozen where nothing reads it: a trained parameter without a gradient would stop DistributedDataParallel.
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim), requires_grad=temporal_roi)
        self.positions = SpaceTimePositions(num_slots, pretrain_grid, dim, keyframe=keyframe)
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            DecoderBlock(dim, num_heads, mlp_ratio, hidden_dim, num_classes, rate) for rate in rates
        )
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, encoded: EncodedClip, boxes: Tensor, image_sizes: Tensor, every_block: bool = False) -> Tensor:
        """Action logits (depth or 1, B, P, num_classes) of the last block, or of every block for deep supervision."""
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

        actors = self.pool_actors(canvas, boxes, image_sizes, (height, width))
        sequence = torch.cat([keyframe + positions[key], others + past_and_future[encoded.kept], actors], dim=1)
        return self.refine(sequence, actors.shape[1], every_block=every_block)

    def pool_actors(
        self,
        canvas: Tensor,
        boxes: Tensor,
        image_sizes: Tensor,
        grid: tuple[int, int],
        slot_weights: Tensor | None = None,
    ) -> Tensor:
        """One vector an actor: RoIAlign of its extended box in every slot, maximum over bins, mean over slots.

        Shapes: canvas (B, T', S, C), boxes (B, P, 4), slot_weights (B, T') summing to one, equal by default;
        returns (B, P, C).
        """
        boxes = extend_boxes(boxes.detach(), self.roi_extension, image_sizes)
        num_slots = canvas.shape[1]
        maps = canvas.permute(0, 1, 3, 2).flatten(1, 2).unflatten(2, grid)  # (B, T' C, h, w)
        crops = separable_roi_align(maps, boxes, self.roi_size, 1 / self.patch_size)
        pooled = crops.flatten(3).max(dim=3).values.unflatten(2, (num_slots, self.dim))  # (B, P, T', C)
        if slot_weights is None:
            return pooled.mean(dim=2)
        return torch.einsum("bptc,bt->bpc", pooled, slot_weights.to(pooled.dtype))

    def refine(
        self, sequence: Tensor, num_actors: int, mask: Tensor | None = None, every_block: bool = False
    ) -> Tensor:
        """Action logits of the last ``num_actors`` entries of the sequence (B, N, C); mask as in ``SelfAttention``.

        What the last block makes of the other tokens is not read by anything, so it computes the actors alone.
        """
        if not self.reads_context:
            sequence = sequence[:, -num_actors:]
            mask = None if mask is None else mask[..., -num_actors:]
        logits, context = [], sequence[:, :-num_actors]
        for number, block in enumerate(self.blocks, start=1):
            last = number == len(self.blocks)
            sequence = block(sequence, mask, num_actors if last or not self.refines_context else None)
            if last or every_block:
                logits.append(block.classify(sequence[:, -num_actors:]))
            if not (last or self.refines_context):
                sequence = torch.cat([context, sequence], dim=1)
        return torch.stack(logits)
