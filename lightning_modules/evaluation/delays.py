"""Frame mAP of predictions that are read late: how much of a detector's error is future that it has not seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import box_iou

from ..metrics.frame_map import FrameMeanAveragePrecision, Rows, action_rows
from ..networks.detection.outputs import ScoredBoxes
from .predictions import Answer, StreamFrame, on_cpu

MIN_IOU = 0.3
"""Least IoU of a person's boxes in successive sampled frames; the same as that of ``OnlineLinker``."""


def check_delays(delays: Sequence[int]) -> None:
    if len(set(delays)) < len(delays) or min(delays, default=0) < 0:
        raise ValueError(f"delays must be different numbers of sampled frames, at least 0, got {list(delays)}")


class DelayedEvaluation(nn.Module):
    """Scores the ground truth of sampled frame t against what was said at frame t + k, for several delays k.

    There are two scores per delay. ``map_delay_<k>`` takes boxes and actions of t + k, so boxes lag behind moving
    people. ``map_delay_<k>_actions`` keeps the boxes of t and takes the actions of the same people at t + k.

    Every delay scores all keyframes. Where a video ends before t + k its last prediction is taken, just as the clip of
    a teacher repeats the last frame there. So delay 0 is the plain mAP, and all may be compared with the teacher's.

    Args:
        delays: k, in sampled frames of the stream; none scores nothing.
        metric: the protocol; every score gets an empty copy of it.
    """

    def __init__(self, delays: Sequence[int], metric: FrameMeanAveragePrecision) -> None:
        super().__init__()
        check_delays(delays)
        self.delays = tuple(sorted(delays))
        self.metrics = nn.ModuleDict()
        for delay in self.delays:
            for name in _names(delay):
                self.metrics[name] = metric.clone()
                self.metrics[name].reset()
        self._lanes: dict[int, _Lane] = {}

    def add(self, answers: Sequence[Answer]) -> None:
        """Take what was said about the next frames of every lane, in order."""
        if not self.delays:
            return
        known: list[_Known] = []
        for (frame, _), found in zip(answers, on_cpu([answer.found for answer in answers]), strict=True):
            if frame.is_first:
                known += self._end(frame.lane)
                self._lanes[frame.lane] = _Lane(self.delays)
            truth = _truth(frame) if frame.annotated else None
            known += self._lanes[frame.lane].add(found, truth)
        self._score(known)

    def finish(self) -> dict[str, float]:
        """The scores over all processes, fractions by name; everything starts over."""
        for lane in list(self._lanes):
            self._score(self._end(lane))
        results = {name: float(metric.compute()["map"]) for name, metric in self.metrics.items()}
        for metric in self.metrics.values():
            metric.reset()
        return results

    def _end(self, lane: int) -> list[_Known]:
        """Return the predictions due with the last frame of a lane's video; the lane is free then."""
        ended = self._lanes.pop(lane, None)
        return [] if ended is None else list(ended.end())

    def _score(self, known: Sequence[_Known]) -> None:
        for delay in self.delays:
            own = [answer for answer in known if answer.delay == delay]
            truth = [answer.truth for answer in own]
            predictions = ([answer.late for answer in own], [answer.late_actions for answer in own])
            for name, rows in zip(_names(delay), predictions, strict=False):  # delay 0 has one name
                self.metrics[name].update(rows, truth)


def _names(delay: int) -> tuple[str, ...]:
    """Return the names of a delay's scores; without a delay both are the same."""
    return (f"map_delay_{delay}", f"map_delay_{delay}_actions")[: 2 if delay else 1]


def _truth(frame: StreamFrame) -> Rows:
    """The ground truth of a frame in pixels of the original video."""
    scale = (frame.original_size / frame.image_size).flip(-1).repeat(2).float()
    return action_rows(frame.boxes * scale, frame.labels)


class _Known(NamedTuple):
    """Predictions and ground truth of a keyframe at one delay."""

    delay: int
    truth: Rows
    late: Rows
    """The boxes and scores of the later frame."""
    late_actions: Rows
    """The keyframe's boxes with their scores of the later frame."""


@dataclass
class _Keyframe:
    """An annotated frame that waits for late predictions, and its N detections, followed to the newest frame."""

    truth: Rows
    boxes: Tensor
    """(N, 4), where they were at the keyframe."""
    scores: Tensor
    """(N, K), their newest."""
    places: Tensor
    """(N,) int64, which detection of the newest frame each is; -1 once one is lost, which keeps its last scores."""
    age: int = 0

    def follow(self, places: Tensor, found: ScoredBoxes) -> None:
        """Go on to the next frame; ``places`` are those of the newest frame's detections in it."""
        self.age += 1
        if len(places):
            self.places = torch.where(self.places >= 0, places[self.places], -1)
        there = self.places >= 0
        self.scores = self.scores.clone()
        self.scores[there] = found.scores[self.places[there]]

    def answer(self, delay: int, newest: ScoredBoxes) -> _Known:
        late = {"boxes": newest.boxes, "scores": newest.scores}
        return _Known(delay, self.truth, late, {"boxes": self.boxes, "scores": self.scores})


class _Lane:
    """The keyframes of one video that wait, and its newest frame."""

    def __init__(self, delays: Sequence[int]) -> None:
        self.delays = delays
        self.waiting: list[_Keyframe] = []
        self.newest: ScoredBoxes | None = None

    def add(self, found: ScoredBoxes, truth: Rows | None) -> Iterator[_Known]:
        """Go on by a frame, annotated or not."""
        if self.waiting:
            places = same_people(self.newest, found)
            for keyframe in self.waiting:
                keyframe.follow(places, found)
        self.newest = found
        if truth is not None:
            self.waiting.append(_Keyframe(truth, found.boxes, found.scores, torch.arange(len(found.boxes))))
        for keyframe in self.waiting:
            if keyframe.age in self.delays:
                yield keyframe.answer(keyframe.age, found)
        self.waiting = [keyframe for keyframe in self.waiting if keyframe.age < self.delays[-1]]

    def end(self) -> Iterator[_Known]:
        """Score waiting frames with the last frame's predictions."""
        for keyframe in self.waiting:
            for delay in self.delays:
                if delay > keyframe.age:
                    yield keyframe.answer(delay, self.newest)


def same_people(earlier: ScoredBoxes, later: ScoredBoxes) -> Tensor:
    """Return for each of N detections its place among the M of the next frame, (N,) int64; -1 where there is none.

    Pairs have the largest total of IoU times both person scores (Hungarian). A detector puts several proposals around a
    person. The scores lead from the proposal taken for the person in one frame to that taken in the next.
    """
    iou = box_iou(earlier.boxes, later.boxes)
    worth = iou * earlier.person_scores[:, None] * later.person_scores
    rows, columns = (torch.from_numpy(part) for part in linear_sum_assignment(worth.numpy(), maximize=True))
    places = torch.full((len(earlier.boxes),), -1)
    close = iou[rows, columns] >= MIN_IOU
    places[rows[close]] = columns[close]
    return places
