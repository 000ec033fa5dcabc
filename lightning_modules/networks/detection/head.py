"""The parts of a detector behind its trunk, of one class for clips and for streams."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ..layers.trunk_size import TokenLayout
from .context_decoder import ContextDecoder, SceneContext
from .localizer import LocalizedActors, Localizer
from .pyramid import KeyframePyramid

DecoderFactory = Callable[[TokenLayout, int], ContextDecoder]
"""Makes a decoder for tokens and a number of classes."""


class DetectionHead(nn.Module):
    """Head that localizes actors in token maps and classifies their actions from the tokens around them.

    Args:
        tokens: what the trunk hands over.
        num_classes: K.
        localizer: finds the actors; as wide as the pyramid in front of it.
        decoder: makes what classifies their actions.
    """

    def __init__(
        self,
        tokens: TokenLayout,
        num_classes: int,
        localizer: Localizer | None = None,
        decoder: DecoderFactory = ContextDecoder,
    ) -> None:
        super().__init__()
        if tokens.num_maps != KeyframePyramid.num_levels:
            raise ValueError(
                f"pyramid_layers must name {KeyframePyramid.num_levels} blocks, finest level first, got "
                f"{tokens.num_maps}"
            )
        localizer = localizer or Localizer()
        self.pyramid = KeyframePyramid(tokens.dim, localizer.dim, tokens.patch_size)
        self.localizer = localizer
        self.decoder = decoder(tokens, num_classes)

    @property
    def num_classes(self) -> int:
        return self.decoder.num_classes

    def localize(self, maps: tuple[Tensor, ...], image_sizes: Tensor) -> LocalizedActors:
        """Find actors on token maps (B, C, h, w), finest level first, of frames of unpadded sizes (B, 2)."""
        return self.localizer(self.pyramid(maps), self.pyramid.strides, image_sizes)

    def classify(self, context: SceneContext, boxes: Tensor, image_sizes: Tensor, every_block: bool = False) -> Tensor:
        """Return action logits (depth or 1, B, P, K) of actors in boxes (B, P, 4), see ``ContextDecoder``."""
        return self.decoder(context, boxes, image_sizes, every_block)

    def fast_parameters(self) -> set[str]:
        """Return the names of parameters that may learn faster than the trunk: refinement stages and decoder."""
        return {name for name, _ in self.named_parameters() if name.startswith(("localizer.stages.", "decoder."))}


HeadFactory = Callable[[TokenLayout, int], DetectionHead]
"""Makes a head for tokens and a number of classes: ``DetectionHead``, or it with its other arguments."""
