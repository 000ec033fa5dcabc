"""Matching of overlaps to hits, and average precision of hits, for the detections of one class.

Detections are numbered by rank: number 0 is matched first. *Pairs* of a detection and a target that may be matched are
given as three equally long arrays: detection indices, target indices, overlaps.
"""

from __future__ import annotations

import numpy as np


def first_best(pred: np.ndarray, overlap: np.ndarray) -> np.ndarray:
    """Indices of each detection's pair of largest overlap, the first of equals; ``pred`` is ascending."""
    if not len(pred):
        return np.zeros(0, dtype=np.int64)
    starts = np.flatnonzero(np.r_[True, pred[1:] != pred[:-1]])
    largest = np.maximum.reduceat(overlap, starts)
    ties = np.flatnonzero(overlap == np.repeat(largest, np.diff(np.r_[starts, len(pred)])))
    return ties[np.r_[True, pred[ties][1:] != pred[ties][:-1]]]


def match(pred: np.ndarray, target: np.ndarray, overlap: np.ndarray, num_preds: int, num_targets: int) -> np.ndarray:
    """Let detections, in the order of their rank, each take its best free target among its pairs: (num_preds,) hits."""
    return taken_targets(pred, target, overlap, num_preds, num_targets) >= 0


def taken_targets(
    pred: np.ndarray, target: np.ndarray, overlap: np.ndarray, num_preds: int, num_targets: int
) -> np.ndarray:
    """Return which target each detection takes in ``match``, -1 for none: (num_preds,) int64.

    Of equal overlaps the target of the lower number is better. Rather than one detection after the other, a round
    settles every detection that no earlier one can still interfere with. The first of each frame is always settled, and
    few rounds remain after the first.
    """
    order = np.lexsort((target, -overlap, pred))
    pred, target = pred[order], target[order]
    found = np.full(num_preds, -1)
    taken = np.zeros(num_targets, dtype=bool)
    while len(pred):
        first_claim = np.full(num_targets, num_preds)
        np.minimum.at(first_claim, target, pred)
        favourite = np.r_[True, pred[1:] != pred[:-1]]
        settled = favourite & (first_claim[target] == pred)
        found[pred[settled]] = target[settled]
        taken[target[settled]] = True
        left = ~((found[pred] >= 0) | taken[target])
        pred, target = pred[left], target[left]
    return found


def settle_ties(hits: np.ndarray, scores: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Hits in an order that does not depend on how frames are numbered.

    ``hits``, ``scores`` (descending) and ``frames`` are those of detections in the order in which they were matched.
    Within a frame that order stays. Frames with equal scores take turns: first the first such detection of each frame,
    misses before hits, then the second ones. It is a possible and cautious order of matching: a detector that gives all
    detections the same score is not credited with luck.
    """
    tie = np.cumsum(np.r_[0, scores[1:] != scores[:-1]][: len(scores)])
    if not len(tie) or tie[-1] == len(tie) - 1:
        return hits
    by_frame = np.lexsort((frames, tie))
    starts = np.r_[True, (np.diff(frames[by_frame]) != 0) | (np.diff(tie[by_frame]) != 0)]
    turn = np.empty(len(tie), np.int64)
    turn[by_frame] = np.arange(len(tie)) - np.maximum.accumulate(np.where(starts, np.arange(len(tie)), 0))
    return hits[np.lexsort((hits, turn, tie))]


def precisions(hits: np.ndarray, hit_weight: float = 1.0) -> np.ndarray:
    """Return the precision after each detection, (N,); a hit counts as much as ``hit_weight`` misses."""
    weighted = hit_weight * np.cumsum(hits)
    return weighted / (weighted + np.cumsum(~hits))


def envelope_area(hits: np.ndarray, num_targets: int, hit_weight: float = 1.0) -> float:
    """Return all-point AP (Pascal VOC since 2010): precision made monotone from the right, summed as recall rises."""
    precision = precisions(hits, hit_weight)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[hits].sum() / num_targets)


def trapezoid_area(hits: np.ndarray, num_targets: int, hit_weight: float = 1.0) -> float:
    """AP of ACT and MOC: trapezoids between the raw points, starting from recall 0 at precision 1."""
    precision = np.r_[1.0, precisions(hits, hit_weight)]
    steps = (precision[1:] + precision[:-1]) / 2
    return float(steps[hits].sum() / num_targets)
