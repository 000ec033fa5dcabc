"""The parts of a detector behind its trunk, which teacher and student have alike."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from .context_decoder import ContextDecoder
from .localizer import Localizer
from .pyramid import KeyframePyramid


class DetectionHead(NamedTuple):
    """What makes detections of tokens; a student's features can be read by its teacher's too."""

    norm: nn.LayerNorm
    """Of the last block's tokens."""
    pyramid: KeyframePyramid
    localizer: Localizer
    decoder: ContextDecoder
