"""Confusion between actions, of people (segments, tubes) that were found."""

from __future__ import annotations

import numpy as np

from ..metrics.average_precision import taken_targets
from .matched import Matched


def confusion(matched: Matched) -> np.ndarray:
    """Return what the true rows of each class were taken for: (K, K + 1), the last column for what was not found.

    Items, in order of their best score, each take the object that they overlap most, by the threshold at least, if it
    is still free. For an object with n actions the n best-scored actions of its item count. Those that are true are
    right. Each true action that is not among them is divided evenly among those that are wrong. So every line adds up
    to the true rows of its class. Where objects have one action it is the usual matrix.

    A person walks and talks; the best scores of the box are "walk" and "sit". One for walk as walk, one for talk as
    sit.
    """
    num_objects, num_classes = len(matched.object_groups), matched.num_classes
    does = np.zeros((num_objects, num_classes), bool)
    does[matched.true_objects, matched.true_classes] = True
    item_of = _items_of_objects(matched, does.any(axis=1))
    found = np.flatnonzero(item_of >= 0)
    place = np.full(len(matched.groups) + 1, -1)
    place[item_of[found]] = np.arange(len(found))
    rows = np.flatnonzero(place[matched.items] >= 0)
    rows = rows[::-1]  # of two rows of one item and class the better one stays
    scores = np.full((len(found), num_classes), -np.inf)
    scores[place[matched.items[rows]], matched.classes[rows]] = matched.scores[rows]
    rank = np.empty(scores.shape, np.int64)
    np.put_along_axis(rank, np.argsort(-scores, axis=1, kind="stable"), np.arange(num_classes)[None], axis=1)
    true = does[found]
    said = (rank < true.sum(axis=1, keepdims=True)) & np.isfinite(scores)
    result = np.zeros((num_classes, num_classes + 1))
    result[np.arange(num_classes), np.arange(num_classes)] = (true & said).sum(axis=0)
    missing, wrong = true & ~said, said & ~true
    share = missing / np.maximum(missing.sum(axis=1, keepdims=True), 1)
    result[:, :num_classes] += share.T @ wrong
    # An item with too few rows leaves true actions without any prediction.
    result[:, num_classes] = (missing - share * wrong.sum(axis=1, keepdims=True)).sum(axis=0)
    result[:, num_classes] += does[item_of < 0].sum(axis=0)
    return result


def _items_of_objects(matched: Matched, has_rows: np.ndarray) -> np.ndarray:
    """(O,) the item that takes each object, -1 for none."""
    best = np.full(len(matched.groups), -np.inf)
    np.maximum.at(best, matched.items, matched.scores)
    by_score = np.argsort(-best, kind="stable")
    rank = np.empty(len(best), np.int64)
    rank[by_score] = np.arange(len(best))
    close = np.flatnonzero(
        (matched.overlaps >= matched.threshold) & has_rows[matched.pair_objects] & np.isfinite(best[matched.pair_items])
    )
    pair_ranks, objects, overlaps = (
        rank[matched.pair_items[close]],
        matched.pair_objects[close],
        matched.overlaps[close],
    )
    taken = taken_targets(pair_ranks, objects, overlaps, len(best), len(has_rows))
    result = np.full(len(has_rows), -1)
    result[taken[taken >= 0]] = by_score[taken >= 0]
    return result
