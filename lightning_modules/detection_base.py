"""Base of experiments on spatio-temporal detection: decoding, metrics, pictures and saved detections."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from datamodules.batches import ClipBatch, StreamBatch
from datamodules.errors import UserError

from .base import ExperimentModule, TrainingSettings
from .evaluation.benchmark import FrameSize
from .evaluation.detection_evaluator import DetectionEvaluator, DetectionSettings
from .evaluation.map_stem import check_stem
from .networks.detection.outputs import Detections, ScoredBoxes
from .networks.layers.prepared import prepare_for_inference
from .networks.layers.stem import pixel_size, stem_of
from .networks.weights.image_vit import load_pretrained

NAMES_SHOWN = 5


class DetectionModule(ExperimentModule):
    """Base of the experiments on spatio-temporal detection; thin on purpose.

    Args:
        network, weights, optimizer, training: see ``ExperimentModule``.
        detection: how detections are decoded and scored.
        pretrained: weights that the encoder starts from, see ``load_pretrained``. A file of VideoMAE or of an image ViT
            in timm's naming, or ``timm:NAME`` for one of timm's hub. Excluded with ``weights``.
    """

    def __init__(
        self,
        network: nn.Module,
        weights: str | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        training: TrainingSettings = TrainingSettings(),  # noqa: B008  (frozen)
        detection: DetectionSettings = DetectionSettings(),  # noqa: B008  (frozen)
        pretrained: str | None = None,
    ) -> None:
        if pretrained is not None and weights is not None:
            raise UserError(
                f"weights={weights} hold the backbone that pretrained={pretrained} would start",
                remedy="leave one of them out",
            )
        super().__init__(network, weights, optimizer, training)
        self.detection = detection
        if pretrained is not None:
            rank_zero_info(f"{pretrained}\n{load_pretrained(network, pretrained)}")
        self.evaluator: DetectionEvaluator | None = None
        self._frame_size: FrameSize | None = None
        """That of the run's first batch."""

    def setup(self, stage: str) -> None:
        """Make the evaluator, which depends on the data: on the classes that are scored and on the true tubes."""
        super().setup(stage)
        self._frame_size = None
        if stage != "predict":
            self.evaluator = self.make_evaluator("test" if stage == "test" else "val")

    def make_evaluator(self, split: Literal["val", "test"]) -> DetectionEvaluator:
        data = self.trainer.datamodule
        # A DataModule that says nothing has all of its classes scored.
        scored = getattr(data, "evaluated_classes", None)
        if self.detection.video_map is None:
            return DetectionEvaluator(self.detection, self.network.num_classes, scored, delays=self.delays)
        tubes, stride = data.true_tubes(split), data.evaluation_grid
        return DetectionEvaluator(self.detection, self.network.num_classes, scored, tubes, stride, self.delays)

    @property
    def delays(self) -> Sequence[int]:
        """Sampled frames by which evaluation also reads predictions late; for streams alone."""
        return ()

    def decode(self, detections: Detections, image_sizes: Tensor, original_sizes: Tensor) -> list[ScoredBoxes]:
        return self.detection.decode(detections, image_sizes, original_sizes)

    @staticmethod
    def pictures(
        frames: Sequence[Tensor],
        scored: Sequence[ScoredBoxes],
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        image_sizes: Tensor,
        original_sizes: Tensor,
    ) -> dict[str, Any]:
        """Return the input of ``DetectionImages``: B frames (3, H, W), their boxes in pixels of the network input.

        Frames of which there are maps alone are black.
        """
        black = [torch.zeros(3, *size, dtype=torch.uint8) for size in image_sizes.tolist()]
        frames = [shown if shown.dtype == torch.uint8 else none for shown, none in zip(frames, black, strict=True)]
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
        result = self.evaluator.finish()
        self.say(f"{stage}/map", result, self.protocol, ("frames", "boxes", "classes"), "map")
        names = self.trainer.datamodule.class_names
        # The metric has already been synchronised over processes: every one logs the same numbers.
        self.log(f"{stage}/map", float(result["map"]), prog_bar=True, rank_zero_only=True)
        # torchmetrics turns the vectors of a single class into scalars.
        for index, value in zip(result["classes"].flatten(), result["map_per_class"].flatten(), strict=True):
            self.log(f"{stage}/ap/{names[int(index)]}", float(value), rank_zero_only=True)

    def log_video_metric(self, stage: str) -> None:
        """``val/video_map_20``, ``_50``, ``_75`` and ``_50_95``, where video mAP is wanted; then start over."""
        if (videos := self.evaluator.videos) is None:
            return
        cut, result = videos.cut, videos.finish()
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
        """Protocol of ``test/map``, the stride at which frames are seen, and whether all are scored, for the table."""
        data = self.trainer.datamodule
        every = ", every frame scored" if data.evaluation_grid == 1 < data.frame_stride else ""
        return f"{self.evaluator.metric.description}, stride {data.frame_stride}{every}"

    @property
    def video_protocol(self) -> str | None:
        """Protocol, linker and stride of ``test/video_map_50``; None without."""
        linking = self.detection.video_map
        return None if linking is None else f"{linking}, stride {self.trainer.datamodule.evaluation_grid}"

    @property
    def measured_frame(self) -> FrameSize:
        """Size of the frames to measure: the run's, or the square the network was made for before any batch."""
        square = (self.network.frame_size, self.network.frame_size)
        return self._frame_size or FrameSize(square, square)

    def on_train_batch_start(self, batch: ClipBatch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self._keep_frame_size(batch)

    def on_validation_batch_start(
        self, batch: ClipBatch | StreamBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._keep_frame_size(batch)

    on_test_batch_start = on_validation_batch_start

    def _keep_frame_size(self, batch: ClipBatch | StreamBatch) -> None:
        """Keep the size of the first frames that come, the largest of them before padding; placeholders have none."""
        if self._frame_size is not None:
            return
        if shown := [row for row, video in enumerate(batch.video_ids) if video]:
            height, width = batch.image_sizes[shown].amax(0).tolist()
            self._frame_size = FrameSize(pixel_size(batch.frames, stem_of(self.network)), (height, width))

    # Not in setup: a checkpoint may bring the stem's weights only after it.
    def on_fit_start(self) -> None:
        super().on_fit_start()
        check_stem(self.network, self.trainer.datamodule)

    def on_validation_start(self) -> None:
        check_stem(self.network, self.trainer.datamodule)

    on_test_start = on_validation_start

    def on_predict_start(self) -> None:
        check_stem(self.network, self.trainer.datamodule)
        prepare_for_inference(self.network)

    def on_validation_epoch_end(self) -> None:
        self.log_metric("val")
        self.log_video_metric("val")

    def on_test_epoch_end(self) -> None:
        self.log_metric("test")
        self.log_video_metric("test")
