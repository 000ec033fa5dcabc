"""Boxes moved on to where their people will be, at the pace at which they came."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from .frame_ap import FrameRows
from .streaming_map import rows_at
from .tubes import box_iou

SAME_IOU = 0.3
"""From one frame to the next, of the boxes of one person."""


def boxes_ahead(
    preds: FrameRows, sources: np.ndarray, previous: np.ndarray, seconds: np.ndarray, between: np.ndarray
) -> FrameRows:
    """Return the rows of frame ``sources[q]`` as those of frame q, like ``rows_at``, with their boxes moved on.

    Each box goes on as its centre has come from the frame before, in a straight line; its size and its scores stay. One
    that overlaps with none of that frame stays where it is.

    Args:
        preds: rows of all frames.
        sources, previous: (Q,) the frame that is moved on and the one before it, -1 for none.
        seconds: (Q,) how far ahead. between: (Q,) from ``previous`` to ``sources``.
    """
    newest, before = rows_at(preds, sources), rows_at(preds, previous)
    frames = np.arange(len(sources) + 1)
    bounds, earlier = np.searchsorted(newest.frames, frames), np.searchsorted(before.frames, frames)
    moved = newest.boxes.copy()
    for frame in np.flatnonzero((sources >= 0) & (previous >= 0) & (seconds > 0) & (between > 0)).tolist():
        here = slice(bounds[frame], bounds[frame + 1])
        boxes, old = newest.boxes[here], before.boxes[earlier[frame] : earlier[frame + 1]]
        iou = box_iou(boxes[:, None], old[None])
        rows, columns = linear_sum_assignment(iou, maximize=True)
        close = iou[rows, columns] >= SAME_IOU
        rows, columns = rows[close], columns[close]
        came = (boxes[rows] - old[columns]).reshape(-1, 2, 2).mean(axis=1)
        moved[here][rows] += np.tile(came * seconds[frame] / between[frame], 2)
    return newest._replace(boxes=moved)
