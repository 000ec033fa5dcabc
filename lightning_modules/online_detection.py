"""Train and evaluate per-frame class scores as frames arrive: online action detection."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from datamodules.batches import SegmentBatch
from datamodules.errors import UserError

from .base import ExperimentModule, TrainingSettings
from .evaluation.benchmark import Benchmark
from .metrics.per_frame_map import PerFrameMeanAveragePrecision, frame_targets
from .networks.layers.prepared import prepare_for_inference
from .networks.temporal.frame_scores import FrameScores
from .segment_inputs import Modality, steps_of


class OnlineDetectionModule(ExperimentModule):
    """Train a causal network to score the actions of every frame, one binary question per class.

    A training window begins with the initial state, as a stream does. Evaluation passes through every video once and
    takes its state along from window to window: what windows repeat of the ones before is left out.

    Args:
        network: see ``FrameScores``.
        weights, optimizer, training: see ``ExperimentModule``.
        modality: what it looks at; the temporal gradient is not for streams.
    """

    def __init__(
        self,
        network: FrameScores,
        weights: str | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        training: TrainingSettings = TrainingSettings(),  # noqa: B008  (frozen)
        modality: Modality = "rgb",
    ) -> None:
        if modality == "temporal_gradient":
            raise UserError(
                "temporal_gradient needs the frame before a window, which the next batch no longer has",
                where="model.modality",
                remedy="take rgb, flow or features",
            )
        super().__init__(network, weights, optimizer, training)
        self.modality = modality
        self.metric = PerFrameMeanAveragePrecision(network.num_classes)
        self.state: Any = None
        self.video: str | None = None
        """Whose state it is."""
        self.next_time = 0.0
        """The middle of the video's next step, in seconds."""

    def training_step(self, batch: SegmentBatch, batch_idx: int) -> Tensor:
        steps = steps_of(batch, self.modality)
        logits, _ = self.network(steps, self.network.state_for(steps))
        targets, ambiguous = self.targets(batch)
        loss = frame_loss(logits, targets, batch.mask & ~ambiguous)
        self.log_losses({"total": loss}, len(steps))
        return loss

    def targets(self, batch: SegmentBatch) -> tuple[Tensor, Tensor]:
        """(B, T, K) bool, and (B, T) bool: True where it is ambiguous. Segments count that a window barely shows,
        too."""
        found = [
            frame_targets(times, segments, labels, ambiguous, self.network.num_classes)
            for times, segments, labels, ambiguous in zip(
                batch.times, batch.video_segments, batch.video_labels, batch.video_ambiguous, strict=True
            )
        ]
        targets, ambiguous = (torch.stack(parts) for parts in zip(*found, strict=True))
        return targets, ambiguous

    def advance(self, batch: SegmentBatch) -> list[tuple[int, Tensor]]:
        """Rows of the batch that show something new, and the scores of their new steps, (n, K) between 0 and 1.

        The rows of an evaluation batch follow each other in time, so they are not lanes: one state goes through them.
        """
        steps, scores = steps_of(batch, self.modality), []
        for row, video in enumerate(batch.video_ids):
            if not video or not batch.is_new[row].any():  # placeholder
                continue
            chunk = steps[row : row + 1, batch.is_new[row]]
            if video != self.video:
                self.state, self.video = self.network.state_for(chunk), video
            else:
                self._check_order(batch, row)
            logits, self.state = self.network(chunk, self.state)
            self.next_time = float(batch.times[row][batch.is_new[row]][-1] + batch.step_seconds[row])
            scores.append((row, logits[0].float().sigmoid()))
            if batch.is_last[row]:
                self.state = self.video = None
        return scores

    def _check_order(self, batch: SegmentBatch, row: int) -> None:
        begins = float(batch.times[row][batch.is_new[row]][0])
        if abs(begins - self.next_time) > float(batch.step_seconds[row]) / 2:
            raise UserError(
                f"a window of {self.video} begins at {begins:g} s, but the stream is at {self.next_time:g} s; windows "
                "must follow each other without gap or overlap, as those of SegmentDataModule do in evaluation"
            )

    def validation_step(self, batch: SegmentBatch, batch_idx: int) -> None:
        targets, ambiguous = self.targets(batch)
        for row, scores in self.advance(batch):
            new = batch.is_new[row]
            self.metric.update(scores, targets[row, new], ambiguous[row, new])

    test_step = validation_step

    def predict_step(self, batch: SegmentBatch, batch_idx: int) -> list[dict[str, Any]]:
        """``video_id``, ``times`` (n,) seconds and ``frame_scores`` (n, K) of the new steps of every window."""
        return [
            {
                "video_id": batch.video_ids[row],
                "times": batch.times[row, batch.is_new[row]],
                "frame_scores": scores,
            }
            for row, scores in self.advance(batch)
        ]

    def log_metric(self, stage: str) -> None:
        """``val/map``, ``val/calibrated_map`` and the AP of every class; then start over."""
        result = self.metric.compute()
        self.say(f"{stage}/map", result, self.protocol, ("frames", "positives"), "map")
        # The metric has already been synchronised over processes: every one logs the same numbers.
        self.log(f"{stage}/map", float(result["map"]), prog_bar=True, rank_zero_only=True)
        self.log(f"{stage}/calibrated_map", float(result["calibrated_map"]), rank_zero_only=True)
        names = self.trainer.datamodule.class_names
        # torchmetrics turns the vectors of a single class into scalars.
        for index, value in zip(result["classes"].flatten(), result["map_per_class"].flatten(), strict=True):
            self.log(f"{stage}/ap/{names[int(index)]}", float(value), rank_zero_only=True)
        self.metric.reset()

    def on_validation_epoch_start(self) -> None:
        self.state = self.video = None

    on_test_epoch_start = on_validation_epoch_start

    def on_predict_epoch_start(self) -> None:
        self.state = self.video = None
        prepare_for_inference(self.network)

    def on_validation_epoch_end(self) -> None:
        self.log_metric("val")

    def on_test_epoch_end(self) -> None:
        self.log_metric("test")

    @property
    def protocol(self) -> str:
        """Rules and videos of ``val/map`` and ``test/map``."""
        return f"{self.metric.protocol} on {self.trainer.datamodule.evaluated_on}"

    def benchmark(self) -> Benchmark:
        prepare_for_inference(self.network)
        frame = torch.randn(1, 1, *self.network.step_shape, device=self.device)
        initial = self.network.state_for(frame)
        state = initial

        def step() -> Tensor:
            nonlocal state
            logits, state = self.network(frame, state)
            return logits.sigmoid()

        return Benchmark(self.network, (frame, initial), "frame", step, delay=0, state=initial)


def frame_loss(logits: Tensor, targets: Tensor, counted: Tensor) -> Tensor:
    """Binary cross-entropy, the mean over classes and the steps that count; a zero with gradient where none does.

    Shapes: logits and targets (B, T, K), counted (B, T) bool.
    """
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none").mean(2)
    return losses.masked_fill(~counted, 0).sum() / counted.sum().clamp(min=1)
