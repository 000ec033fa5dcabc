"""Train and evaluate a streaming detector; owns the stream state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.utils._pytree import tree_map

from datamodules.batches import ClipBatch, StreamBatch
from datamodules.errors import UserError

from .base import TrainingSettings
from .detection_base import DetectionModule, DetectionSettings
from .evaluation.benchmark import Benchmark, Step
from .evaluation.delays import check_delays
from .evaluation.predictions import Answer
from .evaluation.stream_predictor import StreamPredictor
from .evaluation.tracked import TrackedFrame
from .losses.detection import DetectionLoss
from .losses.distillation import ActionImitation
from .networks.detection.outputs import Detections, DetectorOutputs, ScoredBoxes
from .networks.layers.pixels import normalise_frames
from .networks.layers.prepared import prepare_for_inference
from .networks.students.detector import DetectorState, StreamingDetector
from .networks.students.trunk import EncodedFrames
from .networks.weights.loading import read_state_dict
from .networks.weights.student_start import student_from_teacher


@dataclass(frozen=True)
class StreamSettings(DetectionSettings):
    """Settings of decoding and scoring detections of a stream, those of late predictions included.

    Args:
        person_threshold, score, metric, video_map: see ``DetectionSettings``.
        scored_delays: delays in sampled frames for which evaluation also reports the accuracy of late predictions,
            ``test/map_delay_2`` and the like, see ``DelayedEvaluation``; none by default.
    """

    scored_delays: Sequence[int] = ()

    def __post_init__(self) -> None:
        check_delays(self.scored_delays)


@dataclass(frozen=True)
class DelayTraining:
    """Settings of training one network for several delays, of which any is chosen when it runs.

    A step predicts twice about the same frames, with the longest delay and with one of the others, drawn anew. The
    trunk runs once. Both learn from the ground truth. The late prediction, which has seen more, teaches the early one
    (in-place distillation, Yu et al., "Dual-mode ASR", ICLR 2021).

    Args:
        delays: two or more delays, in frames of the stream.
        imitation: weight of the late action scores beside the ground truth; 0 leaves them out.
    """

    delays: Sequence[int]
    imitation: float = 5.0

    def __post_init__(self) -> None:
        if len(set(self.delays)) < 2 or min(self.delays) < 0:
            raise ValueError(f"delays must be two or more different numbers of frames, got {list(self.delays)}")
        if self.imitation < 0:
            raise ValueError(f"imitation must not be negative, got {self.imitation}")

    def draw(self) -> tuple[int, int]:
        """Return the longest delay and one of the others."""
        others = sorted(set(self.delays) - {max(self.delays)})
        return max(self.delays), others[int(torch.randint(len(others), ()))]


class StreamDetectionModule(DetectionModule):
    """Train a streaming detector from ground truth alone, on short runs of frames that end at supervised ones.

    The frames before the supervised ones warm the state up. Evaluation walks through whole videos, chunk by chunk, see
    ``StreamPredictor``. With a look-ahead of the network, training and evaluation place its predictions accordingly.

    Args:
        network, weights, optimizer, training, pretrained: see ``DetectionModule``.
        detection: how detections are decoded and scored.
        loss: see ``DetectionLoss``.
        start_from: weights of a clip detector (EVAD) that the student starts from, see ``student_from_teacher``.
        delay_training: training for several delays at once, see ``DelayTraining``; by default for the network's own
            delay.
    """

    def __init__(
        self,
        network: StreamingDetector,
        weights: str | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        training: TrainingSettings = TrainingSettings(),  # noqa: B008  (frozen)
        detection: StreamSettings = StreamSettings(),
        pretrained: str | None = None,
        loss: DetectionLoss | None = None,
        start_from: str | None = None,
        delay_training: DelayTraining | None = None,
    ) -> None:
        if start_from is not None:
            student_from_teacher(network, read_state_dict(start_from))
        super().__init__(network, weights, optimizer, training, detection, pretrained)
        self.loss = loss or DetectionLoss()
        self.delay_training, self.imitation = delay_training, ActionImitation()
        for delay in delay_training.delays if delay_training else ():
            replace(network.timing, look_ahead=delay)  # which refuses what cannot be
        if delay_training and network.timing.look_ahead not in delay_training.delays:
            raise UserError(
                f"are {list(delay_training.delays)}, and the network is evaluated with a delay of "
                f"{network.timing.look_ahead}",
                where="model.delay_training.delays",
                remedy="add that one, or set model.network.timing.look_ahead to one of them",
            )
        self.stream = StreamPredictor(network, self.decode)

    def setup(self, stage: str) -> None:
        """Refuse windows without labels where nothing would be learned from them."""
        super().setup(stage)
        unlabelled = getattr(self.trainer.datamodule, "unlabelled", None)
        if stage == "fit" and unlabelled is not None and not self.learns_without_labels:
            raise UserError(
                f"{type(self).__name__} as configured learns from labels alone",
                where="data.unlabelled",
                remedy="leave it out, or let a teacher teach (DistillationModule with terms)",
            )

    @property
    def learns_without_labels(self) -> bool:
        """Return whether anything is learned from windows without labels."""
        return self.delay_training is not None and self.delay_training.imitation > 0

    @property
    def delays(self) -> Sequence[int]:
        return self.detection.scored_delays

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        frames = normalise_frames(batch.frames, batch.image_sizes)
        if self.delay_training is None:
            losses = self.losses(batch, self.detect_supervised(batch, *self.encode(batch, frames)))
        else:
            losses = self.losses_of_two_delays(batch, frames, self.delay_training)
        self.log_losses(losses, len(batch.frames))
        return losses["total"]

    def losses_of_two_delays(self, batch: ClipBatch, frames: Tensor, training: DelayTraining) -> dict[str, Tensor]:
        """Return the mean losses of the longest delay and another one, and what the late prediction teaches."""
        own, (longest, shorter) = self.network.timing, training.draw()
        try:
            self.network.set_timing(replace(own, look_ahead=longest))
            encoded, state = self.encode(batch, frames)
            late = self.detect_supervised(batch, encoded, state)
            self.network.set_timing(replace(own, look_ahead=shorter))
            seen = encoded.tokens.shape[1] - longest + shorter
            state = self.network.initial_state(len(frames), self.network.pixel_size(frames), device=frames.device)
            early = self.detect_supervised(batch, tree_map(lambda part: part[:, :seen], encoded), state)
        finally:
            self.network.set_timing(own)
        both = self.losses(batch, late), self.losses(batch, early)
        losses = {name: (both[0][name] + both[1][name]) / 2 for name in both[0]}
        # Before the start of a video there is nobody: its first frame is repeated there.
        persons = late.person_logits[-1].detach().softmax(-1)[..., 0] * batch.exists.flatten()[:, None]
        losses["late"] = training.imitation * self.imitation(
            early.action_logits, late.action_logits[-1].detach(), persons
        )
        losses["total"] = losses["total"] + losses["late"]
        return losses

    def encode(self, batch: ClipBatch, frames: Tensor) -> tuple[EncodedFrames, DetectorState]:
        """Encode training windows up to the output about their last supervised frame; return the state before them too.

        ``frames`` are the batch's, normalised.
        """
        first, last = batch.keyframes[0], batch.keyframes[-1]
        if last - first + 1 != len(batch.keyframes):
            raise UserError(f"a streaming detector is supervised on consecutive frames, got {batch.keyframes}")
        look_ahead = self.network.timing.look_ahead
        if last + look_ahead >= frames.shape[1]:
            raise UserError(
                f"a look_ahead of {look_ahead} reaches outside the sample of {frames.shape[1]} frames; set at least "
                f"data.init_args.train_future_frames={look_ahead}"
            )
        state = self.network.initial_state(len(frames), self.network.pixel_size(frames), device=frames.device)
        encoded, _ = self.network.encode(frames[:, : last + 1 + look_ahead], state)
        return encoded, state

    def detect_supervised(self, batch: ClipBatch, encoded: EncodedFrames, state: DetectorState) -> DetectorOutputs:
        """Return outputs at the L supervised frames, folded into the batch."""
        outputs, *_ = self.network.detect(
            encoded, state, batch.image_sizes, last=len(batch.keyframes), deep=True, ends_here=True
        )
        return outputs

    def losses(self, batch: ClipBatch, outputs: DetectorOutputs) -> dict[str, Tensor]:
        """Return the losses of outputs at the supervised frames against the ground truth."""
        return self.loss(
            outputs.person_logits,
            outputs.boxes,
            outputs.action_logits,
            batch.boxes,
            batch.labels,
            batch.annotated.flatten(),
            batch.image_sizes.repeat_interleave(len(batch.keyframes), dim=0),
        )

    def on_validation_epoch_start(self) -> None:
        self.stream.reset()

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: StreamBatch, batch_idx: int) -> dict[str, Any]:
        answers = self.stream.add(batch)
        self.link(answers)
        self.evaluator.delays.add(answers)
        pairs = list(zip(answers, self.stream.link(answers), strict=True))
        linked = [seen for answer, seen in pairs if answer.frame.annotated]
        frames = [answer.frame for answer in answers if answer.frame.annotated]
        scored = [answer.found for answer in answers if answer.frame.annotated]
        boxes, labels = [frame.boxes for frame in frames], [frame.labels for frame in frames]
        nothing = batch.image_sizes[:0]
        image_sizes = torch.stack([frame.image_size for frame in frames]) if frames else nothing
        original_sizes = torch.stack([frame.original_size for frame in frames]) if frames else nothing
        self.evaluator.add_keyframes(scored, boxes, labels, image_sizes, original_sizes, linked)
        shown = [frame.pixels for frame in frames]
        pictures = self.pictures(shown, scored, boxes, labels, image_sizes, original_sizes)
        videos, times = [frame.video_id for frame in frames], [frame.timestamp for frame in frames]
        return pictures | self.keyframes(scored, videos, times, original_sizes)

    test_step = validation_step

    def link(self, answers: Sequence[Answer]) -> None:
        """Hand what was said about frames, annotated or not, on to video mAP."""
        if (evaluation := self.evaluator.videos) is not None:
            frames = [(answer.frame.video_id, answer.frame.index // evaluation.stride) for answer in answers]
            evaluation.add(frames, [answer.found for answer in answers])

    def log_metric(self, stage: str) -> None:
        super().log_metric(stage)
        self.log(f"{stage}/tracked_map", self.evaluator.finish_tracked(), rank_zero_only=True)
        late = {f"{stage}/{name}": value for name, value in self.evaluator.delays.finish().items()}
        self.log_dict(late, rank_zero_only=True)

    def predict_step(self, batch: StreamBatch, batch_idx: int) -> list[TrackedFrame]:
        """Return the frames whose predictions have come, with the people in them."""
        return self.stream.track(self.stream.add(batch), self.trainer.datamodule.class_names)

    @property
    def protocol(self) -> str:
        """Protocol of ``test/map`` as of every detector, with the delay of the predictions."""
        late = self.network.look_ahead
        return f"{super().protocol}, answers {late} frames late" if late else super().protocol

    def benchmark(self) -> Benchmark:
        prepare_for_inference(self.network)
        padded, image = self.measured_frame
        frame = torch.randn(1, 1, 3, *padded, device=self.device)
        sizes = torch.tensor([image], device=self.device)
        initial = self.network.initial_state(1, padded, device=self.device)
        state = initial

        def step() -> list[ScoredBoxes]:
            nonlocal state
            detections, state = self.network(frame, state, sizes)
            return self.decode(Detections(*(part[:, 0] for part in detections)), sizes, sizes)

        return Benchmark(
            self.network,
            (frame, initial, sizes),
            "frame",
            step,
            frame=padded,
            delay=self.network.timing.look_ahead,
            state=initial,
            reference=self.reference_step(),
        )

    def reference_step(self) -> Step | None:
        """Return the step that the speed-up is relative to; without a teacher there is none."""
        return None
