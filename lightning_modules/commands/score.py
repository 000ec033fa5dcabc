"""The command ``score``: saved detections on the ground truth and metric of ``test``, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor

from datamodules.batches import TrueTubes
from datamodules.errors import UserError
from datamodules.segments import SegmentDataModule

from ..command_line.settings import Settings
from ..metrics.frame_ap import FrameMapSettings
from ..metrics.segment_map import SegmentMeanAveragePrecision
from ..metrics.segment_results import read_results, score_results
from ..metrics.tube_results import read_tubes, score_tubes
from ..metrics.video_ap import VideoProtocol
from ..metrics.video_map import VideoMeanAveragePrecision
from .score_boxes import score_file, score_since_start, table_of


def score(
    trainer: Trainer,
    model: None,
    datamodule: LightningDataModule,
    predictions: Path,
    split: Literal["val", "test"] = "test",
    metric: FrameMapSettings | None = None,
    video_protocol: VideoProtocol | None = None,
    tolerance_seconds: float = 0.01,
    tiou_thresholds: list[float] | None = None,
    verbose: bool = True,
    since_start: bool = False,
    ckpt_path: str | None = None,
    weights_only: bool | None = None,
) -> None:
    """Score detections that were saved earlier, without a model.

    Args:
        predictions: file that ``test`` saved, or another program in the same form. Boxes: a csv of
            ``video,seconds,x1,y1,x2,y2,action_id,score``, as ``DetectionFile`` saves it. Tubes: a json as ``TubeFile``
            saves it. Segments: a json in the form of the ActivityNet challenge.
        split: split whose ground truth is used; ``val`` for files that ``validate`` saved.
        metric: protocol of frame mAP; what is not given of it is that of the config's model.
        video_protocol: protocol of video mAP; that of the config's model by default, otherwise ``act``.
        tolerance_seconds: largest distance of a box's time stamp from that of its keyframe.
        tiou_thresholds: temporal IoUs that segment mAP is averaged over; those of the config's model by default.
        verbose: also print the AP of every class.
        since_start: also print the frame mAP of boxes by the time since their action's start.
        ckpt_path, weights_only: not used; accepted so that a run's ``config.yaml``, which has them, can be given.
    """
    names = datamodule.class_names
    if isinstance(datamodule, SegmentDataModule):
        truth = datamodule.true_segments(split)
        on = datamodule.evaluated_on
        print(segment_score_text(predictions, truth, names, on, tiou_thresholds, every_class=verbose))
        return
    if predictions.suffix == ".json":
        truth, stride = datamodule.true_tubes(split), datamodule.evaluation_grid
        print(tube_score_text(predictions, truth, names, stride, video_protocol or "act", every_class=verbose))
        return
    keyframes = datamodule.true_keyframes(split)
    result = score_file(predictions, keyframes, len(names), datamodule.evaluated_classes, metric, tolerance_seconds)
    print(result.text(names, every_class=verbose))
    if since_start:
        seconds, scored = datamodule.seconds_since_start(split), datamodule.evaluated_classes
        by_time = score_since_start(predictions, keyframes, seconds, len(names), scored, metric, tolerance_seconds)
        print(f"\n{by_time.text()}")


def take_protocols(config: Namespace, settings: Settings) -> None:
    """Score by the protocols of the config's model, but for the keys that the user gives to the command."""
    detection = (config.model.get("init_args") or Namespace()).get("detection") or Namespace()
    config.metric = _metric(config.metric, detection.get("metric"), settings)
    config.video_protocol = config.video_protocol or (detection.get("video_map") or Namespace()).get("protocol")
    if "tiou_thresholds" in config and config.tiou_thresholds is None:
        config.tiou_thresholds = detection.get("tiou_thresholds")


def _metric(of_command: Namespace | None, of_model: Namespace | None, settings: Settings) -> Namespace | None:
    """Return the model's protocol with the given keys of the command's, which is filled up with defaults."""
    if of_command is None or of_model is None:
        return of_command or of_model
    whole, default = settings.find(("metric",)), FrameMapSettings()
    written = yaml.safe_load((whole and whole.value) or "{}")  # --metric '{"protocol": "act"}'
    result = of_model.clone()
    for name, value in of_command.items():
        in_json = isinstance(written, dict) and name in written
        # Settings does not look into --config '{"metric": ...}'.
        if in_json or settings.find(("metric", name)) or value != getattr(default, name):
            result[name] = value
    return result


