"""Frame AP by how long an action has been going on: what a detector without delay can know, and what it cannot.

Without the future, the first frame of sitting down looks like standing. So the true rows are sorted into bins by the
time since their action's start, and each bin gets an AP of its own:

- Only the true rows of the bin count. A detection that is matched to a true row of another bin is ignored.
- A detection that is matched to nothing is a false positive in every bin, since it has no age.
- Bins hold unequally many rows beside the same false positives. So a hit in a bin with ``n`` of a class's ``N`` rows
  counts ``N / n``: precision is what it would be if all rows were found as those of the bin are. This is normalised
  precision (Hoiem et al., 2012, https://doi.org/10.1007/978-3-642-33712-3_25). With one bin it is the frame AP.

Two rows of a class, one a bin, are detected with scores 0.9 and 0.7, and 0.8 is a false positive. The first bin has AP
1. In the second a hit counts twice, so its precision is 2 / (2 + 1), and so is its AP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from .average_precision import envelope_area, settle_ties, trapezoid_area
from .frame_ap import FrameMapSettings, FrameRows, matches_by_class

EDGES_SECONDS = (0.25, 0.5, 1.0)
"""Edges between bins; the first bin begins at 0, the last has no end."""


class TimeSinceStart(NamedTuple):
    """AP in each of B bins of time."""

    edges: tuple[float, ...]
    """(B - 1,) seconds."""
    mean: np.ndarray
    """(B,) float64, over the classes that have rows in the bin; NaN where none has."""
    per_class: np.ndarray
    """(B, K) float64, NaN for classes without rows in the bin."""
    counts: np.ndarray
    """(B, K) int64, true rows."""

    def text(self) -> str:
        """Return a table, one line per bin."""
        starts, ends = (0.0, *self.edges), (*(f"{edge:g}" for edge in self.edges), "on")
        lines = [" mAP %      boxes  classes  seconds since the action's start"]
        for start, end, mean, counts in zip(starts, ends, self.mean, self.counts, strict=True):
            value = "-" if np.isnan(mean) else f"{100 * mean:.2f}"
            until = f"{start:g} {end}" if end == "on" else f"{start:g} to {end}"
            lines.append(f"{value:>6} {counts.sum():>10} {(counts > 0).sum():>8}  {until}")
        return "\n".join(lines)


def time_since_start(
    preds: FrameRows,
    targets: FrameRows,
    seconds: np.ndarray,
    num_classes: int,
    settings: FrameMapSettings,
    edges: Sequence[float] = EDGES_SECONDS,
) -> TimeSinceStart:
    """Return the AP of each bin.

    Args:
        preds, targets: as for ``frame_mean_average_precision``.
        seconds: (R,) float64 since the start of the action, for each row of ``targets``; a bin holds its lower edge.
        num_classes: K.
        settings: the protocol; its two rules of which detections count are the caller's to apply.
        edges: ascending, seconds.
    """
    if len(seconds) != len(targets.owners):
        raise ValueError(f"{len(targets.owners)} true rows but {len(seconds)} times since their action's start")
    if list(edges) != sorted(set(edges)) or (len(edges) and edges[0] <= 0):
        raise ValueError(f"edges must be positive and ascending, got {list(edges)}")
    if np.isnan(seconds).any() or (seconds < 0).any():
        raise ValueError("the time since an action's start must be a number of at least 0")
    area = trapezoid_area if settings.protocol == "act" else envelope_area
    bins = np.digitize(seconds, edges)
    per_class = np.full((len(edges) + 1, num_classes), np.nan)
    counts = np.zeros(per_class.shape, np.int64)
    for found in matches_by_class(preds, targets, num_classes, settings.iou_threshold, settings.protocol):
        of_bin = np.bincount(bins[found.targets], minlength=len(edges) + 1)
        counts[:, found.class_index] = of_bin
        taken = np.where(found.taken >= 0, bins[found.taken], -1)
        per_class[:, found.class_index] = areas_by_bin(taken, found.scores, found.frames, of_bin, area)
    scored = [row[~np.isnan(row)] for row in per_class]
    mean = np.asarray([row.mean() if len(row) else np.nan for row in scored])
    return TimeSinceStart(tuple(edges), mean, per_class, counts)


def areas_by_bin(
    taken: np.ndarray,
    scores: np.ndarray,
    frames: np.ndarray,
    counts: np.ndarray,
    area: Callable[[np.ndarray, int, float], float],
) -> np.ndarray:
    """Return the AP of one class in each of B bins of its true rows, (B,) float64; NaN for an empty bin.

    Args:
        taken: (R,) the bin of the true row that each detection is matched to, -1 for none; in order of rank.
        scores, frames: (R,) of the detections.
        counts: (B,) true rows in each bin.
        area: from hits, number of true rows and weight of a hit to the AP.
    """
    result = np.full(len(counts), np.nan)
    for number in np.flatnonzero(counts):
        is_hit = taken == number
        kept = is_hit | (taken < 0)
        hits = settle_ties(is_hit[kept], scores[kept], frames[kept])
        result[number] = area(hits, int(counts[number]), float(counts.sum() / counts[number]))
    return result
