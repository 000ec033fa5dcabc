"""Kinds of error in TIDE's manner, for detectors that predict several actions of one person.

After TIDE (Bolya et al., 2020, https://arxiv.org/abs/2008.08115) and, for segments, DETAD (Alwassel et al., 2018,
https://arxiv.org/abs/1807.10706). Every row that is no hit has exactly one kind, the first that holds:

| kind | the row's best overlap |
|---|---|
| misplaced | with an object that does the row's action is below the threshold, but not below ``background`` |
| wrong action | with an object that does *not* do it is at least the threshold |
| duplicate | with an object that does it is at least the threshold: another row has taken it |
| background | with any object is at most ``background`` |
| both | all others: the wrong action, and misplaced |

A true row that is not found, and that no wrong or misplaced row could be repaired into, is *missed*. It is a ``missed
action`` if an item does overlap the object enough, otherwise a ``missed person``, or a ``missed segment``.

Where every object has one action, these are TIDE's kinds, which asks for the overlap with *true rows* of other classes.
A person who walks and talks would make every second detection of the walk a wrong action, since the row of the talk is
there. So objects are compared here, not their rows.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np

from ..metrics.average_precision import first_best
from .matched import Matched

BACKGROUND_OVERLAP = 0.1
"""TIDE's and DETAD's."""


class Kind(IntEnum):
    """Kind of a row; ``HIT`` is no error. ``SWITCHED``, ``BROKEN`` and ``FRAMES_LOST`` say why a tube is misplaced."""

    HIT = 0
    WRONG_ACTION = 1
    MISPLACED = 2
    BOTH = 3
    DUPLICATE = 4
    BACKGROUND = 5
    MISSED_PERSON = 6
    MISSED_ACTION = 7
    SWITCHED = 8
    BROKEN = 9
    FRAMES_LOST = 10
    MISSED_SEGMENT = 11

    @property
    def words(self) -> str:
        """The kind as people read it."""
        return self.name.lower().replace("_", " ")


MISSED = (Kind.MISSED_PERSON, Kind.MISSED_SEGMENT, Kind.MISSED_ACTION)
BOX_KINDS = tuple(kind for kind in Kind if Kind.HIT < kind < Kind.SWITCHED)
SEGMENT_KINDS = tuple(Kind.MISSED_SEGMENT if kind == Kind.MISSED_PERSON else kind for kind in BOX_KINDS)
TUBE_KINDS = (*BOX_KINDS[:2], Kind.SWITCHED, Kind.BROKEN, Kind.FRAMES_LOST, *BOX_KINDS[2:])


class Errors(NamedTuple):
    """The kinds of R rows and M true rows."""

    kinds: np.ndarray
    """(R,) int8."""
    targets: np.ndarray
    """(R,) int32, the true row that an error is about; -1 for background and both, and for hits."""
    repairs: np.ndarray
    """(R,) int32, the true row that an error finds once it is repaired; -1 where it goes instead."""
    missed: np.ndarray
    """(M,) int8, a kind of ``MISSED``; 0 where the true row is found, or would be by a repair."""

    def count(self, kind: Kind) -> int:
        """Return the number of errors of a kind."""
        return int(np.count_nonzero((self.missed if kind in MISSED else self.kinds) == kind))


def find_errors(matched: Matched, background: float = BACKGROUND_OVERLAP, missed: Kind = Kind.MISSED_PERSON) -> Errors:
    """Return the kind of every row and of every true row; ``missed`` is the kind of those that nothing overlaps.

    An example: one frame with a person who walks. A row "walk" on the person scored 0.9 is a hit, a second one scored
    0.8 a duplicate, a row "sit" a wrong action. At an overlap of 0.3 a row "walk" is misplaced, a row "sit" both. Any
    row without a person counts as background.
    """
    num_rows, num_objects = len(matched.classes), len(matched.object_groups)
    kinds = np.zeros(num_rows, np.int8)
    targets = np.full(num_rows, -1, np.int32)
    nearest = _Nearest(matched)
    any_overlap = nearest.best(np.ones(num_objects, bool))[0]
    bounds, threshold = matched.bounds, matched.threshold
    wrong: list[tuple[np.ndarray, np.ndarray]] = []
    for index in np.flatnonzero(np.diff(bounds)):
        rows = matched.of_class(index, bounds)
        items = matched.items[rows]
        row_of = np.full(num_objects, -1)
        of_class = np.flatnonzero(matched.true_classes == index)
        row_of[matched.true_objects[of_class]] = of_class
        same, same_object = (values[items] for values in nearest.best(row_of >= 0))
        other, other_object = (values[items] for values in nearest.best(row_of < 0))
        kind = np.select(
            [
                matched.taken[rows] >= 0,
                (same >= background) & (same < threshold),
                other >= threshold,
                same >= threshold,
                any_overlap[items] <= background,
            ],
            [Kind.HIT, Kind.MISPLACED, Kind.WRONG_ACTION, Kind.DUPLICATE, Kind.BACKGROUND],
            Kind.BOTH,
        )
        kinds[rows] = kind
        about = np.isin(kind, (Kind.MISPLACED, Kind.DUPLICATE))
        targets[rows][about] = row_of[same_object[about]]
        places = np.flatnonzero(kind == Kind.WRONG_ACTION)
        wrong.append((places + rows.start, other_object[places]))
    if wrong:
        _aim(matched, targets, *(np.concatenate(part) for part in zip(*wrong, strict=True)))
    repairs = _repairs(matched, kinds, targets)
    return Errors(kinds, targets, repairs, _missed(matched, repairs, missed))


class _Nearest:
    """The object that overlaps each item most, among some."""

    def __init__(self, matched: Matched) -> None:
        self._matched = matched

    def best(self, objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Overlap (I,), 0 where there is none, and object (I,), -1; ``objects`` (O,) bool says which may be it."""
        pairs = np.flatnonzero(objects[self._matched.pair_objects])
        items, overlaps = self._matched.pair_items[pairs], self._matched.overlaps[pairs]
        best = first_best(items, overlaps)
        overlap, nearest = np.zeros(len(self._matched.groups)), np.full(len(self._matched.groups), -1)
        overlap[items[best]] = overlaps[best]
        nearest[items[best]] = self._matched.pair_objects[pairs[best]]
        return overlap, nearest


