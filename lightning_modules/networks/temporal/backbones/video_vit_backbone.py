"""The project's video ViT as a backbone in time: short clips one after the other."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ...detection.vit import VideoViT
from ...layers.trunk_size import TUBELET, TrunkSize
from ...weights.videomae import load_videomae
from .segment_backbone import SegmentBackbone


class VideoViTBackbone(SegmentBackbone):
    """A ``VideoViT`` on consecutive clips that do not overlap; one feature a tubelet slot, the mean of its tokens.

    No token is dropped: every slot of a clip counts, not its keyframe's alone. A window that is no multiple of
    ``clip_frames`` long ends in a clip with black frames, as a video does that ends inside its window.

    Shapes: (B, T, in_channels, H, W) -> (B, dim, T / 2).

    Args:
        in_channels: 3 for RGB or its temporal gradient, 2 for optical flow.
        clip_frames: frames that see each other.
        frame_size: side in pixels of the frames that the position codes are made for; others resize the codes.
        pretrained: VideoMAE weights to start from, see ``load_videomae``; for ``in_channels=3``.
        dim, depth, num_heads, patch_size, mlp_ratio: see ``TrunkSize``.
        drop_path_rate, checkpoint_blocks: see ``VideoViT``.
    """

    step_stride = TUBELET

    def __init__(
        self,
        in_channels: int = 3,
        clip_frames: int = 16,
        frame_size: int = 224,
        pretrained: str | Path | None = None,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        patch_size: int = 16,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        checkpoint_blocks: bool = False,
    ) -> None:
        super().__init__()
        if pretrained is not None and in_channels != 3:
            raise ValueError(
                f"VideoMAE weights are for 3 channels, not in_channels={in_channels}; leave out pretrained"
            )
        self.in_channels, self.out_channels, self.clip_frames = in_channels, dim, clip_frames
        size = TrunkSize(
            dim, depth, num_heads, mlp_ratio, patch_size, clip_frames, frame_size, (), in_channels=in_channels
        )
        self.encoder = VideoViT(size, drop_path_rate=drop_path_rate, checkpoint_blocks=checkpoint_blocks)
        if pretrained is not None:
            load_videomae(self.encoder, pretrained)

    def forward(self, steps: Tensor, mask: Tensor) -> Tensor:
        batch, length = mask.shape
        steps = steps.masked_fill(~mask[:, :, None, None, None], 0)  # attention sees the whole clip
        steps = F.pad(steps, [0, 0, 0, 0, 0, 0, 0, -length % self.clip_frames])
        clips = steps.unflatten(1, (-1, self.clip_frames)).flatten(0, 1)  # (B clips, clip_frames, C, H, W)
        encoded = self.encoder(clips.transpose(1, 2))
        num_slots = encoded.grid[0]
        key = num_slots // 2
        slots = encoded.tokens.unflatten(1, (num_slots, -1)).mean(2)  # (B clips, slots, C), the keyframe's slot first
        slots = torch.cat([slots[:, 1 : key + 1], slots[:, :1], slots[:, key + 1 :]], dim=1)
        return slots.unflatten(0, (batch, -1)).flatten(1, 2)[:, : length // TUBELET].transpose(1, 2)
