"""Tracking of the people of one stream, frame by frame, from the past alone; the same live and in evaluation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..metrics.tubes import Tube, box_iou, by_score, fill_gaps, without_duplicates


class LinkedFrame(NamedTuple):
    """The M tracks that are seen in a frame, in order of their ids."""

    track_ids: Tensor
    """(M,) int64, counted from 0 and never used again."""
    boxes: Tensor
    """(M, 4) xyxy, as detected."""
    scores: Tensor
    """(M, K) action scores, smoothed over the track's past."""
    person_scores: Tensor
    """(M,) as detected."""


class OnlineLinker:
    """Online tracker: numbers the people in the detections of one stream, frame by frame.

    A frame is matched with the tracks so far such that the sum of their IoUs is largest. What is matched with nothing
    starts a track. Work and memory of a frame depend on the number of its boxes and on ``max_gap``, not on how long the
    stream has run. The order of a frame's boxes changes nothing.

    Args:
        num_classes: K.
        iou_threshold: overlap with its last box from which on a track goes on.
        min_score: person score from which on a detection is linked.
        max_gap: frames that a track may be unseen, with its last box, and still go on.
        smoothing: weight of the past in ``smoothed = smoothing * smoothed + (1 - smoothing) * scores``; 0 takes the
            scores as they are. A track starts with the scores of its first frame.
        nms_threshold: overlap above which a detection with a lower person score than the other is dropped. Detectors
            without non-maximum suppression see a person more than once.
    """

    def __init__(
        self,
        num_classes: int,
        iou_threshold: float = 0.3,
        min_score: float = 0.3,
        max_gap: int = 5,
        smoothing: float = 0.2,
        nms_threshold: float = 0.6,
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        for name, value in (("iou_threshold", iou_threshold), ("nms_threshold", nms_threshold)):
            if not 0 < value <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {value}")
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {smoothing}; 0 smooths nothing")
        if max_gap < 0:
            raise ValueError(f"max_gap must not be negative, got {max_gap}")
        self.num_classes = num_classes
        self.iou_threshold, self.min_score, self.max_gap = iou_threshold, min_score, max_gap
        self.smoothing, self.nms_threshold = smoothing, nms_threshold
        self.reset()

    def reset(self) -> None:
        """Forget the stream; ids count from 0 again."""
        self._next_id = 0
        self._ids = np.empty(0, np.int64)
        self._boxes = np.empty((0, 4))
        self._scores = np.empty((0, self.num_classes))
        self._missed = np.empty(0, np.int64)

    def update(self, boxes: Tensor, scores: Tensor, person_scores: Tensor) -> LinkedFrame:
        """The tracks seen in the next frame: boxes (N, 4) xyxy, scores (N, K) of actions, person_scores (N,)."""
        expected = {"boxes": (len(boxes), 4), "scores": (len(boxes), self.num_classes), "person_scores": (len(boxes),)}
        for (name, shape), given in zip(expected.items(), (boxes, scores, person_scores), strict=True):
            if tuple(given.shape) != shape:
                raise ValueError(f"{name} must be {shape}, got {tuple(given.shape)}")
        found, actions, persons = (column.detach().cpu().double().numpy() for column in (boxes, scores, person_scores))
        if not np.isfinite(found).all() or not np.isfinite(persons).all() or not np.isfinite(actions).all():
            raise ValueError("boxes or scores are NaN or infinite; leave such detections out")
        kept = by_score(persons, found)
        kept = kept[persons[kept] >= self.min_score]
        kept = kept[without_duplicates(box_iou(found[kept, None], found[kept]), self.nms_threshold)]
        ids, smoothed = self._link(found[kept], actions[kept])
        order = np.argsort(ids)
        rows = torch.from_numpy(kept[order]).to(boxes.device)
        return LinkedFrame(
            torch.from_numpy(ids[order]).to(boxes.device),
            boxes.detach()[rows],
            torch.from_numpy(smoothed[order]).to(scores),
            person_scores.detach()[rows],
        )

    def _link(self, boxes: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids (N,) and smoothed scores (N, K) of a frame's people; the tracks move on by the frame."""
        iou = box_iou(self._boxes[:, None], boxes)
        close = iou >= self.iou_threshold
        tracks, people = linear_sum_assignment(np.where(close, iou, 0.0), maximize=True)
        linked = close[tracks, people]
        tracks, people = tracks[linked], people[linked]
        ids, smoothed = np.full(len(boxes), -1), scores.copy()
        ids[people] = self._ids[tracks]
        smoothed[people] = self.smoothing * self._scores[tracks] + (1 - self.smoothing) * scores[people]
        fresh = ids < 0
        ids[fresh] = self._next_id + np.arange(fresh.sum())
        self._next_id += int(fresh.sum())

        missed = self._missed + 1
        waiting = missed <= self.max_gap
        waiting[tracks] = False
        everyone = np.r_[self._ids[waiting], ids]
        order = np.argsort(everyone)
        self._ids = everyone[order]
        self._boxes = np.concatenate([self._boxes[waiting], boxes])[order]
        self._scores = np.concatenate([self._scores[waiting], smoothed])[order]
        self._missed = np.r_[missed[waiting], np.zeros(len(ids), np.int64)][order]
        return ids, smoothed


class OnlineTubes:
    """The tubes of one video, made of what ``OnlineLinker`` links.

    A track makes a tube of a class for every run of its frames whose smoothed score of the class is at least
    ``score_threshold``. Frames in which the track is unseen neither start nor end a run. A tube's score is the mean of
    the smoothed scores of its seen frames. Ids and scores come from the past alone.

    Args:
        linker: one of its own.
        score_threshold: see above.
        min_frames: shorter tubes are left out.
        interpolate_gaps: where a track is unseen for some frames, place its box on the line between its neighbours.
            That looks ahead to the later neighbour; otherwise the last box stays where it was.
        end_share: a tube begins and ends with a frame whose score is at least this share of its best one; 0 cuts
            nothing. That looks at the whole tube.
        begin_share: the same of its first frame alone; as ``end_share`` by default.
        lead: frames of its track that a tube begins earlier than that. Scores that know no future rise late, which a
            tube can correct as soon as it begins. They also fall late, which ``end_share`` corrects when it is over.
    """

    def __init__(
        self,
        linker: OnlineLinker,
        score_threshold: float = 0.15,
        min_frames: int = 2,
        interpolate_gaps: bool = True,
        end_share: float = 0.0,
        begin_share: float | None = None,
        lead: int = 0,
    ) -> None:
        begin_share = end_share if begin_share is None else begin_share
        for name, share in (("end_share", end_share), ("begin_share", begin_share)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {share}")
        if lead < 0:
            raise ValueError(f"lead must not be negative, got {lead}")
        if min_frames < 1:
            raise ValueError(f"min_frames must be at least 1, got {min_frames}")
        self.linker = linker
        self.score_threshold, self.min_frames = score_threshold, min_frames
        self.interpolate_gaps, self.lead = interpolate_gaps, lead
        self.begin_share, self.end_share = begin_share, end_share
        self._linked: list[LinkedFrame] = []

    def add(self, boxes: Tensor, scores: Tensor, person_scores: Tensor) -> None:
        """The detections of the next frame, see ``OnlineLinker.update``."""
        self._linked.append(self.linker.update(boxes, scores, person_scores))

    def tubes(self) -> list[Tube]:
        """The tubes of all frames so far, which are numbered from 0."""
        if not self._linked:
            return []
        counts = [len(linked.track_ids) for linked in self._linked]
        frames = np.repeat(np.arange(len(counts)), counts)
        ids, boxes, scores = (torch.cat(column).cpu().numpy() for column in list(zip(*self._linked, strict=True))[:3])
        order = np.argsort(ids, kind="stable")  # frames stay in order of time
        frames, boxes, scores = frames[order], boxes[order].astype(np.float64), scores[order].astype(np.float64)
        tubes = []
        for track in np.split(np.arange(len(order)), np.flatnonzero(np.diff(ids[order])) + 1):
            for label, start, stop in _runs(scores[track] >= self.score_threshold):
                of_run = scores[track[start:stop], label]
                first = start + np.flatnonzero(of_run >= self.begin_share * of_run.max())[0]
                last = start + np.flatnonzero(of_run >= self.end_share * of_run.max())[-1]
                score = scores[track[first : last + 1], label].mean()
                rows = track[self._earlier(frames[track], first) : last + 1]
                every, filled = fill_gaps(frames[rows], boxes[rows], self.interpolate_gaps)
                if len(every) >= self.min_frames:
                    tubes.append(Tube(label=label, score=score, frames=every, boxes=filled))
        return tubes

    def _earlier(self, frames: np.ndarray, first: int) -> int:
        """Return the place in a track, seen in ``frames``, where a tube begins whose scores do at place ``first``."""
        return int(np.searchsorted(frames, frames[first] - self.lead))


def _runs(active: np.ndarray) -> list[tuple[int, int, int]]:
    """(column, start, stop) of every run of True down the columns of (n, K).

    >>> _runs(np.array([[1, 0], [1, 1], [0, 1], [1, 0]], bool))
    [(0, 0, 2), (0, 3, 4), (1, 1, 3)]
    """
    edges = np.diff(np.pad(active.T.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    columns, starts = np.nonzero(edges == 1)
    _, stops = np.nonzero(edges == -1)
    return list(zip(columns.tolist(), starts.tolist(), stops.tolist(), strict=True))
