"""Losses of a student against its frozen teacher, inferred: the paper's body is not public (`PAPERS.md`, 1.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .matching import paired_giou


class FeatureLoss(nn.Module):
    """Mean squared difference of layer-normed token features at the pyramid's layers.

    Without learned scale or shift: what is compared is a token's direction, not its size. A student of another width is
    compared through a learned linear map at each layer (Romero et al., "FitNets", 2015), which serves training alone.

    Shapes: two sequences of maps, (B, C, h, w) of the student and (B, D, h, w) of the teacher; inside (B, h, w) bool,
    False for tokens of padding, which do not count (None: all do).

    Args:
        dims: C and D, where they differ. num_layers: maps that are compared.
    """

    def __init__(self, dims: tuple[int, int] | None = None, num_layers: int = 4) -> None:
        super().__init__()
        maps = [nn.Conv2d(*dims, kernel_size=1, bias=False) for _ in range(num_layers)] if dims else []
        self.projections = nn.ModuleList(maps)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], inside: Tensor | None = None) -> Tensor:
        if self.projections:
            student = [project(own) for project, own in zip(self.projections, student, strict=True)]
        losses = [
            _mean((self._normed(own) - self._normed(taught)).square().mean(-1), inside)
            for own, taught in zip(student, teacher, strict=True)
        ]
        return torch.stack(losses).mean()

    @staticmethod
    def _normed(maps: Tensor) -> Tensor:
        return F.layer_norm(maps.permute(0, 2, 3, 1).float(), maps.shape[1:2])


class AttentionImitation(nn.Module):
    """Divergence of the attention that tokens pay to their own frame from the teacher's, renormalised to that frame.

    Only same-frame attention is compared: the student has no joint map over space and time that could follow the
    teacher's (`PAPERS.md`, 1.4). Zero where both agree.

    Shapes: queries and keys (B, H, N, D) of the student and of the teacher; inside (B, N) bool, False for tokens of
    padding, which neither pay nor get attention (None: there are none).
    """

    def forward(
        self, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], inside: Tensor | None = None
    ) -> Tensor:
        own, other = (self._log_attention(*pair, inside) for pair in (student, teacher))
        divergence = F.kl_div(own, other, log_target=True, reduction="none").sum(-1)
        return _mean(divergence.mean(dim=1), inside)

    @staticmethod
    def _log_attention(query: Tensor, key: Tensor, inside: Tensor | None) -> Tensor:
        # Autocast would multiply in half precision, which has too few digits, and no -1e9 in float16.
        with torch.autocast(query.device.type, enabled=False):
            scores = query.float() * query.shape[-1] ** -0.5 @ key.float().transpose(-2, -1)
        if inside is not None:
            scores = scores.masked_fill(~inside[:, None, None], -1e9)  # not infinite: 0 times infinity is NaN
        return scores.log_softmax(-1)


class ActionImitation(nn.Module):
    """Binary cross-entropy of action scores with the teacher's, less the entropy of these.

    A perfect imitation is a loss of zero. Proposals are compared by index, see ``DistillationModule``; each is weighted
    by the teacher's person score. Shapes: student (D, B, Q, K) of D decoder blocks, teacher (B, Q, K), persons (B, Q).

    Args:
        confidence: only scores count of which the teacher is at least so sure, one way or the other: from 0.5, all
            scores, to below 1.
    """

    def __init__(self, confidence: float = 0.5) -> None:
        super().__init__()
        if not 0.5 <= confidence < 1:
            raise ValueError(f"confidence must be at least 0.5, which takes all scores, and below 1, got {confidence}")
        self.confidence = confidence

    def forward(self, student: Tensor, teacher: Tensor, persons: Tensor) -> Tensor:
        logits = teacher.float().expand_as(student)
        soft = logits.sigmoid()
        loss = F.binary_cross_entropy_with_logits(student.float(), soft, reduction="none")
        # From logits: autocast on a GPU refuses the cross-entropy of probabilities.
        entropy = F.binary_cross_entropy_with_logits(logits, soft, reduction="none")
        divergence = (loss - entropy) * (torch.maximum(soft, 1 - soft) >= self.confidence)
        weighted = divergence.mean(dim=(0, 3)) * persons
        return weighted.sum() / persons.sum().clamp(min=1e-6)


class BoxImitation(nn.Module):
    """Imitation of the teacher's boxes and person scores: L1 + (1 - GIoU), weighted by its person score (equation 11),
    plus the cross-entropy of the person scores.

    Shapes: student logits (R, B, Q, 2) and boxes (R, B, Q, 4) of R stages, each compared with the teacher's last
    (B, Q, 2) and (B, Q, 4); image_sizes (B, 2) height, width.
    """

    def __init__(self, l1_weight: float = 5.0, giou_weight: float = 2.0, person_weight: float = 2.0) -> None:
        super().__init__()
        self.l1_weight, self.giou_weight, self.person_weight = l1_weight, giou_weight, person_weight

    def forward(
        self, logits: Tensor, boxes: Tensor, teacher_logits: Tensor, teacher_boxes: Tensor, image_sizes: Tensor
    ) -> Tensor:
        scale = image_sizes.flip(-1).repeat(1, 2)[:, None].to(teacher_boxes)
        persons = teacher_logits.float().softmax(-1)
        l1 = ((boxes - teacher_boxes) / scale).abs().sum(-1)
        giou = paired_giou(boxes.float(), teacher_boxes.float().expand_as(boxes))
        places = (self.l1_weight * l1 + self.giou_weight * (1 - giou)).mean(0) * persons[..., 0]
        divergence = F.kl_div(
            logits.float().log_softmax(-1),
            persons.clamp(min=1e-8).log().expand_as(logits),
            log_target=True,
            reduction="none",
        )
        return places.sum() / persons[..., 0].sum().clamp(min=1e-6) + self.person_weight * divergence.sum(-1).mean()


def _mean(values: Tensor, inside: Tensor | None) -> Tensor:
    """Mean over the tokens inside the frames."""
    return values.mean() if inside is None else (values * inside).sum() / inside.sum()
