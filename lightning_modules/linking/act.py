"""The offline linking of ACT (Kalogeiton et al., ICCV 2017, section 3.3) and MOC, for numbers that compare with theirs.

They link tubelets of several frames; this is the case of tubelets of one frame, which is what a detector of single
frames gives. For each class and frame: non-maximum suppression, then the best ``max_boxes``. Each live tube of the
class, in order of mean score, takes the best-scored free box that overlaps enough with its last one. A box that no tube
takes starts one. IoU counts pixels (+1 on width and height), so boxes must be in pixels.

In ACT a tubelet of six frames covers the up to five frames that a tube may miss. Single frames cannot, so here the
boxes of missed frames are interpolated.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ..metrics.tubes import Tube, box_iou, by_score, fill_gaps, without_duplicates

PIXEL = 1.0
"""Added to every width and height."""


class _GrowingTube:
    """Content of a growing tube: positions of frames, of boxes within them, and scores."""

    def __init__(self, frame: int, box: int, score: float) -> None:
        self.frames, self.boxes, self.scores = [frame], [box], [score]

    def take(self, frame: int, box: int, score: float) -> None:
        self.frames.append(frame)
        self.boxes.append(box)
        self.scores.append(score)

    @property
    def mean_score(self) -> float:
        return sum(self.scores) / len(self.scores)


class ActTubes:
    """The tubes of one video. It is offline: tubes are cut and left out once all frames are known.

    Args:
        num_classes: K.
        nms_threshold: of the suppression inside a frame and class.
        max_boxes: how many boxes of a frame and class are linked.
        iou_threshold: overlap from which on a tube takes a box.
        max_missed: a tube ends when it has missed this many frames.
        min_score: tubes of a lower mean score are left out.
        min_frames: shorter tubes are left out.

    The defaults are ACT's. MOC links with ``iou_threshold=0.5``, ``max_missed`` its number of frames, 7, and
    ``min_score=0.005``, after a soft suppression that is not here.
    """

    def __init__(
        self,
        num_classes: int,
        nms_threshold: float = 0.3,
        max_boxes: int = 10,
        iou_threshold: float = 0.2,
        max_missed: int = 5,
        min_score: float = 0.01,
        min_frames: int = 15,
    ) -> None:
        for name, value in (("nms_threshold", nms_threshold), ("iou_threshold", iou_threshold)):
            if not 0 < value <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {value}")
        counts = {"num_classes": num_classes, "max_boxes": max_boxes, "max_missed": max_missed}
        for name, value in (counts | {"min_frames": min_frames}).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.num_classes = num_classes
        self.nms_threshold, self.max_boxes, self.iou_threshold = nms_threshold, max_boxes, iou_threshold
        self.max_missed, self.min_score, self.min_frames = max_missed, min_score, min_frames
        self._boxes: list[np.ndarray] = []
        self._scores: list[np.ndarray] = []

    def add(self, boxes: Tensor, scores: Tensor, person_scores: Tensor | None = None) -> None:
        """The detections of the next frame: boxes (N, 4) xyxy in pixels, scores (N, K); person scores are not used."""
        if tuple(boxes.shape[1:]) != (4,) or tuple(scores.shape) != (len(boxes), self.num_classes):
            raise ValueError(
                f"boxes must be (N, 4) and scores (N, {self.num_classes}), got {tuple(boxes.shape)} and "
                f"{tuple(scores.shape)}"
            )
        self._boxes.append(boxes.detach().cpu().double().numpy())
        self._scores.append(scores.detach().cpu().double().numpy())

    def tubes(self) -> list[Tube]:
        """The tubes of all frames so far, which are numbered from 0."""
        highest = np.zeros(self.num_classes)
        for scores in self._scores:
            highest = np.maximum(highest, scores.max(axis=0, initial=0.0))
        overlaps = [box_iou(boxes[:, None], boxes, PIXEL) for boxes in self._boxes]
        # A mean is not above the largest: other classes have no tube.
        possible = np.flatnonzero(highest >= self.min_score).tolist()
        return [tube for label in possible for tube in self._of_class(label, overlaps)]

    def _of_class(self, label: int, overlaps: list[np.ndarray]) -> list[Tube]:
        live: list[_GrowingTube] = []
        over: list[_GrowingTube] = []
        for frame, (boxes, scores) in enumerate(zip(self._boxes, self._scores, strict=True)):
            ranked = by_score(scores[:, label], boxes)
            ranked = ranked[without_duplicates(overlaps[frame][np.ix_(ranked, ranked)], self.nms_threshold)]
            free = ranked[: self.max_boxes].tolist()
            live.sort(key=lambda tube: -tube.mean_score)
            last = np.asarray([self._boxes[tube.frames[-1]][tube.boxes[-1]] for tube in live]).reshape(-1, 4)
            close = box_iou(last[:, None], boxes, PIXEL) >= self.iou_threshold  # (tubes, N)
            for tube, near in zip(live, close.tolist(), strict=True):
                taken = next((box for box in free if near[box]), None)
                if taken is not None:
                    free.remove(taken)
                    tube.take(frame, taken, float(scores[taken, label]))
            over += [tube for tube in live if frame - tube.frames[-1] >= self.max_missed]
            live = [tube for tube in live if frame - tube.frames[-1] < self.max_missed]
            live += [_GrowingTube(frame, box, float(scores[box, label])) for box in free]
        tubes = []
        for tube in over + live:
            if tube.mean_score < self.min_score or tube.frames[-1] - tube.frames[0] + 1 < self.min_frames:
                continue
            seen = [self._boxes[frame][box] for frame, box in zip(tube.frames, tube.boxes, strict=True)]
            every, filled = fill_gaps(np.asarray(tube.frames), np.stack(seen))
            tubes.append(Tube(label=label, score=tube.mean_score, frames=every, boxes=filled))
        return tubes
