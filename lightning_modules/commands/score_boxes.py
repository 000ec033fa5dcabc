"""Score boxes that were saved: the same ground truth and metric as ``test``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.batches import TrueKeyframe
from datamodules.errors import UserError

from ..metrics.frame_ap import FrameMap, FrameMapSettings, FrameRows, frame_mean_average_precision
from ..metrics.frame_results import FrameDetections, read_frame_detections
from ..metrics.time_since_start import TimeSinceStart, time_since_start

NAMES_SHOWN = 5


class Score(NamedTuple):
    """Score of a file of detections."""

    result: FrameMap
    protocol: str
    class_ids: Sequence[int]
    boxes_per_class: np.ndarray
    """(K,) ground-truth rows."""
    num_detections: int
    """Rows of the file that were scored."""
    num_found_frames: int
    """Keyframes that have at least one of them."""

    def text(self, class_names: Sequence[str], *, every_class: bool = True) -> str:
        """Several lines for people."""
        result = self.result
        lines = [
            f"{self.protocol}: {100 * result.mean:.2f} %",
            f"ground truth: {result.num_frames} frames, {result.num_boxes} boxes, {result.num_classes} classes; "
            f"detections: {self.num_detections} on {self.num_found_frames} frames",
        ]
        if result.explanation:
            lines.append(result.explanation)
        if every_class:
            names = [class_names[index] for index in self.class_ids]
            lines += table_of("boxes", names, result.per_class, self.boxes_per_class)
        return "\n".join(lines)


def table_of(counted: str, names: Sequence[str], aps: np.ndarray, counts: np.ndarray) -> list[str]:
    """AP and ground truth of every class, a line each."""
    lines = ["", f"   AP % {counted:>9}  class"]
    for name, ap, count in zip(names, aps, counts, strict=True):
        lines.append(f"{'-' if np.isnan(ap) else f'{100 * ap:.2f}':>7} {count:>9}  {name}")
    return lines


def score_file(
    path: str | Path,
    keyframes: Sequence[TrueKeyframe],
    num_classes: int,
    class_ids: Sequence[int] | None = None,
    settings: FrameMapSettings | None = None,
    tolerance_seconds: float = 0.01,
) -> Score:
    """Score a csv as ``read_frame_detections`` takes it.

    Args:
        path: the csv file.
        keyframes: the ground truth, each keyframe once.
        num_classes: how many classes the data has; action id n of the file is class n - 1.
        class_ids: the classes to score; None for all.
        settings: the protocol.
        tolerance_seconds: how far a time stamp of the file may be from that of its keyframe.

    Detections of unknown videos, at moments that are not evaluated and of unknown actions are left out, with a warning
    that counts and names them.
    """
    settings = settings or FrameMapSettings()
    ids = np.arange(num_classes) if class_ids is None else np.asarray(class_ids)
    preds, targets, _ = rows_of_file(path, keyframes, num_classes, ids, tolerance_seconds)
    result = frame_mean_average_precision(preds, targets, len(keyframes), ids.tolist(), settings)
    some = "" if class_ids is None else f", {len(ids)} of {num_classes} classes"
    return Score(
        result,
        f"{settings}{some}",
        ids.tolist(),
        np.bincount(targets.classes, minlength=len(ids)),
        len(preds.owners),
        len(np.unique(preds.frames)),
    )


def score_since_start(
    path: str | Path,
    keyframes: Sequence[TrueKeyframe],
    seconds: Sequence[np.ndarray],
    num_classes: int,
    class_ids: Sequence[int] | None = None,
    settings: FrameMapSettings | None = None,
    tolerance_seconds: float = 0.01,
) -> TimeSinceStart:
    """Score a csv by the time since the actions' start.

    Args:
        seconds: (M, K) for each keyframe, how long its actions have been going on.

    The other arguments are those of ``score_file``.
    """
    settings = settings or FrameMapSettings()
    if settings.max_rows_per_frame is not None or settings.unlabelled_frames != "false_positives":
        raise UserError(
            f"the time since an action's start is scored over all detections, but the protocol is {settings}",
            where="metric",
            remedy="leave unlabelled_frames and max_rows_per_frame at their defaults",
        )
    ids = np.arange(num_classes) if class_ids is None else np.asarray(class_ids)
    preds, targets, places = rows_of_file(path, keyframes, num_classes, ids, tolerance_seconds)
    of_rows = np.asarray([seconds[frame][row, label] for frame, row, label in places.tolist()], np.float64)
    return time_since_start(preds, targets, of_rows, len(ids), settings)


def rows_of_file(
    path: str | Path, keyframes: Sequence[TrueKeyframe], num_classes: int, ids: np.ndarray, tolerance_seconds: float
) -> tuple[FrameRows, FrameRows, np.ndarray]:
    """Read what is to be scored, and the ground truth, with the keyframe, box and class of each row of it: (R, 3)."""
    found = read_frame_detections(path)
    frames = _keyframes_of(found, keyframes, tolerance_seconds)
    known = (found.actions >= 1) & (found.actions <= num_classes)
    _report_unknown(path, found, frames, known, keyframes, num_classes)
    position = np.full(num_classes, -1)
    position[ids] = np.arange(len(ids))
    kept = (frames >= 0) & known
    kept[kept] = position[found.actions[kept] - 1] >= 0
    return _predicted_rows(found, frames, position, kept, keyframes), *_true_rows(keyframes, position)


def _keyframes_of(found: FrameDetections, keyframes: Sequence[TrueKeyframe], tolerance: float) -> np.ndarray:
    """Return each row's keyframe, -1 where there is none, -2 where not even the video is known."""
    of_video: dict[str, list[int]] = {}
    for index, keyframe in enumerate(keyframes):
        of_video.setdefault(keyframe.video_id, []).append(index)
    frames = np.full(len(found.videos), -2)
    order = np.argsort(found.videos, kind="stable")
    bounds = np.searchsorted(found.videos[order], np.arange(len(found.names) + 1))
    for number, name in enumerate(found.names):
        if name not in of_video:
            continue
        rows = order[bounds[number] : bounds[number + 1]]
        there = np.asarray(of_video[name])
        times = np.asarray([keyframes[index].timestamp for index in there])
        by_time = np.argsort(times)
        times, seconds = times[by_time], found.seconds[rows]
        after = np.minimum(np.searchsorted(times, seconds), len(times) - 1)
        before = np.maximum(after - 1, 0)
        nearest = np.where(seconds - times[before] < times[after] - seconds, before, after)
        close = np.abs(times[nearest] - seconds) <= tolerance
        frames[rows] = np.where(close, there[by_time[nearest]], -1)
    return frames


