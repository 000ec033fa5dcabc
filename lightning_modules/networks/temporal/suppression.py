"""Suppression of overlapping segments: soft-NMS and NMS, per class, and voting on a segment's place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from .heads.segment_head import ScoredSegments


def top_segments(scores: Tensor, segments: Tensor, threshold: float, max_segments: int) -> list[ScoredSegments]:
    """The ``max_segments`` best of places and classes whose score is above ``threshold``, best first, for each window.

    Shapes: scores (B, P, K), segments (B, P, 2).
    """
    num_classes = scores.shape[-1]
    best, index = scores.flatten(1).topk(min(max_segments, scores[0].numel()), dim=1)
    place, label = index // num_classes, index % num_classes
    chosen = segments.gather(1, place[..., None].expand(-1, -1, 2))
    counts = (best > threshold).sum(1).tolist()
    return [
        ScoredSegments(chosen[window, :count], best[window, :count], label[window, :count])
        for window, count in enumerate(counts)
    ]


@dataclass(frozen=True)
class SegmentSuppression:
    """Suppression of the segments of one video, merged from its windows, class by class.

    - ``soft``: Gaussian soft-NMS (Bodla et al., ICCV 2017). The best segment is taken, the scores of the others
      of its class are multiplied by exp(-tIoU^2 / sigma), and so on.
    - ``hard``: a segment is left out if its tIoU with a better one of its class is above ``iou_threshold``.
    - ``none``: threshold and number only.

    With ``voting``, each kept segment becomes a weighted mean of all candidates of its class with a tIoU of at least
    ``voting``. Weights are their original scores times that tIoU (ActionFormer). Its score stays.
    """

    method: Literal["soft", "hard", "none"] = "soft"
    sigma: float = 0.5
    iou_threshold: float = 0.5
    voting: float | None = 0.7
    score_threshold: float = 0.001
    """Candidates, and segments with decayed scores, that score no more are left out."""
    max_segments: int = 2000

    def __post_init__(self) -> None:
        if self.method not in ("soft", "hard", "none"):
            raise ValueError(f"method must be soft, hard or none, got {self.method!r}")
        if self.sigma <= 0 or self.max_segments < 1:
            raise ValueError(
                f"sigma and max_segments must be above 0, got sigma={self.sigma}, max_segments={self.max_segments}"
            )
        if self.voting is not None and not 0 < self.voting <= 1:
            raise ValueError(f"voting is a tIoU above 0 and at most 1, or null for no voting, got {self.voting}")

    def __call__(self, candidates: ScoredSegments) -> ScoredSegments:
        """N candidates -> those that are kept, by descending score, on the same device and in the same types."""
        segments, scores, labels = (part.detach().cpu().numpy() for part in candidates)
        segments, scores = segments.astype(np.float64), scores.astype(np.float64)
        is_scored = scores > self.score_threshold
        segments, scores, labels = segments[is_scored], scores[is_scored], labels[is_scored]
        if self.method == "soft":
            kept, kept_scores = self._soft(segments, scores, labels)
        elif self.method == "hard":
            kept, kept_scores = self._hard(segments, scores, labels)
        else:
            kept = np.argsort(-scores, kind="stable")[: self.max_segments]
            kept_scores = scores[kept]
        placed = segments[kept]
        if self.method != "none" and self.voting is not None:
            placed = self._voted(placed, labels[kept], segments, scores, labels)
        return ScoredSegments(
            torch.from_numpy(placed).to(candidates.segments),
            torch.from_numpy(kept_scores).to(candidates.scores),
            torch.from_numpy(labels[kept]).to(candidates.labels),
        )

    def _soft(self, segments: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Indices and decayed scores, the next one of every class at a time."""
        if not len(scores):
            return np.zeros(0, np.int64), scores
        order = np.argsort(labels, kind="stable")
        _, start, counts = np.unique(labels[order], return_index=True, return_counts=True)
        rows = np.arange(len(start))
        # One class a row, (classes, candidates of the class that has most); what fills it up never scores.
        column = np.arange(counts.max())
        place = order[np.minimum(start[:, None] + column, len(order) - 1)]
        left = np.where(column < counts[:, None], scores[place], 0.0)
        begin, end = segments[place, 0], segments[place, 1]
        kept, kept_scores = [], []
        # Scores of a class come in descending order, so none gives more than max_segments of the best of all.
        for _ in range(min(len(column), self.max_segments)):
            best = left.argmax(1)
            score = left[rows, best]
            alive = score > self.score_threshold
            if not alive.all():
                rows, best, score = np.arange(alive.sum()), best[alive], score[alive]
                left, begin, end, place = left[alive], begin[alive], end[alive], place[alive]
                if not len(rows):
                    break
            kept.append(place[rows, best])
            kept_scores.append(score)
            tiou = _tiou(begin[rows, best][:, None], end[rows, best][:, None], begin, end)
            left *= np.exp(-np.square(tiou) / self.sigma)
            left[rows, best] = 0
        places, decayed = np.concatenate(kept), np.concatenate(kept_scores)
        best = np.argsort(-decayed, kind="stable")[: self.max_segments]
        return places[best], decayed[best]

    def _hard(self, segments: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # Boxes of height 1, so that areas are lengths.
        boxes = np.stack([segments[:, 0], np.zeros_like(scores), segments[:, 1], np.ones_like(scores)], axis=1)
        parts = (torch.from_numpy(part) for part in (boxes, scores, labels))
        kept = batched_nms(*parts, self.iou_threshold).numpy()[: self.max_segments]
        return kept, scores[kept]

    def _voted(
        self, kept: np.ndarray, kept_labels: np.ndarray, segments: np.ndarray, scores: np.ndarray, labels: np.ndarray
    ) -> np.ndarray:
        """(M, 2) kept segments, moved to the weighted mean of the candidates of their class that they overlap."""
        moved = kept.copy()
        for label in np.unique(kept_labels):
            mine, voters = np.flatnonzero(kept_labels == label), np.flatnonzero(labels == label)
            tiou = _tiou(*kept[mine, :, None].transpose(1, 0, 2), *segments[voters].T)
            weights = np.where(tiou >= self.voting, tiou * scores[voters], 0)
            total = weights.sum(1, keepdims=True)
            # A segment of no length overlaps nothing, itself included.
            moved[mine] = np.where(total > 0, weights @ segments[voters] / np.maximum(total, 1e-300), kept[mine])
        return moved


def _tiou(start: np.ndarray, end: np.ndarray, other_start: np.ndarray, other_end: np.ndarray) -> np.ndarray:
    both = np.maximum(np.minimum(end, other_end) - np.maximum(start, other_start), 0)
    either = (end - start) + (other_end - other_start) - both
    return both / np.maximum(either, 1e-12)
