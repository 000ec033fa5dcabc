"""Outputs of every detector, and the one way from there to boxes and scores in the original video."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Detections(NamedTuple):
    """Q proposals of each of B keyframes (a streaming network puts a T axis behind B)."""

    person_logits: Tensor
    """(B, Q, 2): person, background."""
    boxes: Tensor
    """(B, Q, 4) xyxy in pixels of the unpadded network input, unclipped."""
    action_logits: Tensor
    """(B, Q, K), one independent logit a class."""


class DetectorOutputs(NamedTuple):
    """Outputs with all that can be supervised, for B keyframes. Streaming networks fold their T axis into B."""

    person_logits: Tensor
    """(R, B, Q, 2) after each of R refinement stages."""
    boxes: Tensor
    """(R, B, Q, 4) after each stage."""
    action_logits: Tensor
    """(D, B, Q, K) after each of D decoder blocks, or after the last alone (D = 1)."""
    maps: tuple[Tensor, ...]
    """The keyframe's token maps (B, C, h, w) that the pyramid is made of."""
    kept_by_layer: tuple[Tensor, ...] = ()
    """The places of the tokens kept by each dropout layer, (B, M_i) each."""

    @property
    def detections(self) -> Detections:
        """The last stage's boxes with the last block's actions: what inference uses."""
        return Detections(self.person_logits[-1], self.boxes[-1], self.action_logits[-1])

    def of(self, keyframes: Tensor) -> DetectorOutputs:
        """Return the outputs for some keyframes, (N,) int64."""
        return DetectorOutputs(
            self.person_logits[:, keyframes],
            self.boxes[:, keyframes],
            self.action_logits[:, keyframes],
            tuple(part[keyframes] for part in self.maps),
            tuple(part[keyframes] for part in self.kept_by_layer),
        )


class ScoredBoxes(NamedTuple):
    """Decoded detections of one keyframe: boxes (N, 4) xyxy in pixels of the original video, scores (N, K),
    person_scores (N,)."""

    boxes: Tensor
    scores: Tensor
    person_scores: Tensor


ScoreRule = Literal["person_x_action", "action"]


def score_proposals(
    detections: Detections, image_sizes: Tensor, original_sizes: Tensor, score: ScoreRule = "action"
) -> ScoredBoxes:
    """Return every proposal's box, clipped to the frame, and scores: (B, Q, ...) of constant shape.

    Arguments as in ``decode_detections``.
    """
    if score not in ("person_x_action", "action"):
        raise ValueError(f"score must be 'person_x_action' or 'action', got {score!r}")
    persons = detections.person_logits.float().softmax(-1)[..., 0]  # (B, Q)
    actions = detections.action_logits.float().sigmoid()
    scores = actions * persons[..., None] if score == "person_x_action" else actions
    network = image_sizes.flip(-1).repeat(1, 2)[:, None].to(persons)  # (B, 1, 4): width, height, width, height
    original = original_sizes.flip(-1).repeat(1, 2)[:, None].to(persons)
    boxes = torch.minimum(detections.boxes.float().clamp(min=0), network - 1)
    boxes = torch.minimum(boxes * (original / network), original)
    return ScoredBoxes(boxes, scores, persons)


def decode_detections(
    detections: Detections,
    image_sizes: Tensor,
    original_sizes: Tensor,
    person_threshold: float = 0.7,
    score: ScoreRule = "action",
) -> list[ScoredBoxes]:
    """Boxes in the original video with action scores, one entry per keyframe.

    Proposals with a person score of at least ``person_threshold`` are kept; where there is none, all are (EVAD; no
    NMS). Boxes are clipped to the frame. ``score="action"`` is EVAD's rule; ``person_x_action`` multiplies by the
    person score, which ranks proposals by both and suits a threshold of 0.

    Shapes: detections (B, Q, ...), image_sizes and original_sizes (B, 2) height, width.
    """
    boxes, scores, persons = score_proposals(detections, image_sizes, original_sizes, score)
    finite = persons.isfinite() & scores.isfinite().all(dim=2)  # with a look-ahead they break frames apart
    if not finite.all():
        broken = (~finite.all(dim=1)).nonzero()[:, 0].tolist()
        raise ValueError(
            f"detections of keyframes {broken} of {len(persons)} are NaN: the frames, the stream's state or the "
            "weights hold NaN, or the precision is too low. Start such a stream anew with initial_state"
        )
    keep = persons >= person_threshold
    keep = keep | ~keep.any(dim=1, keepdim=True)
    return [ScoredBoxes(boxes[item, mask], scores[item, mask], persons[item, mask]) for item, mask in enumerate(keep)]
