"""Train and evaluate a clip detector: the teacher."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from datamodules.batches import ClipBatch
from datamodules.errors import UserError

from .base import TrainingSettings
from .detection_base import DetectionModule, DetectionSettings
from .evaluation.benchmark import Benchmark, FrameSize
from .evaluation.detection_evaluator import DetectionEvaluator
from .evaluation.tracked import TrackedFrame, people_of
from .losses.detection import DetectionLoss
from .networks.detection.evad import EvadTeacher
from .networks.detection.outputs import ScoredBoxes
from .networks.detection.published_cost import published_gflops
from .networks.layers.pixels import normalise_frames
from .networks.layers.prepared import prepare_for_inference
from .networks.layers.trunk_size import TUBELET


class ClipDetectionModule(DetectionModule):
    """Train EVAD on clips around annotated keyframes.

    Args:
        network, weights, optimizer, training, detection, pretrained: see ``DetectionModule``.
        loss: see ``DetectionLoss``.
        one_slot_until: share of training in which only the keyframe's own slot is shown. From scratch a detector must
            first learn what a person looks like; on whole clips from the start it learns neither. Set to 0 with
            pre-trained weights.
    """

    def __init__(
        self,
        network: EvadTeacher,
        weights: str | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        training: TrainingSettings = TrainingSettings(),  # noqa: B008  (frozen)
        detection: DetectionSettings = DetectionSettings(),  # noqa: B008  (frozen)
        pretrained: str | None = None,
        loss: DetectionLoss | None = None,
        one_slot_until: float = 0.0,
    ) -> None:
        super().__init__(network, weights, optimizer, training, detection, pretrained)
        self.loss = loss or DetectionLoss()
        self.one_slot_until = one_slot_until

    def setup(self, stage: str) -> None:
        """Compare the frames of a clip, and the place of its keyframe, in network and data."""
        super().setup(stage)
        data = self.trainer.datamodule
        if not hasattr(data, "window"):
            return
        if data.num_frames % TUBELET:
            raise UserError(
                f"the network embeds {TUBELET} frames at a time, so a clip of {data.num_frames} does not fit",
                where="data.num_frames",
                remedy=f"take a multiple of {TUBELET}",
            )
        in_network, in_data = self.network.keyframe_of(data.num_frames), data.window.past - 1
        if in_network != in_data:
            raise UserError(
                f"the network has the keyframe in place {in_network} of a clip of {data.num_frames} frames (keyframe: "
                f"{self.network.keyframe}), the data in place {in_data}",
                where="data.init_args.past_frames",
                remedy=f"set it to {in_network + 1}",
            )

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        frames = batch.frames
        if self.progress < self.one_slot_until:
            (keyframe,) = batch.keyframes
            first = keyframe // TUBELET * TUBELET
            frames = frames[:, first : first + TUBELET]
        outputs = self.network.outputs(self._clips(frames, batch.image_sizes), batch.image_sizes, deep=True)
        losses = self.loss(
            outputs.person_logits,
            outputs.boxes,
            outputs.action_logits,
            batch.boxes,
            batch.labels,
            batch.annotated[:, 0],
            batch.image_sizes,
        )
        self.log_losses(losses, len(frames))
        return losses["total"]

    @staticmethod
    def _clips(frames: Tensor, image_sizes: Tensor) -> Tensor:
        """uint8 (B, T, 3, H, W) -> normalised (B, 3, T, H, W)."""
        return normalise_frames(frames, image_sizes).transpose(1, 2)

    def detect(self, batch: ClipBatch) -> list[ScoredBoxes]:
        """Scored boxes of every clip's keyframe, in pixels of the original video."""
        detections = self.network(self._clips(batch.frames, batch.image_sizes), batch.image_sizes)
        return self.decode(detections, batch.image_sizes, batch.original_sizes)

    def make_evaluator(self, split: Literal["val", "test"]) -> DetectionEvaluator:
        """Make the evaluator. Only annotated frames of clips are evaluated: video mAP needs them to be all frames."""
        evaluator = super().make_evaluator(split)
        if evaluator.videos is None:
            return evaluator
        truth = evaluator.videos.truth
        sparse = [name for name, video in truth.items() if len(video.annotated) < video.num_slots]
        if sparse:
            video = truth[sparse[0]]
            raise UserError(
                "video mAP links every sampled frame, but a clip detector is evaluated on annotated ones alone: "
                f"{len(video.annotated)} of {video.num_slots} in {sparse[0]}, one of {len(sparse)} such videos. Set "
                "every_frame=true where the source has it (UCF101-24, JHMDB), or data.init_args.keyframe_grid to the "
                "spacing of the annotation, or leave model.detection.video_map out"
            )
        if self.trainer.world_size > 1:
            raise UserError(
                "video mAP of a clip detector needs all clips of a video on one process; set trainer.devices=1"
            )
        return evaluator

    def validation_step(self, batch: ClipBatch, batch_idx: int) -> dict[str, Any]:
        scored = self.detect(batch)
        counted = [index for index, video in enumerate(batch.video_ids) if video]  # the others are placeholders
        scored, boxes, labels, videos = (
            [entries[index] for index in counted] for entries in (scored, batch.boxes, batch.labels, batch.video_ids)
        )
        image_sizes, original_sizes = batch.image_sizes[counted], batch.original_sizes[counted]
        self.evaluator.add_keyframes(scored, boxes, labels, image_sizes, original_sizes)
        if (evaluation := self.evaluator.videos) is not None:
            truth, times = evaluation.truth, batch.timestamps[counted, 0].tolist()
            slots = [truth[video].annotated[time] for video, time in zip(videos, times, strict=True)]
            evaluation.add(list(zip(videos, slots, strict=True)), scored)
        shown = batch.frames[counted, batch.keyframes[0]]
        pictures = self.pictures(shown, scored, boxes, labels, image_sizes, original_sizes)
        return pictures | self.keyframes(scored, videos, batch.timestamps[counted, 0].tolist(), original_sizes)

    test_step = validation_step

    def predict_step(self, batch: ClipBatch, batch_idx: int) -> list[TrackedFrame]:
        """Return the keyframe of each clip with all detections, without tracks."""
        sizes = map(tuple, batch.original_sizes.tolist())
        times = batch.timestamps[:, 0].tolist()
        return [
            TrackedFrame(video, time, None, size, people_of(found, self.trainer.datamodule.class_names))
            for video, time, size, found in zip(batch.video_ids, times, sizes, self.detect(batch), strict=True)
            if video
        ]

    def benchmark(self) -> Benchmark:
        """Measure the clip that was scored, which may be shorter than the network's: a single frame shows one slot."""
        prepare_for_inference(self.network)
        frame, num_frames = self.measured_frame, self.trainer.datamodule.num_frames
        clip, sizes = benchmark_clip(frame, num_frames, self.device)
        return Benchmark(
            self.network,
            (clip, sizes),
            "clip",
            lambda: self.decode(self.network(clip, sizes), sizes, sizes),
            frame=frame.padded,
            delay=self.trainer.datamodule.window.future,
            # What was published has no stem.
            published_gflops=None
            if self.network.backbone.stem
            else published_gflops(self.network, *frame.padded, num_frames).total,
        )


def benchmark_clip(frame: FrameSize, num_frames: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A normalised clip (1, 3, T, H, W) of random pixels, and its size before padding (1, 2)."""
    clip = torch.randn(1, 3, num_frames, *frame.padded, device=device)
    return clip, torch.tensor([frame.image], device=device)
