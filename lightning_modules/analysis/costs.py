"""Cost of errors in mAP: the gain where one kind, or one error alone, is repaired.

A wrong or misplaced row becomes a hit of its true row, if that was missed and no better row could be repaired into it.
Otherwise it is removed, as are duplicates, background and both. What was missed need no longer be found. So the costs
of the kinds do not add up to the gap to 100 %: several errors may prevent one hit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np

from .kinds import MISSED, Errors, Kind
from .matched import Matched

CANDIDATES = 60
"""So many single errors have their exact cost computed."""


class KindCost(NamedTuple):
    """Cost of a kind of error."""

    kind: Kind
    cost: float
    """mAP that is gained where it alone is repaired, a fraction."""
    count: int
    confident: int
    """Errors of the count whose score only N rows of their class reach, N being the class's true rows. Missed ones have
    no score and all count."""


class SingleError(NamedTuple):
    """One error."""

    kind: Kind
    cost: float
    """mAP that is gained where it alone is repaired, a fraction."""
    row: int
    """Row of ``Matched``; -1 where something was missed."""
    true_row: int
    """True row that the error is about; -1 for none."""


def kind_costs(matched: Matched, errors: Errors, kinds: Iterable[Kind]) -> list[KindCost]:
    """Return cost and count of each kind."""
    before = matched.average_precisions()
    confident = is_confident(matched)
    result = []
    for kind in kinds:
        cost = float(np.nanmean(after_repair(matched, errors, [kind], before) - before)) if len(before) else 0.0
        is_missed = kind in MISSED
        count = errors.count(kind)
        likely = count if is_missed else int(np.count_nonzero((errors.kinds == kind) & confident))
        result.append(KindCost(kind, cost, count, likely))
    return result


def is_confident(matched: Matched) -> np.ndarray:
    """(R,) bool: the first N rows of a class of N true rows."""
    bounds, counts = matched.bounds, matched.true_counts
    rank = np.arange(len(matched.classes)) - bounds[matched.classes]
    return rank < counts[matched.classes]


def after_repair(
    matched: Matched, errors: Errors, kinds: Collection[Kind], before: np.ndarray | None = None
) -> np.ndarray:
    """Return the AP of each class where these kinds are repaired, (K,), NaN without ground truth.

    Args:
        before: the AP of each class as it is, which saves computing those that stay.
    """
    repaired = np.zeros(len(Kind), bool)
    repaired[list(kinds)] = True
    changed = np.flatnonzero(repaired[errors.kinds])
    moved = changed[(errors.kinds[changed] == Kind.WRONG_ACTION) & (errors.repairs[changed] >= 0)]
    no_longer = np.flatnonzero(repaired[errors.missed])
    touched = np.zeros(matched.num_classes, bool)
    touched[matched.classes[changed]] = True
    touched[matched.true_classes[errors.repairs[moved]]] = True
    touched[matched.true_classes[no_longer]] = True
    result = matched.average_precisions() if before is None else before.copy()
    counts, bounds = matched.true_counts, matched.bounds
    fewer = np.bincount(matched.true_classes[no_longer], minlength=matched.num_classes)
    for index in np.flatnonzero(touched & (counts > 0)):
        rows = matched.of_class(index, bounds)
        arriving = moved[matched.true_classes[errors.repairs[moved]] == index]
        result[index] = _repaired_class(
            matched, errors, rows, repaired[errors.kinds[rows]], arriving, int(counts[index] - fewer[index])
        )
    return result


def _repaired_class(
    matched: Matched, errors: Errors, rows: slice, repaired: np.ndarray, arriving: np.ndarray, num_true: int
) -> float:
    """AP of a class whose ``repaired`` (n,) rows are, and to which the rows ``arriving`` come as hits."""
    becomes_hit = repaired & (errors.repairs[rows] >= 0) & (errors.kinds[rows] != Kind.WRONG_ACTION)
    kept = np.flatnonzero(~repaired | becomes_hit)
    hits = (errors.kinds[rows] == Kind.HIT) | becomes_hit
    places = np.concatenate([kept + rows.start, arriving])
    hits = np.concatenate([hits[kept], np.ones(len(arriving), bool)])
    scores, groups = matched.scores[places], matched.groups[matched.items[places]]
    if len(arriving):
        order = np.argsort(-scores, kind="stable")
        hits, scores, groups = hits[order], scores[order], groups[order]
    return matched.average_precision(hits, scores, groups, num_true)


def costliest(matched: Matched, errors: Errors, count: int, scenes: np.ndarray | None = None) -> list[SingleError]:
    """Return the errors that cost the most, each alone; at most one of a kind, class and scene.

    All are ranked by what they cost without the envelope of precision; the first ``CANDIDATES`` exactly.

    Args:
        scenes: of each group, such as the video of each frame; without, every group is a scene.
    """
    of_rows, of_missed = _estimates(matched, errors)
    chosen: dict[tuple[int, ...], tuple[int, int]] = {}
    limit = max(count, CANDIDATES)
    both = np.concatenate([of_rows, of_missed])
    for place in np.argsort(-both, kind="stable")[: 50 * limit].tolist():
        if both[place] <= 0 or len(chosen) >= limit:
            break
        row, true_row = (place, int(errors.targets[place])) if place < len(of_rows) else (-1, place - len(of_rows))
        if row >= 0:
            key = (errors.kinds[row], matched.classes[row], matched.groups[matched.items[row]])
        else:
            group = matched.object_groups[matched.true_objects[true_row]]
            key = (errors.missed[true_row], matched.true_classes[true_row], group)
        key = key if scenes is None else (*key[:2], scenes[key[2]])
        chosen.setdefault(tuple(map(int, key)), (row, true_row))
    before = matched.average_precisions()
    found = [_single(matched, errors, row, true_row, before) for row, true_row in chosen.values()]
    return sorted(found, key=lambda error: -error.cost)[:count]


def _single(matched: Matched, errors: Errors, row: int, true_row: int, before: np.ndarray) -> SingleError:
    """Return one error with its exact cost."""
    counts, bounds = matched.true_counts, matched.bounds
    if row < 0:
        index = int(matched.true_classes[true_row])
        rows = matched.of_class(index, bounds)
        nothing = np.zeros(rows.stop - rows.start, bool)
        after = _repaired_class(matched, errors, rows, nothing, np.zeros(0, np.int64), int(counts[index]) - 1)
        gain, kind = after - before[index], Kind(int(errors.missed[true_row]))
    else:
        index, kind = int(matched.classes[row]), Kind(int(errors.kinds[row]))
        rows, gain = matched.of_class(index, bounds), 0.0
        if counts[index]:
            alone = np.zeros(rows.stop - rows.start, bool)
            alone[row - rows.start] = True
            after = _repaired_class(matched, errors, rows, alone, np.zeros(0, np.int64), int(counts[index]))
            gain = after - before[index]
        if kind == Kind.WRONG_ACTION and errors.repairs[row] >= 0:
            index = int(matched.true_classes[errors.repairs[row]])
            rows = matched.of_class(index, bounds)
            nothing = np.zeros(rows.stop - rows.start, bool)
            after = _repaired_class(matched, errors, rows, nothing, np.asarray([row]), int(counts[index]))
            gain += after - before[index]
    return SingleError(kind, float(gain / np.count_nonzero(counts)), row, true_row)


def _estimates(matched: Matched, errors: Errors) -> tuple[np.ndarray, np.ndarray]:
    """Return the cost of each row (R,) and missed true row (M,) in AP without envelope, times the number of classes."""
    of_rows = np.zeros(len(matched.classes), np.float32)
    of_missed = np.zeros(len(matched.true_classes), np.float32)
    counts, bounds = matched.true_counts, matched.bounds
    moved = np.flatnonzero((errors.kinds == Kind.WRONG_ACTION) & (errors.repairs >= 0))
    moved_to = matched.true_classes[errors.repairs[moved]]
    for index in np.flatnonzero(counts):
        rows, num_true = matched.of_class(index, bounds), int(counts[index])
        hit = errors.kinds[rows] == Kind.HIT
        place, found = np.arange(1, len(hit) + 1), np.cumsum(hit)
        precision = found / np.maximum(place, 1)
        one_less = _sum_after(hit * (found / np.maximum(place - 1, 1) - precision))
        one_more = (found + 1) / np.maximum(place, 1) + _sum_after(hit / np.maximum(place, 1))
        is_repaired = (errors.repairs[rows] >= 0) & (errors.kinds[rows] != Kind.WRONG_ACTION)
        of_rows[rows] += np.where(hit, 0, np.where(is_repaired, one_more, one_less)) / num_true
        missed = np.flatnonzero((errors.missed > 0) & (matched.true_classes == index))
        area = (precision * hit).sum() / num_true
        of_missed[missed] = area / (num_true - 1) if num_true > 1 else 1 - area
        arriving = moved[moved_to == index]
        before = np.searchsorted(-matched.scores[rows], -matched.scores[arriving], side="right")
        gains = hit * ((found + 1) / (place + 1) - precision)
        later = np.append(np.cumsum(gains[::-1])[::-1], 0.0)[before]
        so_far = np.append(0, found)[before]
        of_rows[arriving] += ((so_far + 1) / (before + 1) + later) / num_true
    return of_rows, of_missed


def _sum_after(values: np.ndarray) -> np.ndarray:
    """(n,) for each place the sum of all that come after it."""
    return np.cumsum(values[::-1])[::-1] - values
