"""Delay of a streaming detector's predictions, and the frames they are made of: the one place for all delay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Timing:
    """Delay of predictions, and the frames they are made from.

    The output at frame ``t + look_ahead`` is about frame ``t``. With ``look_ahead=3``::

        frame               t    t+1   t+2   t+3
        boxes, answered     x
        boxes, next               x
        boxes, newest                         x
        actions read        x     x     x     x     and the frames before t that the context memory holds
        output for t                          x

    Boxes that are found early wait in the state (``ActorQueue``) while the context memory goes on to newer frames.

    Args:
        look_ahead: delay of the output in frames of the stream. A network is trained for its delay or for several.
        boxes_from: the frame whose tokens boxes are found in. ``answered`` is the frame that the output is about.
            ``next`` is the one after it, whose tokens are of both, as those of the teacher's keyframe are. ``newest``
            is the last one seen, whose tokens then have to show where people were.
        keyframe_code: frame that has the code of the teacher's keyframe in the context decoder: the ``newest``, or the
            ``answered`` one, so that newer frames have codes of its future.
    """

    look_ahead: int = 0
    boxes_from: Literal["answered", "next", "newest"] = "answered"
    keyframe_code: Literal["newest", "answered"] = "newest"

    def __post_init__(self) -> None:
        if self.look_ahead < 0:
            raise ValueError(f"look_ahead is a number of frames, at least 0, got {self.look_ahead}")
        if self.token_delay > self.look_ahead:
            raise ValueError(f"boxes_from=next needs a look_ahead of at least 1, got {self.look_ahead}")

    @property
    def token_delay(self) -> int:
        """Frames after frame ``t`` at which the trunk gives the tokens that stand for it."""
        return int(self.boxes_from == "next")

    @property
    def frames_waiting(self) -> int:
        """Frames that boxes wait between being found and being part of an output."""
        return 0 if self.boxes_from == "newest" else self.look_ahead - self.token_delay

    @property
    def keyframe_age(self) -> int:
        """Age in frames, at the time of the output, of the frame that stands where the teacher's keyframe does."""
        return self.look_ahead - self.token_delay if self.keyframe_code == "answered" else 0
