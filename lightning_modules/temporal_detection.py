"""Train and evaluate a detector of actions in time, on RGB, on motion or on stored features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from datamodules.batches import SegmentBatch

from .base import ExperimentModule, TrainingSettings
from .evaluation.benchmark import Benchmark
from .metrics.segment_map import SegmentMeanAveragePrecision
from .networks.layers.prepared import prepare_for_inference
from .networks.temporal.decomposed_detector import DecomposedDetector
from .networks.temporal.heads.segment_head import ScoredSegments
from .networks.temporal.suppression import SegmentSuppression
from .networks.temporal.temporal_detector import TemporalDetector
from .networks.temporal.two_stream_detector import TwoStreamDetector
from .segment_inputs import Modality, features_to_seconds, seconds_to_features, steps_of

VideoDetections = dict[str, Any]
"""``video_id``, ``segments`` (N, 2) seconds, ``scores`` (N,), ``labels`` (N,) of a whole video."""


@dataclass(frozen=True)
class SegmentSettings:
    """Settings of decoding and scoring segments.

    Args:
        suppression: see ``SegmentSuppression``.
        window_threshold: least score of a detection; lower ones are dropped per window.
        window_segments: largest number of detections kept per window, the best by score.
        tiou_thresholds: temporal IoUs that segment mAP is averaged over; 0.3 to 0.7 (THUMOS14) by default.
    """

    suppression: SegmentSuppression | None = None
    window_threshold: float = 0.001
    window_segments: int = 1000
    tiou_thresholds: Sequence[float] = (0.3, 0.4, 0.5, 0.6, 0.7)


class TemporalDetectionModule(ExperimentModule):
    """Train a temporal detector from ground truth; evaluate any on untrimmed videos.

    Evaluation passes over a video window by window; what the windows find is put together and suppressed once for the
    whole video.

    Args:
        network: a ``TemporalDetector``; or a ``DecomposedDetector`` or ``TwoStreamDetector``, to be evaluated alone.
        weights, optimizer, training: see ``ExperimentModule``.
        detection: how segments are decoded and scored.
        modality: what the network looks at.
    """

    def __init__(
        self,
        network: TemporalDetector | DecomposedDetector | TwoStreamDetector,
        weights: str | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        training: TrainingSettings = TrainingSettings(),  # noqa: B008  (frozen)
        detection: SegmentSettings = SegmentSettings(),
        modality: Modality = "rgb",
    ) -> None:
        super().__init__(network, weights, optimizer, training)
        self.modality, self.detection = modality, detection
        self.suppression = detection.suppression or SegmentSuppression()
        self.metric = SegmentMeanAveragePrecision(network.num_classes, detection.tiou_thresholds)
        self._found: dict[str, list[ScoredSegments]] = {}
        self._window: SegmentBatch | None = None

    @property
    def step_stride(self) -> int:
        return self.network.backbone.step_stride

    def training_step(self, batch: SegmentBatch, batch_idx: int) -> Tensor:
        outputs = self.network(steps_of(batch, self.modality), batch.mask)
        losses = self.network.final_head.loss(outputs.dense, *self.targets(batch))
        self.log_losses(losses, len(batch.mask))
        return losses["total"]

    def targets(self, batch: SegmentBatch) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Segments in units of features, and labels, of every window."""
        return seconds_to_features(batch, self.step_stride), batch.labels

    def detect(self, batch: SegmentBatch) -> list[ScoredSegments]:
        """Return the segments of each window, in seconds of its video, before suppression."""
        outputs = self.network(steps_of(batch, self.modality), batch.mask)
        threshold, most = self.detection.window_threshold, self.detection.window_segments
        decoded = self.network.final_head.decode(outputs.dense, threshold, most)
        return [features_to_seconds(found, batch, row, self.step_stride) for row, found in enumerate(decoded)]

    def finished_videos(self, batch: SegmentBatch) -> list[tuple[int, VideoDetections]]:
        """Detections of the videos whose last window is in the batch, each with the row of that window."""
        finished = []
        for row, found in enumerate(self.detect(batch)):
            video = batch.video_ids[row]
            if not video:  # placeholder
                continue
            self._found.setdefault(video, []).append(found)
            if batch.is_last[row]:
                windows = self._found.pop(video)
                whole = self.suppression(ScoredSegments(*(torch.cat(parts) for parts in zip(*windows, strict=True))))
                finished.append((row, {"video_id": video, **whole._asdict()}))
        return finished

    def validation_step(self, batch: SegmentBatch, batch_idx: int) -> list[VideoDetections]:
        finished = self.finished_videos(batch)
        for row, found in finished:
            truth = {"segments": batch.video_segments[row], "labels": batch.video_labels[row]}
            self.metric.update([{key: found[key] for key in ("segments", "scores", "labels")}], [truth])
        return [found for _, found in finished]

    test_step = validation_step

    def predict_step(self, batch: SegmentBatch, batch_idx: int) -> list[VideoDetections]:
        return [found for _, found in self.finished_videos(batch)]

    def log_metric(self, stage: str) -> None:
        """``val/map``, that at every threshold, and the AP of every class; then start over."""
        result = self.metric.compute()
        self.say(f"{stage}/map", result, self.protocol, ("videos", "segments"), "map")
        # The metric has already been synchronised over processes: every one logs the same numbers.
        self.log(f"{stage}/map", float(result["map"]), prog_bar=True, rank_zero_only=True)
        at_thresholds = result["map_per_threshold"].flatten()
        for threshold, value in zip(self.metric.tiou_thresholds, at_thresholds, strict=True):
            self.log(f"{stage}/map_{round(100 * threshold)}", float(value), rank_zero_only=True)
        names = self.trainer.datamodule.class_names
        for name, value in zip(names, result["map_per_class"].flatten(), strict=True):
            self.log(f"{stage}/ap/{name}", float(value), rank_zero_only=True)
        self.metric.reset()

    @property
    def protocol(self) -> str:
        """Describe the protocol of ``val/map`` and ``test/map``: the evaluator's, the videos, the steps."""
        data = self.trainer.datamodule
        steps = data.windows.in_evaluation
        windows = f"windows of {steps} steps" if steps else "whole videos"
        return f"{self.metric.protocol} on {data.evaluated_on}, {windows}"

    def benchmark(self) -> Benchmark:
        """Measure the first window of the run, from its pixels to segments after suppression.

        Optical flow is computed within the clock where the data compute it. Stored features are taken as they are:
        what their extraction costs is not in the figures, as the unit says.
        """
        prepare_for_inference(self.network)
        window, flow = self._window, getattr(self.trainer.datamodule, "flow", None)
        count = int(window.mask.sum())
        kind = "stored features" if window.frames is None else "frames"

        def step() -> ScoredSegments:
            seen = window
            if self.modality in ("flow", "rgb_and_flow") and flow is not None:
                frames = window.frames[0].permute(0, 2, 3, 1).cpu().numpy()  # (T, H, W, 3) uint8
                motion = torch.from_numpy(flow.method.of_steps(frames))[None].to(self.device)
                seen = window._replace(flow=motion)
            return self.suppression(self.detect(seen)[0])

        return Benchmark(
            self.network,
            (steps_of(window, self.modality), window.mask),
            f"window of {count} {kind}",
            step,
            new_frames=count,
        )

    def on_train_batch_start(self, batch: SegmentBatch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self._keep_first_window(batch)

    def on_validation_batch_start(self, batch: SegmentBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._keep_first_window(batch)

    on_test_batch_start = on_validation_batch_start

    def _keep_first_window(self, batch: SegmentBatch) -> None:
        """Keep a real window to measure: how much there is to suppress depends on what it shows."""
        if self._window is None:
            first = [part if part is None else part[:1] for part in batch]
            self._window = SegmentBatch(*(part.clone() if isinstance(part, Tensor) else part for part in first))

    def on_validation_epoch_start(self) -> None:
        self._found.clear()

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        self.log_metric("val")

    def on_test_epoch_end(self) -> None:
        self.log_metric("test")
