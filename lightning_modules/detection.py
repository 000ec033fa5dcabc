"""What every detection experiment shares: optimiser, decoding, the metric, the benchmark's questions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from .metrics.frame_ap import FrameMapSettings
from .metrics.frame_map import FrameMeanAveragePrecision
from .metrics.video_map import VideoMeanAveragePrecision
from .networks.detections import Detections, ScoredBoxes, ScoreRule, decode_detections
from .networks.prepared import prepare_for_inference
from .networks.pretraining import load_videomae
from .networks.weights import load_exactly, read_state_dict
from .optimisation import Schedule, WarmupCosine, parameter_groups, scheduled
from .video_evaluation import VideoEvaluation, VideoMapSettings

NAMES_SHOWN = 5


class DetectionModule(L.LightningModule):
    """Base of the experiments on spatio-temporal detection; thin on purpose.

    Args:
        network: the detector that is trained and evaluated.
        optimizer: called with parameter groups.
        weights: a weights file or checkpoint to start from (or to evaluate). Nothing may be missing or left over.
        fresh: patterns of parameters that start fresh although ``weights`` are given; for other classes than the
            weights know: ``["decoder.blocks.*.action_logits.*"]``.
        pretrained: VideoMAE weights that the backbone starts from, see ``load_videomae``; excluded with ``weights``.
        schedule: of the learning rate: ``WarmupCosine`` (the default) or ``WarmupSteps``.
        head_lr_multiplier: learning rate of localizer and decoder over that of the rest.
        person_threshold, score: how detections are decoded, see ``decode_detections``.
        metric: the protocol of ``val/map`` and ``test/map``, see ``FrameMapSettings``; boxes are scored in pixels of
            the original video.
        video_map: linker and protocol of ``val/video_map_50`` and the like, see ``VideoMapSettings``; None does
            without, as data must that do not say which boxes are one person's.
    """

    head: Sequence[str] = ("network.localizer.stages.*", "network.decoder.*")

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        weights: str | None = None,
        fresh: Sequence[str] = (),
        pretrained: str | None = None,
        schedule: Schedule | None = None,
        head_lr_multiplier: float = 1.0,
        person_threshold: float = 0.0,
        score: ScoreRule = "person_x_action",
        metric: FrameMapSettings | None = None,
        video_map: VideoMapSettings | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.optimizer, self.weights = optimizer, weights
        self.schedule = schedule or WarmupCosine()
        self.head_lr_multiplier = head_lr_multiplier
        self.person_threshold, self.score = person_threshold, score
        if weights is not None and pretrained is not None:
            raise ValueError(
                f"weights={weights} hold the backbone that pretrained={pretrained} would start; leave one of them out"
            )
        if pretrained is not None:
            rank_zero_info(f"{pretrained}\n{load_videomae(network, pretrained)}")
        if weights is not None:
            load_exactly(network, read_state_dict(weights), fresh)
        elif fresh:
            raise ValueError(
                "fresh names parameters that the weights shall leave alone; set weights too, or drop fresh"
            )
        self.metric_settings = metric or FrameMapSettings()
        self.metric = FrameMeanAveragePrecision(network.num_classes, **asdict(self.metric_settings))
        self.video_map = video_map
        if video_map is not None:
            self.video_metric = VideoMeanAveragePrecision(network.num_classes, protocol=video_map.protocol)
        self.video_evaluation: VideoEvaluation | None = None
        self._zeros_explained: set[str] = set()

    def setup(self, stage: str) -> None:
        """Compare the classes of the network with those of the data before anything runs; learn which are scored."""
        in_network, in_data = self.network.num_classes, self.trainer.datamodule.num_classes
        if in_network != in_data:
            raise ValueError(
                f"network has {in_network} classes but the data has {in_data}; set "
                f"model.init_args.network.init_args.num_classes={in_data}, or --count_classes true"
            )
        # AVA trains 80 classes and scores 60 of them; a DataModule that says nothing has all of its classes scored.
        scored = getattr(self.trainer.datamodule, "evaluated_classes", None)
        if scored is not None:
            self.metric = FrameMeanAveragePrecision(in_network, class_ids=scored, **asdict(self.metric_settings))
        self._zeros_explained.clear()
        if self.video_map is not None and stage != "predict":
            self.video_evaluation = self._video_evaluation("test" if stage == "test" else "val")

    def _video_evaluation(self, split: Literal["val", "test"]) -> VideoEvaluation:
        data = self.trainer.datamodule
        return VideoEvaluation(self.video_map, self.video_metric, data.true_tubes(split), data.evaluation_grid)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.optimizer([nn.Parameter(torch.zeros(()))])  # only to learn the configured learning rate
        groups = parameter_groups(self.trained_modules(), self.lr_multipliers(), optimizer.defaults["lr"])
        optimizer = self.optimizer(groups)
        self.trainer.fit_loop.setup_data()  # else a run with max_steps alone does not know its epochs yet
        total_steps = int(self.trainer.estimated_stepping_batches)
        steps_per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        scheduler = scheduled(optimizer, self.schedule, total_steps, steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def trained_modules(self) -> list[tuple[str, nn.Module]]:
        """Names and modules whose parameters the optimiser gets."""
        return [("network", self.network)]

    def lr_multipliers(self) -> dict[str, float]:
        """Patterns of parameter names and how much faster than the rest they learn; the first match counts."""
        return dict.fromkeys(self.head, self.head_lr_multiplier)

    @property
    def progress(self) -> float:
        """How much of training is done, 0 to 1."""
        return min(1.0, self.trainer.global_step / max(1, int(self.trainer.estimated_stepping_batches)))

    def log_losses(self, losses: dict[str, Tensor], batch_size: int) -> None:
        """``total`` as ``train/loss``, every other entry beside it."""
        self.log("train/loss", losses["total"], prog_bar=True, batch_size=batch_size)
        terms = {f"train/loss/{name}": value for name, value in losses.items() if name != "total"}
        self.log_dict(terms, batch_size=batch_size)

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
            row, label = true_labels.nonzero(as_tuple=True)  # one row an action
            targets.append({"boxes": true_boxes[row] * factor, "labels": label})
        self.metric.update(predictions, targets)

    @staticmethod
    def pictures(
        frames: Tensor,
        scored: Sequence[ScoredBoxes],
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        image_sizes: Tensor,
        original_sizes: Tensor,
    ) -> dict[str, Any]:
        """What ``DetectionImages`` draws: frames (B, 3, H, W) with their boxes in pixels of the network input."""
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
        scored: Sequence[ScoredBoxes], video_ids: Sequence[str], timestamps: Tensor, original_sizes: Tensor
    ) -> dict[str, Any]:
        """What ``DetectionFile`` saves: detections of n keyframes, whose they are, and where: (n,) seconds, (n, 2)."""
        return {
            "scored": scored,
            "video_ids": video_ids,
            "timestamps": timestamps.tolist(),
            "original_sizes": original_sizes.tolist(),
        }

    def log_metric(self, stage: str) -> None:
        """``val/map`` and the AP of every class, then start over."""
        result = self.metric.compute()
        self._say(stage, result, "map", self.benchmark_protocol, ("frames", "boxes", "classes"))
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
        self._say(stage, result, "video_map_20", self.benchmark_video_protocol, ("videos", "tubes", "classes"))
        for name in ("map_20", "map_50", "map_75", "map_50_95"):
            self.log(f"{stage}/video_{name}", float(result[name]), rank_zero_only=True)

    def _say(self, stage: str, result: dict[str, Any], key: str, protocol: str | None, counted: Sequence[str]) -> None:
        """What was evaluated, once it is the run's purpose; and once a run why nothing was found, if so."""
        if self.trainer.sanity_checking:
            return
        if self.trainer.state.fn != "fit":
            counts = " ".join(f"{int(result[f'num_{what}'])} {what}" for what in counted)
            rank_zero_info(f"{stage}: {protocol}; ground truth of {counts}")
        if result["explanation"] and key not in self._zeros_explained:
            self._zeros_explained.add(key)
            value = float(result[key.removeprefix("video_")])
            rank_zero_warn(f"{stage}/{key} is {value:g}: {result['explanation']}")

    @property
    def benchmark_protocol(self) -> str:
        """Protocol and stride of ``test/map``, for the benchmark table."""
        return f"{self.metric.description}, stride {self.trainer.datamodule.frame_stride}"

    @property
    def benchmark_video_protocol(self) -> str | None:
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
