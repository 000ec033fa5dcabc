"""Common parts of linkers and video mAP: the tube, overlap of boxes, suppression of duplicates, filling of gaps."""

from __future__ import annotations

from typing import TypedDict

import numpy as np


class Tube(TypedDict):
    """One person doing one action."""

    label: int
    score: float
    frames: np.ndarray
    """(T,) int64, consecutive."""
    boxes: np.ndarray
    """(T, 4) float64, xyxy."""


def box_iou(a: np.ndarray, b: np.ndarray, extra: float = 0.0) -> np.ndarray:
    """IoU of boxes (..., 4) with boxes (..., 4), leading axes broadcast; ``extra`` is added to every width and height.

    Boxes without area overlap with nothing.
    """
    (left, top, right, bottom), (other_left, other_top, other_right, other_bottom) = (
        (boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]) for boxes in (a, b)
    )
    width = np.maximum(np.minimum(right, other_right) - np.maximum(left, other_left) + extra, 0)
    height = np.maximum(np.minimum(bottom, other_bottom) - np.maximum(top, other_top) + extra, 0)
    inner = width * height
    area = (right - left + extra) * (bottom - top + extra)
    other_area = (other_right - other_left + extra) * (other_bottom - other_top + extra)
    union = area + other_area - inner
    return np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)


def by_score(scores: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Order (N,) of descending score; of equal scores the box further left, then further up, comes first."""
    return np.lexsort((*boxes.T[::-1], -scores))


def without_duplicates(iou: np.ndarray, threshold: float) -> np.ndarray:
    """Greedy non-maximum suppression: (N,) bool of what stays.

    ``iou`` (N, N) is of boxes in order of rank; a box goes if it overlaps by more than ``threshold`` with one that
    stays.
    """
    stays = np.ones(len(iou), dtype=bool)
    for rank in range(len(iou) - 1):
        if stays[rank]:
            stays[rank + 1 :] &= iou[rank, rank + 1 :] <= threshold
    return stays


def fill_gaps(frames: np.ndarray, boxes: np.ndarray, interpolate: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return every frame from first to last with a box: missing ones are interpolated or repeat the box before.

    >>> fill_gaps(np.array([3, 5]), np.array([[0.0, 0, 8, 8], [2.0, 0, 10, 8]]))[1].tolist()
    [[0.0, 0.0, 8.0, 8.0], [1.0, 0.0, 9.0, 8.0], [2.0, 0.0, 10.0, 8.0]]
    """
    every = np.arange(frames[0], frames[-1] + 1)
    if len(every) == len(frames):
        return every, boxes
    if not interpolate:
        return every, boxes[np.searchsorted(frames, every, side="right") - 1]
    return every, np.stack([np.interp(every, frames, corner) for corner in boxes.T], axis=1)
