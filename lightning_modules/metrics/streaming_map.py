"""Streaming accuracy: accuracy at each moment, with the time that a detector takes (Li et al., 2020).

At the moment of a frame its ground truth is scored against the newest prediction that is finished by then
(https://arxiv.org/abs/2005.10420). That one is about an earlier frame unless the detector needs no time at all. At the
beginning of a video nothing is finished, so nothing is found.

A prediction about frame i can be begun once frame ``i + frames_awaited`` is there. A clip around its keyframe awaits
the frames after it, a student those of its look-ahead. Then it takes a latency, and the schedule says which frames get
one:

| schedule | the machine | used for |
|---|---|---|
| ``newest`` | when idle takes the newest frame, and skips those in between | a clip for every frame |
| ``every`` | takes one frame after the other, however late it gets | a stream whose state needs every frame |
| ``parallel`` | is never busy: every prediction comes its latency after its frame | a constant delay |

An example has frames 0.1 s apart and a latency of 0.25 s. ``newest`` takes frames 0, 2, 5, 7 and finishes at 0.25, 0.5,
0.75 and 1.0. So the frame at 0.5 s is scored against the prediction about frame 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch

from .frame_ap import FrameRows
from .frame_map import FrameMeanAveragePrecision, Rows

Schedule = Literal["newest", "every", "parallel"]
SAME_SECONDS = 1e-6
"""Moments that are no further apart are the same: sums of times are rounded."""


def arrivals(times: np.ndarray, frames_awaited: int) -> np.ndarray:
    """Return when the prediction about each frame can be begun, (N,) seconds: when a later frame is there.

    After the end of a video frames are awaited as if it went on at its pace.
    """
    if not frames_awaited or not len(times):
        return times
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    beyond = times[-1] + step * np.arange(1, frames_awaited + 1)
    return np.concatenate([times, beyond])[frames_awaited:]


def finish_times(begin: np.ndarray, latency_seconds: float | Sequence[float], schedule: Schedule) -> np.ndarray:
    """Return when the prediction about each frame is finished, (N,) seconds, infinite for frames that are skipped.

    Args:
        begin: (N,) ascending, see ``arrivals``.
        latency_seconds: of every prediction, or measured ones that predictions have in turn.
        schedule: which frames get one, see above.
    """
    check_schedule(latency_seconds, schedule)
    latencies = np.atleast_1d(np.asarray(latency_seconds, np.float64))
    if schedule == "parallel":
        return begin + latencies[np.arange(len(begin)) % len(latencies)]
    finished = np.full(len(begin), np.inf)
    idle_from, frame, count = -np.inf, 0, 0
    while frame < len(begin):
        start = max(idle_from, float(begin[frame]))
        if schedule == "newest":
            frame = int(np.searchsorted(begin, start + SAME_SECONDS, side="right")) - 1
        idle_from = finished[frame] = start + latencies[count % len(latencies)]
        frame, count = frame + 1, count + 1
    return finished


def check_schedule(latency_seconds: float | Sequence[float], schedule: Schedule) -> None:
    """Refuse latencies and schedules that make no sense."""
    if schedule not in get_args(Schedule):
        raise ValueError(f"schedule must be one of {', '.join(get_args(Schedule))}, got {schedule!r}")
    latencies = np.atleast_1d(np.asarray(latency_seconds, np.float64))
    if not latencies.size or not np.isfinite(latencies).all() or (latencies < 0).any():
        raise ValueError(f"latency_seconds must be at least 0, got {latency_seconds}")


def newest_finished(finished: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Return the newest frame whose prediction is finished at each moment: (Q,) int64, -1 where none is.

    Args:
        finished: (N,) seconds, see ``finish_times``. moments: (Q,) seconds.
    """
    order = np.argsort(finished, kind="stable")
    newest = np.maximum.accumulate(order) if len(order) else order
    count = np.searchsorted(finished[order], moments + SAME_SECONDS, side="right")
    return np.where(count > 0, newest[np.maximum(count, 1) - 1] if len(order) else -1, -1)