def segment_score_text(
    path: str | Path,
    truth: Mapping[str, Mapping[str, Tensor]],
    class_names: Sequence[str],
    evaluated_on: str,
    tiou_thresholds: Sequence[float] | None = None,
    *,
    every_class: bool = True,
) -> str:
    """Score a json as ``read_results`` takes it, in several lines for people.

    Args:
        path: the json file.
        truth: for each video that is evaluated ``segments`` (M, 2) seconds and ``labels`` (M,) int.
        class_names: of all classes.
        evaluated_on: what the list of videos is called.
        tiou_thresholds: overlaps to average over; None means THUMOS14's, 0.3 to 0.7.
        every_class: add the AP of every class, a mean over the thresholds.
    """
    options = {} if tiou_thresholds is None else {"tiou_thresholds": tiou_thresholds}
    metric = SegmentMeanAveragePrecision(len(class_names), **options)
    result = score_results(read_results(path, class_names), truth, metric, path)
    each = zip(metric.tiou_thresholds, result["map_per_threshold"].flatten().tolist(), strict=True)
    lines = [
        f"{result['protocol']} on {evaluated_on}: {100 * float(result['map']):.2f} %",
        ", ".join(f"{100 * value:.2f} at {threshold:g}" for threshold, value in each),
        f"ground truth: {int(result['num_videos'])} videos, {int(result['num_segments'])} segments; "
        f"{int(result['num_other_videos'])} other videos of the file are left out",
    ]
    if result["explanation"]:
        lines.append(result["explanation"])
    if every_class:
        labels = np.concatenate([np.zeros(0, np.int64), *(video["labels"].numpy() for video in truth.values())])
        counts = np.bincount(labels, minlength=len(class_names))
        lines += table_of("segments", class_names, result["map_per_class"].flatten().numpy(), counts)
    return "\n".join(lines)


def tube_score_text(
    path: str | Path,
    truth: Mapping[str, TrueTubes],
    class_names: Sequence[str],
    frame_stride: int,
    protocol: VideoProtocol = "act",
    *,
    every_class: bool = True,
) -> str:
    """Score a json as ``read_tubes`` takes it, in several lines for people.

    Args:
        path: the json file.
        truth: the ground truth of each video that is evaluated, by video id.
        class_names: of all classes.
        frame_stride: of the ground truth; that of the file must be the same.
        protocol: see ``metrics.video_ap``.
        every_class: add the AP of every class at an overlap of 0.5.
    """
    found = read_tubes(path, class_names)
    if found.frame_stride != frame_stride:
        raise UserError(
            f"has tubes of one frame in {found.frame_stride}, the ground truth of one in {frame_stride}",
            where=path,
            remedy=f"set data.frame_stride to {found.frame_stride}, or keyframe_grid of a clip detector's data",
        )
    true = {video: [tube._asdict() for tube in of_video.tubes] for video, of_video in truth.items()}
    result = score_tubes(found.videos, true, VideoMeanAveragePrecision(len(class_names), protocol=protocol), path)
    at = {"0.2": "map_20", "0.5": "map_50", "0.75": "map_75", "0.5:0.95": "map_50_95"}
    lines = [
        f"{protocol} video mAP, {found.linker} linker, stride {frame_stride}",
        ", ".join(f"{100 * float(result[name]):.2f} % at {threshold}" for threshold, name in at.items()),
        f"ground truth: {int(result['num_videos'])} videos, {int(result['num_tubes'])} tubes, "
        f"{int(result['num_classes'])} classes; detections: {int(result['num_pred_tubes'])} tubes; "
        f"{result['num_other_videos']} other videos of the file are left out",
    ]
    if result["explanation"]:
        lines.append(result["explanation"])
    if every_class:
        labels = [tube["label"] for of_video in true.values() for tube in of_video]
        counts = np.bincount(np.asarray(labels, np.int64), minlength=len(class_names))
        lines += table_of("tubes", class_names, result["map_50_per_class"].flatten().numpy(), counts)
    return "\n".join(lines)
