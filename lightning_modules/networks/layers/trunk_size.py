"""Sizes that a clip's trunk and a stream's must share, and what a detection head has to know of either."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .positions import Keyframe

TUBELET = 2
"""Frames that one slot (tubelet) holds."""
NORM_EPS = 1e-6


class TokenLayout(NamedTuple):
    """The tokens that a trunk hands to a detection head."""

    dim: int
    """Channels of a token."""
    patch_size: int
    """Side of a token's patch in pixels."""
    num_slots: int
    """Slots of the clip that position codes are made for."""
    grid: int
    """Side of a slot in tokens, of the same."""
    keyframe: Keyframe
    """The slot that holds the keyframe."""
    num_maps: int
    """Blocks whose maps come with the tokens."""


@dataclass(frozen=True)
class TrunkSize:
    """Sizes of a trunk, ViT-B's by default; weights of a clip's trunk fit the stream's of the same size.

    Args:
        dim, depth, num_heads, mlp_ratio: sizes of the transformer.
        patch_size: side of a patch in pixels.
        num_frames: frames of a full clip, whose slots have position codes; a stream's frames stand where its keyframe
            does.
        pretrain_size: side in pixels of the frames that position codes are made for; others resize the codes.
        pyramid_layers: blocks (from 0) whose token maps are handed on, for the pyramid's finest level first.
        keyframe: where the keyframe stands in a clip: in the ``middle``, so that half of the clip is its future (as
            published), or ``last``.
        in_channels: channels of a frame: 3 for RGB or its temporal gradient, 2 for optical flow.
    """

    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    patch_size: int = 16
    num_frames: int = 16
    pretrain_size: int = 224
    pyramid_layers: tuple[int, ...] = (2, 5, 8, 11)
    keyframe: Keyframe = "middle"
    in_channels: int = 3

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise ValueError(f"dim={self.dim} does not divide into num_heads={self.num_heads}")
        if self.num_frames < TUBELET or self.num_frames % TUBELET:
            raise ValueError(
                f"num_frames={self.num_frames} must be a positive multiple of {TUBELET}, the frames of a slot"
            )
        if self.keyframe == "middle" and self.num_slots > 1 and self.num_slots % 2:
            raise ValueError(
                f"num_frames={self.num_frames} gives an odd number of slots, {self.num_slots} of {TUBELET} frames; "
                f"a keyframe in the middle needs an even one: set num_frames to a multiple of {2 * TUBELET}"
            )
        if self.pretrain_size % self.patch_size:
            raise ValueError(
                f"pretrain_size={self.pretrain_size} does not divide into patches of patch_size={self.patch_size}"
            )
        if any(not 0 <= layer < self.depth for layer in self.pyramid_layers):
            raise ValueError(f"pyramid_layers={list(self.pyramid_layers)} must lie in 0..{self.depth - 1}")

    @property
    def num_slots(self) -> int:
        """Slots of a full clip."""
        return self.num_frames // TUBELET

    @property
    def grid(self) -> int:
        """Patches along one side of a frame of ``pretrain_size``."""
        return self.pretrain_size // self.patch_size

    @property
    def layout(self) -> TokenLayout:
        """Sizes that a detection head depends on."""
        maps = len(self.pyramid_layers)
        return TokenLayout(self.dim, self.patch_size, self.num_slots, self.grid, self.keyframe, maps)
