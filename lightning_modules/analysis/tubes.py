"""Reasons why tubes are misplaced: the person was switched, the tube is broken, or frames of it are lost.

A tube that is about a true tube of its action but overlaps it too little is, the first that holds:

- *switched*: it follows two people, each for a fifth of its frames or more;
- *broken*: it has the boxes but too few of the frames, and another tube of its action has further frames of the person;
- *frames lost*: it has the boxes but begins or ends too early or too late;
- *misplaced*: its boxes lie elsewhere.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from ..metrics.tubes import box_iou
from ..metrics.video_ap import TubeRows
from .kinds import Errors, Kind, find_errors
from .matched import Matched

FOLLOWS_IOU = 0.5
"""A tube follows the person whose box it overlaps most, by so much at least."""
LEAST_SHARE, LEAST_FRAMES = 0.2, 2
"""Least part of a tube's frames that must be on one person for the tube to follow them."""


def find_tube_errors(matched: Matched, preds: TubeRows, targets: TubeRows, people: np.ndarray) -> Errors:
    """Return the errors of tubes, the misplaced ones by their reason.

    Args:
        matched, preds: from ``match_tubes``.
        targets: the true tubes that were matched to.
        people: (N,) whose each true tube is, a number within the video; negative where it is not annotated.
    """
    errors = find_errors(matched)
    kinds = errors.kinds.copy()
    reasons = _Reasons(preds, targets, people)
    for row in np.flatnonzero(kinds == Kind.MISPLACED):
        alike = np.flatnonzero((matched.classes == matched.classes[row]) & (preds.videos == preds.videos[row]))
        kinds[row] = reasons.of(int(row), int(errors.targets[row]), alike)
    return errors._replace(kinds=kinds)


class _Reasons:
    """Judge of single tubes of ``preds`` and ``targets``."""

    def __init__(self, preds: TubeRows, targets: TubeRows, people: np.ndarray) -> None:
        self.preds, self.targets, self.people = preds, targets, people

    def of(self, tube: int, target: int, alike: np.ndarray) -> Kind:
        """Return why a tube is no hit of a true one; ``alike`` are all tubes of its video and action, with itself."""
        if self._is_switched(tube):
            return Kind.SWITCHED
        shared, mean_iou = self._shared(tube, target)
        inside = len(shared)
        union = self.preds.lengths[tube] + self.targets.lengths[target] - inside
        if mean_iou <= inside / union:
            return Kind.MISPLACED
        for other in alike[alike != tube].tolist():
            further, other_iou = self._shared(other, target)
            if other_iou >= FOLLOWS_IOU and len(np.setdiff1d(further, shared)):
                return Kind.BROKEN
        return Kind.FRAMES_LOST

    def _shared(self, tube: int, target: int) -> tuple[np.ndarray, float]:
        """The frames that a tube and a true one share, and the mean IoU of their boxes there."""
        first = max(self.preds.starts[tube], self.targets.starts[target])
        last = min(self.preds.ends[tube], self.targets.ends[target])
        frames = np.arange(first, last + 1)
        if not len(frames):
            return frames, 0.0
        return frames, float(box_iou(_boxes(self.preds, tube, frames), _boxes(self.targets, target, frames)).mean())

    def _is_switched(self, tube: int) -> bool:
        frames = np.arange(self.preds.starts[tube], self.preds.ends[tube] + 1)
        best, whose = np.full(len(frames), FOLLOWS_IOU), np.full(len(frames), -1)
        in_video = np.flatnonzero((self.targets.videos == self.preds.videos[tube]) & (self.people >= 0))
        for target in in_video.tolist():
            at = np.flatnonzero((frames >= self.targets.starts[target]) & (frames <= self.targets.ends[target]))
            if not len(at):
                continue
            iou = box_iou(_boxes(self.preds, tube, frames[at]), _boxes(self.targets, target, frames[at]))
            closer = iou >= best[at]
            best[at[closer]] = iou[closer]
            whose[at[closer]] = self.people[target]
        least = max(LEAST_FRAMES, LEAST_SHARE * len(frames))
        followed = Counter(whose[whose >= 0].tolist())
        return sum(count >= least for count in followed.values()) >= 2


def _boxes(tubes: TubeRows, tube: int, frames: np.ndarray) -> np.ndarray:
    """(T, 4) the boxes of a tube at frames that it has."""
    return tubes.boxes[tubes.offsets[tube] + frames - tubes.starts[tube]]
