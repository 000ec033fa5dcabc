"""Scoring of a spatio-temporal detector: frame mAP of its keyframes, video mAP of its tubes, both late and at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from datamodules.batches import TrueTubes

from ..linking.online import LinkedFrame
from ..metrics.frame_ap import FrameMapSettings
from ..metrics.frame_map import FrameMeanAveragePrecision, action_rows
from ..metrics.video_map import VideoMeanAveragePrecision
from ..networks.detection.outputs import Detections, ScoredBoxes, ScoreRule, decode_detections
from .delays import DelayedEvaluation
from .tubes import VideoEvaluation, VideoMapSettings


@dataclass(frozen=True)
class DetectionSettings:
    """Settings of decoding and scoring detections.

    Args:
        person_threshold, score: how they are decoded, see ``decode_detections``.
        metric: the protocol of ``val/map`` and ``test/map``; boxes are scored in pixels of the original video.
        video_map: linker and protocol of ``val/video_map_50`` and the like; None does without, as data must that do
            not say which boxes are one person's.
    """

    person_threshold: float = 0.0
    score: ScoreRule = "person_x_action"
    metric: FrameMapSettings = field(default_factory=FrameMapSettings)
    video_map: VideoMapSettings | None = None

    def decode(self, detections: Detections, image_sizes: Tensor, original_sizes: Tensor) -> list[ScoredBoxes]:
        """Return scored boxes in pixels of the original videos: the one way from network outputs to them."""
        return decode_detections(detections, image_sizes, original_sizes, self.person_threshold, self.score)


class DetectionEvaluator(nn.Module):
    """Metrics of one run's data; a module, so that their states go to its device.

    Args:
        settings: protocols.
        num_classes: of the network.
        class_ids: those that are scored (AVA trains 80 classes and scores 60); all by default.
        true_tubes: what video mAP is scored against, by video; None does without.
        stride: raw frames from one sampled frame to the next.
        delays: see ``DelayedEvaluation``.
    """

    def __init__(
        self,
        settings: DetectionSettings,
        num_classes: int,
        class_ids: Sequence[int] | None = None,
        true_tubes: Mapping[str, TrueTubes] | None = None,
        stride: int = 1,
        delays: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.metric = FrameMeanAveragePrecision(num_classes, class_ids=class_ids, **asdict(settings.metric))
        self.tracked_metric = self.metric.clone()
        self.delays = DelayedEvaluation(delays, self.metric)
        self.video_metric: VideoMeanAveragePrecision | None = None
        self.videos: VideoEvaluation | None = None
        if true_tubes is not None and settings.video_map is not None:
            self.video_metric = VideoMeanAveragePrecision(num_classes, protocol=settings.video_map.protocol)
            self.videos = VideoEvaluation(settings.video_map, self.video_metric, true_tubes, stride)

    def add_keyframes(
        self,
        scored: Sequence[ScoredBoxes],
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        image_sizes: Tensor,
        original_sizes: Tensor,
        linked: Sequence[LinkedFrame] | None = None,
    ) -> None:
        """Add annotated keyframes, whose true ``boxes`` are in pixels of the network input.

        ``linked``, from streams, are the same frames as ``predict`` reports them: followed by the online linker.
        """
        scale = (original_sizes / image_sizes).flip(-1).repeat(1, 2).float()
        predictions, targets = [], []
        for found, true_boxes, true_labels, factor in zip(scored, boxes, labels, scale, strict=True):
            predictions.append({"boxes": found.boxes, "scores": found.scores})
            targets.append(action_rows(true_boxes * factor, true_labels))
        self.metric.update(predictions, targets)
        if linked is not None:
            self.tracked_metric.update([{"boxes": seen.boxes, "scores": seen.scores} for seen in linked], targets)

    def finish(self) -> dict[str, Any]:
        """Return the result of frame mAP over all processes and start over."""
        result = self.metric.compute()
        self.metric.reset()
        return result

    def finish_tracked(self) -> float:
        """Return the frame mAP of tracked people over all processes and start over."""
        result = float(self.tracked_metric.compute()["map"])
        self.tracked_metric.reset()
        return result
