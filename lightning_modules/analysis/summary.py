"""Summary of one file of detections, for a page; small for any size of the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from .confusion import confusion
from .costs import KindCost, SingleError, costliest, kind_costs
from .curves import Calibration, Curve, calibration, precision_recall, score_histogram
from .kinds import MISSED, Errors, Kind
from .matched import Matched
from .properties import Property, PropertyScores, by_property

Step = Callable[[str], object]
"""Told what has been done, for a progress bar."""
STEPS = 6
"""Number of reports that ``summarise`` makes."""


class Summary(NamedTuple):
    """Findings in one file; K classes."""

    name: str
    protocol: str
    per_class: np.ndarray
    """(K,) AP, NaN without ground truth."""
    true_counts: np.ndarray
    """(K,) true rows."""
    num_rows: int
    kinds: list[KindCost]
    kinds_per_class: np.ndarray
    """(K, kinds) int64, counts; of confident rows, see ``KindCost``."""
    confusion: np.ndarray
    """(K, K + 1), see ``confusion``."""
    curves: list[Curve | None]
    """Curve of each class, None without ground truth."""
    histograms: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    """Histogram of each class, see ``score_histogram``."""
    calibration: Calibration | None
    calibration_errors: np.ndarray
    """(K,) expected calibration error, NaN where there is none."""
    properties: list[PropertyScores]
    costliest: list[SingleError]

    @property
    def mean_ap(self) -> float:
        """Mean over the classes with ground truth, a fraction."""
        scored = self.per_class[~np.isnan(self.per_class)]
        return float(scored.mean()) if len(scored) else float("nan")


def summarise(
    name: str,
    protocol: str,
    matched: Matched,
    errors: Errors,
    kinds: Sequence[Kind],
    properties: Sequence[Property],
    num_pictures: int,
    step: Step,
    scenes: np.ndarray | None = None,
) -> Summary:
    """Compute everything; ``num_pictures`` of the costliest errors are kept, see ``costliest`` for ``scenes``."""
    classes = range(matched.num_classes)
    there = matched.true_counts > 0
    costs = kind_costs(matched, errors, kinds)
    step("costs of kinds")
    per_class = _kinds_per_class(matched, errors, costs)
    mixed_up = confusion(matched)
    step("confusion")
    curves = [precision_recall(matched, index) if there[index] else None for index in classes]
    histograms = [score_histogram(matched, index) for index in classes]
    step("curves")
    calibrations = [calibration(matched, index) for index in classes]
    overall = calibration(matched)
    step("calibration")
    by = [by_property(matched, each) for each in properties]
    step("properties")
    worst = costliest(matched, errors, num_pictures, scenes)
    step("costliest errors")
    return Summary(
        name,
        protocol,
        matched.average_precisions(),
        matched.true_counts,
        len(matched.classes),
        costs,
        per_class,
        mixed_up,
        curves,
        histograms,
        overall,
        np.asarray([np.nan if each is None else each.error_of_likely for each in calibrations]),
        by,
        worst,
    )


def _kinds_per_class(matched: Matched, errors: Errors, costs: Sequence[KindCost]) -> np.ndarray:
    bounds, counts = matched.bounds, matched.true_counts
    confident = np.arange(len(matched.classes)) - bounds[matched.classes] < counts[matched.classes]
    columns = []
    for cost in costs:
        if cost.kind in MISSED:
            of_kind = matched.true_classes[errors.missed == cost.kind]
        else:
            of_kind = matched.classes[(errors.kinds == cost.kind) & confident]
        columns.append(np.bincount(of_kind, minlength=matched.num_classes))
    return np.stack(columns, axis=1)
