"""Assignment of a detector's outputs to the frames they are about, also where they come a few frames late."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.batches import StreamBatch

from ..networks.detection.outputs import ScoredBoxes


class StreamFrame(NamedTuple):
    """One frame of a ``StreamBatch``; see there."""

    lane: int
    is_first: bool
    """True for the first frame of its stream."""
    video_id: str
    index: int
    timestamp: float
    annotated: bool
    boxes: Tensor
    labels: Tensor
    image_size: Tensor
    """(2,), as is ``original_size``."""
    original_size: Tensor
    pixels: Tensor
    """(3, H, W) uint8."""
    picture: np.ndarray | None


class Answer(NamedTuple):
    """Prediction about a frame."""

    frame: StreamFrame
    found: ScoredBoxes


def on_cpu(scored: Sequence[ScoredBoxes]) -> list[ScoredBoxes]:
    """Copy the detections of some frames from their device, all at once."""
    counts = [len(found.boxes) for found in scored]
    columns = [torch.cat(column).cpu().split(counts) for column in zip(*scored, strict=True)]
    return [ScoredBoxes(*parts) for parts in zip(*columns, strict=True)]


class StreamAnswers:
    """Give every frame of parallel streams the output that is about it, in order of lanes, then of time.

    What a detector with a look-ahead of k says at frame t is about frame t - k. At the end of a stream its last frame
    is shown k times more, which gives the last k frames their outputs. Without that, the last output stands for them.

    Args:
        look_ahead: k, in frames of the stream.
    """

    def __init__(self, look_ahead: int) -> None:
        self.look_ahead = look_ahead
        self._waiting: dict[int, deque[StreamFrame]] = {}
        self._newest: dict[int, ScoredBoxes] = {}

    def add(self, batch: StreamBatch, said: Sequence[Sequence[ScoredBoxes]]) -> list[Answer]:
        """Take a chunk and what was said on each of its rows: at its T frames, and maybe after its end."""
        answers: list[Answer] = []
        length = batch.is_valid.shape[1]
        for row, frames in enumerate(_frames(batch)):
            lane = row if batch.lanes is None else batch.lanes[row]
            if frames and frames[0].is_first:
                answers += self._end(lane)
            waiting = self._waiting.setdefault(lane, deque())
            for frame, found in zip(frames, said[row], strict=False):
                waiting.append(frame)
                self._newest[lane] = found
                if len(waiting) > self.look_ahead:
                    answers.append(Answer(waiting.popleft(), self._newest[lane]))
            if batch.is_last[row]:
                answers += self._end(lane, said[row][len(frames) :])
            elif len(frames) < length:
                answers += self._end(lane)
        return answers

    def waiting(self) -> list[int]:
        """Return the lanes with frames whose predictions are still to come."""
        return [lane for lane, frames in self._waiting.items() if frames]

    def finish(self, after: Mapping[int, Sequence[ScoredBoxes]] | None = None) -> list[Answer]:
        """Return the predictions of the frames that still wait; every stream is over.

        ``after`` is what was said after the streams' ends, by lane.
        """
        after = after or {}
        return [answer for lane in list(self._waiting) for answer in self._end(lane, after.get(lane, ()))]

    def _end(self, lane: int, after: Sequence[ScoredBoxes] = ()) -> Iterator[Answer]:
        """``after`` is what was said after the stream's end."""
        waiting = self._waiting.pop(lane, ())
        # Of a stream shorter than the look-ahead, the first answers after its end are about frames before its start.
        about_them = after[self.look_ahead - len(waiting) :]
        for frame, found in zip_longest(waiting, about_them[: len(waiting)], fillvalue=self._newest.get(lane)):
            yield Answer(frame, found)


def _frames(batch: StreamBatch) -> Iterator[list[StreamFrame]]:
    """The valid frames of every row."""
    length, counts = batch.is_valid.shape[1], batch.is_valid.sum(1).tolist()
    firsts, annotated = batch.is_first.tolist(), batch.annotated.tolist()
    indices, timestamps = batch.frame_indices.tolist(), batch.timestamps.tolist()
    for row, count in enumerate(counts):
        places = range(row * length, row * length + count)
        yield [
            StreamFrame(
                row if batch.lanes is None else batch.lanes[row],
                firsts[row] and time == 0,
                batch.video_ids[row],
                indices[row][time],
                timestamps[row][time],
                annotated[row][time],
                batch.boxes[place],
                batch.labels[place],
                batch.image_sizes[row],
                batch.original_sizes[row],
                batch.frames[row, time],
                batch.pictures[place] if batch.pictures else None,
            )
            for time, place in enumerate(places)
        ]
