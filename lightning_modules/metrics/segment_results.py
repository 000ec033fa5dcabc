"""Segment detections in a file: the json form of the ActivityNet challenge, which every evaluator of the field reads.

``{"version": ..., "results": {video: [{"label": name, "score": ..., "segment": [start, end]}]}, "external_data": {}}``
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.errors import UserError

from .json_file import read_json, report_absent_videos, report_unknown_classes, write_json
from .segment_map import SegmentMeanAveragePrecision


def write_results(
    path: str | Path,
    results: Mapping[str, Mapping[str, Tensor]],
    class_names: Sequence[str],
    version: str = "onlooker",
    external_data: Mapping[str, Any] | None = None,
) -> None:
    """Write the detections of many videos, whole or not at all; numbers as they are, so that scores survive.

    Args:
        path: the json file; folders on the way to it are made.
        results: for each video ``segments`` (N, 2) seconds, ``scores`` (N,), ``labels`` (N,) int, as
            ``SegmentMeanAveragePrecision`` takes them. A video without detection keeps its empty entry.
        class_names: what label n is called.
        version: what the file says of its origin.
        external_data: notes on the way the detections were made, such as weights and protocol.
    """
    record = {
        "version": version,
        "results": {
            video: [
                {"label": class_names[label], "score": score, "segment": segment}
                for segment, score, label in zip(
                    *(detections[name].tolist() for name in ("segments", "scores", "labels")), strict=True
                )
            ]
            for video, detections in results.items()
        },
        "external_data": dict(external_data or {}),
    }
    write_json(path, record)


def read_results(path: str | Path, class_names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    """Read detections of any program: for each video ``segments``, ``scores`` (float64) and ``labels``.

    Videos are called as the file calls them. Detections of a class that is not among ``class_names`` are left out, as
    evaluators do, with a warning; a file without any known class is an error.
    """
    record = read_json(path, "results", "{label, score, segment}")
    numbers = {name: number for number, name in enumerate(class_names)}
    labels: list[str] = []
    results = {}
    for video, detections in record["results"].items():
        try:
            rows = [(row["label"], float(row["score"]), [float(end) for end in row["segment"]]) for row in detections]
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            problem = f"a detection of {video} is not {{label, score, segment: [start, end]}} ({error!r})"
            raise UserError(problem, path) from None
        if not all(isinstance(label, str) for label, *_ in rows):
            raise UserError(f"a detection of {video} has a label that is no name", path)
        if not all(len(ends) == 2 and all(map(math.isfinite, (score, *ends))) for _, score, ends in rows):
            raise UserError(f"a detection of {video} has no finite score, start and end", path)
        if wrong := [ends for *_, ends in rows if ends[1] < ends[0]]:
            problem = f"a detection of {video} ends before it starts, {wrong[0]}"
            raise UserError(problem, path, "write start and end in seconds, not start and duration")
        labels += [label for label, *_ in rows]
        known = [row for row in rows if row[0] in numbers]
        results[video] = {
            "segments": torch.tensor([ends for *_, ends in known], dtype=torch.float64).reshape(-1, 2),
            "scores": torch.tensor([score for _, score, _ in known], dtype=torch.float64),
            "labels": torch.tensor([numbers[label] for label, *_ in known], dtype=torch.int64),
        }
    report_unknown_classes(path, labels, class_names)
    return results


def score_results(
    results: Mapping[str, Mapping[str, Tensor]],
    truth: Mapping[str, Mapping[str, Tensor]],
    metric: SegmentMeanAveragePrecision,
    path: str | Path | None = None,
) -> dict[str, Any]:
    """Return the results of ``metric`` on saved detections, and how many videos are not among the ground truth's.

    Args:
        results: as ``read_results`` gives them; see ``of_true_videos`` for those that the ground truth does not name.
        truth: for each video that is evaluated ``segments`` (M, 2) seconds and ``labels`` (M,) int.
        metric: is reset first.
        path: the file, for a warning.

    Returns:
        The metric's result with ``protocol``, its name, and ``num_other_videos``.
    """
    found = of_true_videos(results, truth, path)
    metric.reset()
    metric.update(found, list(truth.values()))
    known = {video.removeprefix("v_") for video in truth}
    others = {video.removeprefix("v_") for video in results} - known
    return metric.compute() | {"protocol": metric.protocol, "num_other_videos": torch.tensor(len(others))}


def of_true_videos(
    results: Mapping[str, Mapping[str, Tensor]],
    truth: Mapping[str, Mapping[str, Tensor]],
    path: str | Path | None = None,
) -> list[Mapping[str, Tensor]]:
    """Return the saved detections of each video of the ground truth, in its order.

    A video of the ground truth that the file does not name has no detection, which a warning says. One that only the
    file names is left out: lists of test videos differ, and the list is the ground truth's to choose. Names may begin
    with ``v_`` on one side.

    Raises:
        UserError: no video of the ground truth is among them, or a name stands for two videos.
    """
    for videos in (results, truth):
        both = [video for video in videos if f"v_{video}" in videos]
        if both:
            raise UserError(f"there are both a video {both[0]} and a video v_{both[0]}", remedy="rename one of them")
    named = {video.removeprefix("v_"): detections for video, detections in results.items()}
    wanted = [video.removeprefix("v_") for video in truth]
    if truth and named.keys().isdisjoint(wanted):
        raise UserError(
            f"none of the {len(truth)} videos to evaluate is among the {len(results)} with detections; the first are "
            f"called {next(iter(truth))} there and {next(iter(results), 'nothing')} here",
            path,
        )
    report_absent_videos(path, [video for video in truth if video.removeprefix("v_") not in named], truth)
    nothing = {"segments": torch.zeros(0, 2), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    return [named.get(video, nothing) for video in wanted]