def _aim(matched: Matched, targets: np.ndarray, rows: np.ndarray, objects: np.ndarray) -> None:
    """Say which true row each wrong action is about: the best-scored about the first that no other row took, and so on.

    Of an object whose true rows are all taken it is about the first of them.
    """
    by_object = np.lexsort((matched.true_classes, matched.true_objects))
    found = np.zeros(len(matched.true_classes), bool)
    found[matched.taken[matched.taken >= 0]] = True
    num_objects = len(matched.object_groups)
    first = np.full(num_objects, -1)
    first[matched.true_objects[by_object[::-1]]] = by_object[::-1]
    targets[rows] = first[objects]
    free = by_object[~found[by_object]]
    counts = np.bincount(matched.true_objects[free], minlength=num_objects)
    offsets = np.cumsum(counts) - counts
    useful = np.flatnonzero(counts[objects])
    rows, objects = rows[useful], objects[useful]
    order = np.lexsort((rows, -matched.scores[rows], objects))
    rows, objects = rows[order], objects[order]
    place = np.arange(len(rows)) - np.searchsorted(objects, objects, side="left")
    targets[rows] = free[offsets[objects] + place % counts[objects]]


def _repairs(matched: Matched, kinds: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Assign to each missed true row the best-scored misplaced or wrong row about it: once repaired, it is the hit."""
    found = np.zeros(len(matched.true_classes), bool)
    found[matched.taken[matched.taken >= 0]] = True
    rows = np.flatnonzero(((kinds == Kind.MISPLACED) | (kinds == Kind.WRONG_ACTION)) & (targets >= 0))
    rows = rows[~found[targets[rows]]]
    rows = rows[np.lexsort((rows, -matched.scores[rows], targets[rows]))]
    best = rows[np.r_[True, targets[rows][1:] != targets[rows][:-1]][: len(rows)]]
    repairs = np.full(len(kinds), -1, np.int32)
    repairs[best] = targets[best]
    return repairs


def _missed(matched: Matched, repairs: np.ndarray, kind_unseen: Kind) -> np.ndarray:
    """(M,) the kinds of true rows that are not found, nor by any repair."""
    reached = np.zeros(len(matched.true_classes), bool)
    for rows in (matched.taken, repairs):
        reached[rows[rows >= 0]] = True
    has_row = np.zeros(len(matched.groups), bool)
    has_row[matched.items] = True
    close = (matched.overlaps >= matched.threshold) & has_row[matched.pair_items]
    seen = np.zeros(len(matched.object_groups), bool)
    seen[matched.pair_objects[close]] = True
    kind = np.where(seen[matched.true_objects], Kind.MISSED_ACTION, kind_unseen)
    return np.where(reached, 0, kind).astype(np.int8)
