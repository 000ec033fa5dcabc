"""Precision against recall, scores of hits and misses, and whether a score says how often it is right."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..metrics.average_precision import precisions, settle_ties
from .matched import Matched

POINTS = 200
"""A curve has at most so many; more cannot be seen."""
SCORE_BINS = 20
CALIBRATION_BINS = 10


class Curve(NamedTuple):
    """Precision after each of some detections, by recall."""

    recall: np.ndarray
    precision: np.ndarray


def precision_recall(matched: Matched, index: int) -> Curve:
    """Return the curve of a class with ground truth, without envelope."""
    rows = matched.of_class(index, matched.bounds)
    groups = matched.groups[matched.items[rows]]
    hits = settle_ties(matched.taken[rows] >= 0, matched.scores[rows], groups)
    if not len(hits):
        return Curve(np.zeros(1), np.zeros(1))
    recall, precision = np.cumsum(hits) / matched.true_counts[index], precisions(hits)
    steps = np.unique(np.linspace(0, len(hits) - 1, min(len(hits), 50 * POINTS)).astype(int))
    # Even steps of recall: most detections come after the last hit.
    wanted = np.linspace(0, recall[-1], POINTS)
    chosen = np.unique(np.searchsorted(recall[steps], wanted).clip(max=len(steps) - 1))
    return Curve(recall[steps[chosen]], precision[steps[chosen]])


def score_histogram(matched: Matched, index: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return edges (B + 1,) of scores and how many hits (B,) and misses (B,) have one; of a class, or of all."""
    rows = slice(None) if index is None else matched.of_class(index, matched.bounds)
    scores, hit = matched.scores[rows], matched.taken[rows] >= 0
    low, high = (min(0.0, scores.min()), max(1.0, scores.max())) if len(scores) else (0.0, 1.0)
    edges = np.linspace(low, high, SCORE_BINS + 1)
    hits = np.histogram(scores[hit], edges)[0]
    return edges, hits, np.histogram(scores, edges)[0] - hits


class Calibration(NamedTuple):
    """Share of hits among rows of a score, in B bins of the score."""

    edges: np.ndarray
    """(B + 1,)."""
    counts: np.ndarray
    """(B,) int64, rows."""
    mean_scores: np.ndarray
    """(B,), NaN for an empty bin."""
    precisions: np.ndarray
    """(B,) share of hits, NaN for an empty bin."""

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of score and precision, over rows."""
        return self._error(slice(None))

    @property
    def error_of_likely(self) -> float:
        """Expected calibration error without the lowest bin, which holds most rows of a detector of all actions."""
        return self._error(slice(1, None))

    def _error(self, bins: slice) -> float:
        counts = self.counts[bins]
        gaps = np.nan_to_num(np.abs(self.mean_scores - self.precisions)[bins])
        return float((counts * gaps).sum() / counts.sum()) if counts.sum() else float("nan")


def calibration(matched: Matched, index: int | None = None) -> Calibration | None:
    """Return how scores and precision agree, of a class or of all; None for scores that are no probabilities.

    Ten rows of score 0.8, six of them hits: their bin has precision 0.6, and the error is 0.2.
    """
    rows = slice(None) if index is None else matched.of_class(index, matched.bounds)
    scores, hit = matched.scores[rows], matched.taken[rows] >= 0
    if len(scores) and not 0 <= scores.min() <= scores.max() <= 1:
        return None
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    bins = np.minimum((scores * CALIBRATION_BINS).astype(np.int8), CALIBRATION_BINS - 1)
    counts, sums, hits = (
        np.bincount(bins, weights, minlength=CALIBRATION_BINS) for weights in (None, scores, hit.astype(np.float32))
    )
    with np.errstate(invalid="ignore"):
        return Calibration(edges, counts, sums / counts, hits / counts)
