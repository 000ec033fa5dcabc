"""AP by what the ground truth is like: small or large, alone or in a crowd, at its start or near its end.

Each property sorts the true rows into bins, and each bin has an AP of its own. Precision is normalised by the number of
true rows in the bin (Hoiem et al., 2012); ``metrics.time_since_start`` has the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ..metrics.time_since_start import areas_by_bin
from .matched import Matched

TIME_EDGES = (0.25, 0.5, 1.0)
SHARE_EDGES = tuple(range(10, 100, 10))
PEOPLE = ("1", "2", "3", "4 or more")
OVERLAP_EDGES = (0.01, 0.25)


class Property(NamedTuple):
    """One property in which true rows differ."""

    name: str
    labels: tuple[str, ...]
    """Names of the B bins."""
    bins: np.ndarray
    """(M,) int64, that of each true row; -1 where it is not known."""


class PropertyScores(NamedTuple):
    """AP by one property."""

    property: Property
    mean: np.ndarray
    """(B,) over the classes that have true rows in the bin, NaN where none has."""
    counts: np.ndarray
    """(B,) true rows."""


def binned(name: str, values: np.ndarray, edges: Sequence[float], unit: str = "") -> Property:
    """Sort values (M,) into the bins that ascending edges part; a bin holds its lower edge. NaN is not known."""
    edges = list(edges)
    unit = f" {unit}" if unit else ""
    shown = [f"{edge:.3g}" for edge in edges]
    middle = [f"{low} to {high}{unit}" for low, high in pairwise(shown)]
    labels = (f"below {shown[0]}{unit}", *middle, f"{shown[-1]}{unit} or more") if edges else ("all",)
    bins = np.digitize(np.nan_to_num(values), edges)
    return Property(name, labels, np.where(np.isnan(values), -1, bins))


def thirds(name: str, values: np.ndarray, unit: str = "") -> Property:
    """Sort values (M,) into three bins of about as many true rows; fewer where many are equal."""
    known = values[~np.isnan(values)]
    edges = np.unique(np.quantile(known, [1 / 3, 2 / 3])) if len(known) else np.zeros(0)
    # An edge at the lowest value would leave the bin below it empty.
    return binned(name, values, edges[edges > known.min()] if len(known) else edges, unit)


def by_property(matched: Matched, of: Property) -> PropertyScores:
    """Return the AP of each bin. Rows that are matched to true rows of other bins, or of none, are ignored."""
    num_bins, bounds = len(of.labels), matched.bounds
    per_class = np.full((num_bins, matched.num_classes), np.nan)
    counts = np.zeros(num_bins, np.int64)
    for index in np.flatnonzero(matched.true_counts):
        of_class = of.bins[matched.true_classes == index]
        in_bins = np.bincount(of_class[of_class >= 0], minlength=num_bins)
        counts += in_bins
        rows = matched.of_class(index, bounds)
        # Not known is a bin after the last: no miss, but no hit of any bin either.
        known = np.where(of.bins < 0, num_bins, of.bins)
        taken = np.where(matched.taken[rows] >= 0, known[matched.taken[rows]], -1)
        groups = matched.groups[matched.items[rows]]
        per_class[:, index] = areas_by_bin(taken, matched.scores[rows], groups, in_bins, matched.area)
    scored = [row[~np.isnan(row)] for row in per_class]
    return PropertyScores(of, np.asarray([row.mean() if len(row) else np.nan for row in scored]), counts)


class PeopleOfFrame(NamedTuple):
    """Measurements of the M people of a keyframe and of their K actions; NaN where unknown."""

    boxes: np.ndarray
    """(M, 4) pixels."""
    size: tuple[int, int]
    """Height and width of the frame."""
    speeds: np.ndarray | None = None
    """(M,) heights of the box per second."""
    since_start: np.ndarray | None = None
    """(M, K) seconds."""
    until_end: np.ndarray | None = None
    """(M, K) seconds."""


def box_properties(frames: Sequence[PeopleOfFrame], places: np.ndarray) -> list[Property]:
    """Return the properties of true rows, of which ``places`` (R, 3) says keyframe, person and class."""
    frame, person, label = places.T if len(places) else np.zeros((3, 0), np.int64)

    def of_people(per_frame: Sequence[np.ndarray]) -> np.ndarray:
        counts = np.asarray([len(values) for values in per_frame], np.int64)
        flat = np.concatenate([np.zeros(0), *per_frame])
        return flat[(np.cumsum(counts) - counts)[frame] + person] if len(places) else np.zeros(0)

    # Side of a square as large as the box, of one as large as the frame.
    sizes = [
        100 * np.sqrt((one.boxes[:, 2:] - one.boxes[:, :2]).clip(0).prod(axis=1) / np.prod(one.size)) for one in frames
    ]
    people = of_people([np.full(len(one.boxes), len(one.boxes)) for one in frames]).astype(np.int64)
    overlaps = of_people([largest_overlaps(one.boxes) for one in frames])
    found = [
        thirds("size of the person", of_people(sizes), "%"),
        binned("overlap with others", overlaps, OVERLAP_EDGES, "IoU"),
        Property("people in the frame", PEOPLE, np.minimum(people, len(PEOPLE)) - 1),
    ]
    if all(one.speeds is not None for one in frames):
        found.append(thirds("speed", of_people([one.speeds for one in frames]), "heights a second"))
    if all(one.since_start is not None and one.until_end is not None for one in frames):
        since, until = (
            np.asarray([getattr(frames[f], name)[p, k] for f, p, k in zip(frame, person, label, strict=True)], float)
            for name in ("since_start", "until_end")
        )
        duration = since + until
        seen = np.divide(100 * since, duration, out=np.full(len(since), np.nan), where=duration > 0)
        found += [
            binned("time since the action's start", since, TIME_EDGES, "s"),
            binned("time until the action's end", until, TIME_EDGES, "s"),
            binned("share of the action seen", seen, SHARE_EDGES, "%"),
            thirds("duration of the action", duration, "s"),
        ]
    return found


def largest_overlaps(boxes: np.ndarray) -> np.ndarray:
    """(M,) the largest IoU of each box with another one, 0 for a single one."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    inner = (np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - low).clip(0).prod(axis=-1)
    area = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=-1)
    union = area[:, None] + area[None] - inner
    iou = np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)
    np.fill_diagonal(iou, 0)
    return iou.max(axis=1, initial=0)
