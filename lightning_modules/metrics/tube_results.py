"""Tubes in a file: what a linker made of the detections of whole videos.

``{"version": ..., "linker": ..., "frame_stride": s, "tubes": {video: [{"label": name, "score": ..., "start_frame": f,
"boxes": [[x1, y1, x2, y2], ...]}]}, "external_data": {}}``: box i is on frame f + i s of the video, counted from 0;
corners are pixels of the video.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datamodules.errors import UserError

from .frame_results import WRITE_CORNERS
from .json_file import read_json, report_absent_videos, report_unknown_classes, write_json
from .tubes import Tube
from .video_map import VideoMeanAveragePrecision


class SavedTubes(NamedTuple):
    """Content of a file."""

    videos: dict[str, list[Tube]]
    """Frames are numbered by the stride: sampled frame n is frame n ``frame_stride`` of the video."""
    frame_stride: int
    linker: str
    """Name of the linker that made them."""


def write_tubes(
    path: str | Path,
    videos: Mapping[str, Sequence[Tube]],
    class_names: Sequence[str],
    frame_stride: int,
    linker: str,
    external_data: Mapping[str, Any] | None = None,
) -> None:
    """Write the tubes of many videos, whole or not at all; numbers as they are, so that scores survive.

    Args:
        path: the json file; folders on the way to it are made.
        videos: for each its tubes, in sampled frames. A video without any keeps its empty entry.
        class_names: what label n is called.
        frame_stride: frames of the video from one sampled frame to the next.
        linker: what the linker is called.
        external_data: notes on the way the tubes were made, such as weights.
    """
    tubes = {
        video: [
            {
                "label": class_names[tube["label"]],
                "score": float(tube["score"]),
                "start_frame": int(tube["frames"][0]) * frame_stride,
                "boxes": tube["boxes"].tolist(),
            }
            for tube in of_video
        ]
        for video, of_video in videos.items()
    }
    record = {"version": "onlooker", "linker": linker, "frame_stride": frame_stride, "tubes": tubes}
    write_json(path, record | {"external_data": dict(external_data or {})})


def read_tubes(path: str | Path, class_names: Sequence[str]) -> SavedTubes:
    """Read tubes of any program. Where the file does not say its stride, every frame has a box.

    Tubes of a class that is not among ``class_names`` are left out with a warning; a file without any known class is an
    error.
    """
    record = read_json(path, "tubes", "{label, score, start_frame, boxes}")
    stride = record.get("frame_stride", 1)
    if not isinstance(stride, int) or isinstance(stride, bool) or stride < 1:
        raise UserError(f"frame_stride must be a positive whole number, got {stride!r}", path)
    numbers = {name: number for number, name in enumerate(class_names)}
    labels: list[str] = []
    videos: dict[str, list[Tube]] = {}
    for video, rows in record["tubes"].items():
        try:
            tubes = [(row["label"], _tube(row, stride)) for row in rows]
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            form = "{label, score, start_frame, boxes: [[x1, y1, x2, y2], ...]}"
            raise UserError(f"a tube of {video} is not {form} ({error!r})", path) from None
        if not all(isinstance(label, str) for label, _ in tubes):
            raise UserError(f"a tube of {video} has a label that is no name", path)
        if any((tube["boxes"][:, 2:] < tube["boxes"][:, :2]).any() for _, tube in tubes):
            raise UserError(f"a box of {video} has x2 < x1 or y2 < y1", path, WRITE_CORNERS)
        labels += [label for label, _ in tubes]
        videos[video] = [tube | {"label": numbers[label]} for label, tube in tubes if label in numbers]
    report_unknown_classes(path, labels, class_names)
    return SavedTubes(videos, stride, str(record.get("linker", "unknown")))


def _tube(row: Mapping[str, Any], stride: int) -> Tube:
    if not isinstance(row["label"], str):
        raise TypeError(f"label {row['label']!r} is no text")
    score, boxes = float(row["score"]), np.asarray(row["boxes"], np.float64)
    if boxes.ndim != 2 or not len(boxes) or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise ValueError(f"boxes must be (T, 4) finite numbers, got {boxes.shape}")
    if not math.isfinite(score):
        raise ValueError(f"score {score}")
    slot, beside = divmod(int(row["start_frame"]), stride)
    if beside or slot < 0:
        raise ValueError(f"start_frame {row['start_frame']} is no frame of a stream of stride {stride}")
    return Tube(label=-1, score=score, frames=np.arange(slot, slot + len(boxes)), boxes=boxes)


def score_tubes(
    videos: Mapping[str, Sequence[Tube]],
    truth: Mapping[str, Sequence[Mapping[str, Any]]],
    metric: VideoMeanAveragePrecision,
    path: str | Path | None = None,
) -> dict[str, Any]:
    """Return the results of ``metric`` on saved tubes, and how many of their videos are not among the ground truth's.

    Args:
        videos: as ``read_tubes`` gives them.
        truth: for each video that is evaluated its tubes, in the same sampled frames.
        metric: is reset first.
        path: the file, for a warning.

    Returns:
        The metric's result with ``num_other_videos``.
    """
    found = of_true_videos(videos, truth, path)
    metric.reset()
    metric.update([{"tubes": tubes} for tubes in found], [{"tubes": tubes} for tubes in truth.values()])
    return metric.compute() | {"num_other_videos": len(videos.keys() - truth.keys())}


def of_true_videos(
    videos: Mapping[str, Sequence[Tube]], truth: Mapping[str, object], path: str | Path | None = None
) -> list[Sequence[Tube]]:
    """Return the saved tubes of each video of the ground truth, in its order.

    A video of the ground truth that the file does not name has no tube, which a warning says. One that only the file
    names is left out.

    Raises:
        UserError: no video of the ground truth is among them.
    """
    if truth and videos.keys().isdisjoint(truth):
        raise UserError(
            f"none of the {len(truth)} videos to evaluate is among the {len(videos)} with tubes; the first are called "
            f"{next(iter(truth))} there and {next(iter(videos), 'nothing')} here",
            path,
        )
    report_absent_videos(path, [name for name in truth if name not in videos], truth)
    return [videos.get(name, []) for name in truth]
