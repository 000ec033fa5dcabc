"""What every detection experiment shares: optimiser, decoding, the metric, the benchmark's questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from .metrics.frame_map import FrameMeanAveragePrecision
from .networks.detections import Detections, ScoredBoxes, ScoreRule, decode_detections
from .networks.weights import load_exactly, read_state_dict
from .optimisation import parameter_groups, warmup_cosine


class DetectionModule(L.LightningModule):
    """Base of the experiments on spatio-temporal detection; thin on purpose.

    Args:
        network: the detector that is trained and evaluated.
        optimizer: called with parameter groups.
        weights: a weights file or checkpoint to start from (or to evaluate). Nothing may be missing or left over.
        fresh: patterns of parameters that start fresh although ``weights`` are given; for other classes than the
            weights know: ``["decoder.blocks.*.action_logits.*"]``.
        warmup_fraction, final_lr_fraction: of the cosine schedule.
        head_lr_multiplier: learning rate of localizer and decoder over that of the rest.
        person_threshold, score: how detections are decoded, see ``decode_detections``.
    """

    head: Sequence[str] = ("network.localizer.stages.*", "network.decoder.*")

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        weights: str | None = None,
        fresh: Sequence[str] = (),
        warmup_fraction: float = 0.05,
        final_lr_fraction: float = 0.01,
        head_lr_multiplier: float = 1.0,
        person_threshold: float = 0.0,
        score: ScoreRule = "person_x_action",
    ) -> None:
        super().__init__()
        self.network = network
        self.optimizer, self.weights = optimizer, weights
        self.warmup_fraction, self.final_lr_fraction = warmup_fraction, final_lr_fraction
        self.head_lr_multiplier = head_lr_multiplier
        self.person_threshold, self.score = person_threshold, score
        if weights is not None:
            load_exactly(network, read_state_dict(weights), fresh)
        elif fresh:
            raise ValueError(
                "fresh names parameters that the weights shall leave alone; set weights too, or drop fresh"
            )
        self.metric = FrameMeanAveragePrecision(network.num_classes, protocol="ava")

    def setup(self, stage: str) -> None:
        """Compare the classes of the network with those of the data before anything runs."""
        in_network, in_data = self.network.num_classes, self.trainer.datamodule.num_classes
        if in_network != in_data:
            raise ValueError(
                f"network has {in_network} classes but the data has {in_data}; set "
                f"model.init_args.network.init_args.num_classes={in_data}"
            )

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.optimizer([nn.Parameter(torch.zeros(()))])  # only to learn the configured learning rate
        groups = parameter_groups(self.trained_modules(), self.lr_multipliers(), optimizer.defaults["lr"])
        optimizer = self.optimizer(groups)
        total_steps = int(self.trainer.estimated_stepping_batches)
        scheduler = warmup_cosine(optimizer, total_steps, self.warmup_fraction, self.final_lr_fraction)
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
            num_boxes, num_classes = found.scores.shape
            predictions.append(
                {
                    "boxes": found.boxes.repeat_interleave(num_classes, dim=0),
                    "scores": found.scores.flatten(),
                    "labels": torch.arange(num_classes, device=found.scores.device).repeat(num_boxes),
                }
            )
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

    def log_metric(self, stage: str) -> None:
        """``val/map`` and the AP of every class, then start over."""
        result = self.metric.compute()
        names = self.trainer.datamodule.class_names
        # The metric has already been synchronised over processes: every one logs the same numbers.
        self.log(f"{stage}/map", float(result["map"]), prog_bar=True, rank_zero_only=True)
        for index, value in zip(result["classes"], result["map_per_class"], strict=True):
            self.log(f"{stage}/ap/{names[int(index)]}", float(value), rank_zero_only=True)
        self.metric.reset()

    @property
    def benchmark_protocol(self) -> str:
        """Protocol and stride of ``test/map``, for the benchmark table."""
        stride = self.trainer.datamodule.frame_stride
        return f"{self.metric.protocol} frame mAP@{self.metric.iou_threshold:g}, stride {stride}"

    def on_validation_epoch_end(self) -> None:
        self.log_metric("val")

    def on_test_epoch_end(self) -> None:
        self.log_metric("test")
