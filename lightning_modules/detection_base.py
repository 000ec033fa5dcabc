"""Base of experiments on spatio-temporal detection: decoding, metrics, pictures and saved detections."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from datamodules.errors import UserError

from .base import ExperimentModule, TrainingSettings
from .evaluation.tubes import VideoEvaluation, VideoMapSettings
from .metrics.frame_ap import FrameMapSettings
from .metrics.frame_map import FrameMeanAveragePrecision, action_rows
from .metrics.video_map import VideoMeanAveragePrecision
from .networks.detection.outputs import Detections, ScoredBoxes, ScoreRule, decode_detections
from .networks.layers.prepared import prepare_for_inference
from .networks.weights.videomae import load_videomae

NAMES_SHOWN = 5


@dataclass(frozen=True)
class DetectionSettings:
    """How detections are decoded and scored.

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


class DetectionModule(ExperimentModule):
    """Base of the experiments on spatio-temporal detection; thin on purpose.

    Args:
        network, weights, optimizer, training: see ``ExperimentModule``.
        detection: how detections are decoded and scored.
        pretrained: VideoMAE weights that the backbone starts from, see ``load_videomae``; excluded with ``weights``.
    """

    def __init__(
        self,
        network: nn.Module,
        weights: str | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        training: TrainingSettings = TrainingSettings(),  # noqa: B008  (frozen)
        detection: DetectionSettings = DetectionSettings(),
        pretrained: str | None = None,
    ) -> None:
        if pretrained is not None and weights is not None:
            raise UserError(
                f"weights={weights} hold the backbone that pretrained={pretrained} would start",
                remedy="leave one of them out",
            )
        super().__init__(network, weights, optimizer, training)
        self.person_threshold, self.score = detection.person_threshold, detection.score
        if pretrained is not None:
            rank_zero_info(f"{pretrained}\n{load_videomae(network, pretrained)}")
        self.metric_settings, self.video_map = detection.metric, detection.video_map
        self.metric = FrameMeanAveragePrecision(network.num_classes, **asdict(self.metric_settings))
        if self.video_map is not None:
            self.video_metric = VideoMeanAveragePrecision(network.num_classes, protocol=self.video_map.protocol)
        self.video_evaluation: VideoEvaluation | None = None

    def setup(self, stage: str) -> None:
        """Learn which classes are scored."""
        super().setup(stage)
        # AVA trains 80 classes and scores 60 of them; a DataModule that says nothing has all of its classes scored.
        scored = getattr(self.trainer.datamodule, "evaluated_classes", None)
        if scored is not None:
            self.metric = FrameMeanAveragePrecision(
                self.network.num_classes, class_ids=scored, **asdict(self.metric_settings)
            )
        if self.video_map is not None and stage != "predict":
            self.video_evaluation = self._video_evaluation("test" if stage == "test" else "val")

    def _video_evaluation(self, split: Literal["val", "test"]) -> VideoEvaluation:
        data = self.trainer.datamodule
        return VideoEvaluation(self.video_map, self.video_metric, data.true_tubes(split), data.evaluation_grid)

    def decode(self, detections: Detections, image_sizes: Tensor, original_sizes: Tensor) -> list[ScoredBoxes]:
        """The one way from network outputs to scored boxes in the original video."""
        return decode_detections(detections, image_sizes, original_sizes, self.person_threshold, self.score)

    def score_keyframes(
        self,
        scored: Sequence[ScoredBoxes],
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        image_sizes: Tensor,
        original_sizes: Tensor,
    ) -> None:
        """Add annotated keyframes to the metric, in pixels of the original video."""
        scale = (original_sizes / image_sizes).flip(-1).repeat(1, 2).float()
        predictions, targets = [], []
        for found, true_boxes, true_labels, factor in zip(scored, boxes, labels, scale, strict=True):
            predictions.append({"boxes": found.boxes, "scores": found.scores})
            targets.append(action_rows(true_boxes * factor, true_labels))
        self.metric.update(predictions, targets)

    @staticmethod
    def pictures(
        frames: Sequence[Tensor],
        scored: Sequence[ScoredBoxes],
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        image_sizes: Tensor,
        original_sizes: Tensor,
    ) -> dict[str, Any]:
        """Return the input of ``DetectionImages``: B frames (3, H, W), their boxes in pixels of the network input."""
        scale = (image_sizes / original_sizes).flip(-1).repeat(1, 2).float()
        return {
            "frames": frames,
            "predictions": [
                {"boxes": found.boxes * factor, "scores": found.scores}
                for found, factor in zip(scored, scale, strict=True)
            ],
            "targets": [
                {"boxes": true_boxes, "labels": true_labels}
                for true_boxes, true_labels in zip(boxes, labels, strict=True)
            ],
        }

    @staticmethod
    def keyframes(
        scored: Sequence[ScoredBoxes], video_ids: Sequence[str], timestamps: list[float], original_sizes: Tensor
    ) -> dict[str, Any]:
        """Return the input of ``DetectionFile``: detections of n keyframes, their videos, seconds and sizes (n, 2)."""
        return {
            "scored": scored,
            "video_ids": video_ids,
            "timestamps": timestamps,
            "original_sizes": original_sizes.tolist(),
        }

    def log_metric(self, stage: str) -> None:
        """``val/map`` and the AP of every class, then start over."""
        result = self.metric.compute()
        self.say(f"{stage}/map", result, self.protocol, ("frames", "boxes", "classes"), "map")
        names = self.trainer.datamodule.class_names
        # The metric has already been synchronised over processes: every one logs the same numbers.
        self.log(f"{stage}/map", float(result["map"]), prog_bar=True, rank_zero_only=True)
        # torchmetrics turns the vectors of a single class into scalars.
        for index, value in zip(result["classes"].flatten(), result["map_per_class"].flatten(), strict=True):
            self.log(f"{stage}/ap/{names[int(index)]}", float(value), rank_zero_only=True)
        self.metric.reset()

    def log_video_metric(self, stage: str) -> None:
        """``val/video_map_20``, ``_50``, ``_75`` and ``_50_95``, where video mAP is wanted; then start over."""
        if self.video_evaluation is None:
            return
        cut, result = self.video_evaluation.cut, self.video_evaluation.finish()
        if cut and not self.trainer.sanity_checking:
            warnings.warn(
                f"{len(cut)} videos were not seen from their first frame to their last and are left out of video mAP: "
                f"{', '.join(cut[:NAMES_SHOWN])}{' ...' if len(cut) > NAMES_SHOWN else ''}",
                stacklevel=2,
            )
        counted = ("videos", "tubes", "classes")
        self.say(f"{stage}/video_map_20", result, self.video_protocol, counted, "map_20")
        for name in ("map_20", "map_50", "map_75", "map_50_95"):
            self.log(f"{stage}/video_{name}", float(result[name]), rank_zero_only=True)

    @property
    def protocol(self) -> str:
        """Protocol and stride of ``test/map``, for the benchmark table."""
        return f"{self.metric.description}, stride {self.trainer.datamodule.frame_stride}"

    @property
    def video_protocol(self) -> str | None:
        """Protocol, linker and stride of ``test/video_map_50``; None without."""
        return None if self.video_map is None else f"{self.video_map}, stride {self.trainer.datamodule.evaluation_grid}"

    def on_predict_start(self) -> None:
        prepare_for_inference(self.network)

    def on_validation_epoch_end(self) -> None:
        self.log_metric("val")
        self.log_video_metric("val")

    def on_test_epoch_end(self) -> None:
        self.log_metric("test")
        self.log_video_metric("test")