def rows_at(preds: FrameRows, sources: np.ndarray) -> FrameRows:
    """Return the rows of frame ``sources[q]`` as those of frame q, none where it is -1; (Q,)."""
    by_frame = np.argsort(preds.frames, kind="stable")
    starts = np.searchsorted(preds.frames[by_frame], sources, side="left")
    counts = np.where(sources >= 0, np.searchsorted(preds.frames[by_frame], sources, side="right") - starts, 0)
    boxes = by_frame[_ranges(starts, counts)]
    by_owner = np.argsort(preds.owners, kind="stable")
    starts = np.searchsorted(preds.owners[by_owner], boxes, side="left")
    row_counts = np.searchsorted(preds.owners[by_owner], boxes, side="right") - starts
    rows = by_owner[_ranges(starts, row_counts)]
    return FrameRows(
        np.repeat(np.arange(len(sources)), counts),
        preds.boxes[boxes],
        np.repeat(np.arange(len(boxes)), row_counts),
        preds.classes[rows],
        preds.scores[rows],
    )


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """``start, start + 1, ...`` of each, one after the other."""
    return np.arange(counts.sum()) + np.repeat(starts - (np.cumsum(counts) - counts), counts)


class StreamingMeanAveragePrecision(FrameMeanAveragePrecision):
    """Frame mAP of the newest finished predictions; see the top of the file.

    Args:
        num_classes: number of classes K.
        latency_seconds: of every prediction, or measured ones in turn.
        schedule: which frames get a prediction.
        frames_awaited: so many frames after its own a prediction begins.

    The other arguments are those of ``FrameMeanAveragePrecision``. With latency 0 and nothing awaited it is the same.
    """

    def __init__(
        self,
        num_classes: int,
        latency_seconds: float | Sequence[float] = 0.0,
        schedule: Schedule = "newest",
        frames_awaited: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)
        check_schedule(latency_seconds, schedule)
        if frames_awaited < 0:
            raise ValueError(f"frames_awaited must be at least 0, got {frames_awaited}")
        self.latency_seconds, self.schedule, self.frames_awaited = latency_seconds, schedule, frames_awaited

    def update_video(
        self, times: Sequence[float], preds: Sequence[Rows], targets: Mapping[int, Rows] | Sequence[Rows]
    ) -> None:
        """Add a whole video.

        Args:
            times: (N,) seconds of its sampled frames, ascending.
            preds: N predictions, of each frame what was said about it; as ``FrameMeanAveragePrecision`` takes them.
            targets: the ground truth of all frames, or of those that are annotated by their number.
        """
        if len(times) != len(preds):
            raise ValueError(f"there are {len(times)} frames but {len(preds)} predictions")
        if isinstance(targets, Sequence) and len(targets) != len(times):
            raise ValueError(
                f"there are {len(times)} frames but {len(targets)} targets; name annotated frames in a dict"
            )
        moments = np.asarray(times, np.float64)
        if (np.diff(moments) <= 0).any():
            raise ValueError("the times of a video's frames must ascend")
        true = dict(enumerate(targets)) if isinstance(targets, Sequence) else dict(targets)
        finished = finish_times(arrivals(moments, self.frames_awaited), self.latency_seconds, self.schedule)
        newest = newest_finished(finished, moments[list(true)]).tolist()
        # With labels, since class ids need not be columns of scores.
        nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
        self.update([preds[frame] if frame >= 0 else nothing for frame in newest], list(true.values()))

    @property
    def streaming_description(self) -> str:
        """Describe the protocol: ``streaming ava frame mAP@0.5, newest frame, 12 ms, 3 frames awaited``."""
        latency = 1e3 * float(np.median(np.atleast_1d(self.latency_seconds)))
        awaited = f", {self.frames_awaited} frames awaited" if self.frames_awaited else ""
        return f"streaming {self.description}, {self.schedule}, {latency:.3g} ms{awaited}"