def _report_unknown(
    path: str | Path,
    found: FrameDetections,
    frames: np.ndarray,
    known: np.ndarray,
    keyframes: Sequence[TrueKeyframe],
    num_classes: int,
) -> None:
    """Warn of what is left out; raise where nothing remains."""
    videos = [found.names[number] for number in np.unique(found.videos[frames == -2])]
    moments = np.unique(np.stack([found.videos[frames == -1], found.seconds[frames == -1]], axis=1), axis=0)
    actions = np.unique(found.actions[~known]).tolist()
    left_out = {
        "videos are not evaluated": videos,
        "moments have no keyframe that is evaluated": [f"{found.names[int(v)]} at {s:g} s" for v, s in moments],
        f"action ids are not among 1..{num_classes}": [str(action) for action in actions],
    }
    complaints = [
        f"{len(names)} {what} ({', '.join(names[:NAMES_SHOWN])}{', ...' if len(names) > NAMES_SHOWN else ''})"
        for what, names in left_out.items()
        if names
    ]
    if not len(keyframes):
        raise UserError("the data has no annotated keyframe to score detections on")
    if len(found.videos) and not (known & (frames >= 0)).any():
        example = keyframes[0]
        raise UserError(
            f"{path}: none of its {len(found.videos)} detections can be scored: {'; '.join(complaints)}. The data has "
            f"{example.video_id} at {example.timestamp:g} s, for instance. Set --config and --split to those that the "
            "file was made with, and start_seconds of the source to the file's time of the videos' first frames"
        )
    if complaints:
        rows = int((~known | (frames < 0)).sum())
        rank_zero_warn(f"{path}: {rows} of {len(found.videos)} detections are left out: {'; '.join(complaints)}")


def _predicted_rows(
    found: FrameDetections,
    frames: np.ndarray,
    position: np.ndarray,
    kept: np.ndarray,
    keyframes: Sequence[TrueKeyframe],
) -> FrameRows:
    """The rows to score; those of one frame with the same box share the box."""
    frames, boxes = frames[kept], found.boxes[kept]
    is_new = _differs_from_last(frames, boxes)
    owners = np.cumsum(is_new) - 1
    # Most files have the rows of a box together, so that few are left to sort.
    frames, boxes = frames[is_new], boxes[is_new]
    order = np.lexsort((*boxes.T, frames))
    frames, boxes = frames[order], boxes[order]
    is_new = _differs_from_last(frames, boxes)
    place = np.empty(len(order), np.int64)
    place[order] = np.cumsum(is_new) - 1
    frames, boxes = frames[is_new], boxes[is_new]
    sizes = np.asarray([keyframe.original_size for keyframe in keyframes], np.float64).reshape(-1, 2)[frames]
    # What was divided by the size of the frame was float32; rounding gives exactly that back.
    pixels = (boxes * np.tile(sizes[:, ::-1], 2)).astype(np.float32).astype(np.float64)
    classes = position[found.actions[kept] - 1].astype(np.int32)
    return FrameRows(frames, pixels, place[owners], classes, found.scores[kept])


def _differs_from_last(frames: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(N,) bool, whether a box or its frame is another one than that before it; true of the first."""
    differs = np.ones(len(frames), dtype=bool)
    differs[1:] = (frames[1:] != frames[:-1]) | (boxes[1:] != boxes[:-1]).any(axis=1)
    return differs


def _true_rows(keyframes: Sequence[TrueKeyframe], position: np.ndarray) -> tuple[FrameRows, np.ndarray]:
    """Return the rows of the ground truth, and the keyframe, box and class of each: (R, 3)."""
    boxes, frames, owners, classes, count = [np.empty((0, 4))], [], [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    places = [np.empty((0, 3), np.int64)]
    for index, keyframe in enumerate(keyframes):
        acting = keyframe.labels.any(axis=1)  # as in ``action_rows``: who does nothing is no ground truth
        row, label = np.nonzero(keyframe.labels[acting])
        scored = position[label] >= 0
        boxes.append(keyframe.boxes[acting])
        frames.append(np.full(acting.sum(), index))
        owners.append(row[scored] + count)
        classes.append(position[label[scored]])
        people = np.flatnonzero(acting)[row[scored]]
        places.append(np.stack([np.full(len(people), index), people, label[scored]], axis=1))
        count += acting.sum()
    owners, classes = np.concatenate(owners), np.concatenate(classes)
    rows = FrameRows(
        np.concatenate([np.empty(0, np.int64), *frames]),
        np.concatenate(boxes).astype(np.float64),
        owners,
        classes,
        np.ones(len(owners)),
    )
    return rows, np.concatenate(places)
