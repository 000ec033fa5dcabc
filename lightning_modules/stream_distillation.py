"""Distil a frozen clip teacher into a streaming student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from datamodules.batches import ClipBatch
from datamodules.errors import UserError

from .base import TrainingSettings
from .clip_detection import benchmark_clip
from .distillation_terms import DistillationTerm, Lesson, default_terms
from .evaluation.benchmark import Step
from .losses.detection import DetectionLoss
from .losses.uncertainty import TaskWeighting
from .networks.detection.evad import EvadTeacher
from .networks.detection.outputs import DetectorOutputs
from .networks.frozen import FrozenNetwork
from .networks.layers.pixels import gather_clips, normalise_frames
from .networks.layers.prepared import prepare_for_inference
from .networks.students.detector import StreamingDetector
from .networks.students.trunk import EncodedFrames
from .networks.weights.classes import check_teacher
from .networks.weights.loading import load_weights
from .networks.weights.student_start import student_from_teacher
from .stream_detection import StreamDetectionModule, StreamSettings


@dataclass(frozen=True)
class WeightingSettings:
    """Settings of the weights of the loss terms.

    Args:
        kind: ``uncertainty`` learns the weights of the terms, ``fixed`` leaves them, see ``TaskWeighting``.
        truth: fixed weight of the ground truth; 0 leaves it out.
        lr_multiplier: learning rate of learned weights over that of the student. A log-variance has to cover several
            units in as many steps as a weight needs to move by a tenth.
    """

    kind: Literal["uncertainty", "fixed"] = "uncertainty"
    truth: float = 1.0
    lr_multiplier: float = 20.0


class DistillationModule(StreamDetectionModule):
    """Ground truth and a frozen teacher train a streaming student.

    For every supervised frame the teacher looks at a whole clip, from the same crop and flip. One with its keyframe in
    the middle knows the future that the student does not; one with its keyframe last sees what the student sees.

    Args:
        network: the student.
        teacher: makes the teacher's network for as many classes as the student has.
        teacher_weights: its weights file or checkpoint.
        weights, optimizer, training, detection, loss: see ``StreamDetectionModule``.
        terms: what is learned from the teacher; ``FeatureTerm``, ``ActionTerm`` and ``BoxTerm`` by default.
        weighting: weights of ground truth and terms.
        start_from: whose weights the student starts from: the ``teacher``'s, those in the file of another clip detector
            (a causal twin), see ``student_from_teacher``, or none (None).
        proposal_matching: which of the teacher's proposals each of the student's imitates. ``index`` is the one of the
            same number, since a student starts from its teacher's proposals; ``assignment`` asks a ``ProposalMatcher``.
            The default is the latter where a student has fewer proposals.
    """

    def __init__(
        self,
        network: StreamingDetector,
        teacher: Callable[[int], EvadTeacher],
        teacher_weights: str,
        weights: str | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        training: TrainingSettings = TrainingSettings(),  # noqa: B008  (frozen)
        detection: StreamSettings = StreamSettings(),  # noqa: B008  (frozen)
        loss: DetectionLoss | None = None,
        terms: Sequence[DistillationTerm] | None = None,
        weighting: WeightingSettings = WeightingSettings(),
        start_from: str | None = "teacher",
        proposal_matching: Literal["index", "assignment"] | None = None,
    ) -> None:
        clip_network = teacher(network.num_classes)
        card = load_weights(clip_network, teacher_weights)
        if start_from == "teacher":
            student_from_teacher(network, clip_network.state_dict())
            start_from = None
        super().__init__(network, weights, optimizer, training, detection, loss=loss, start_from=start_from)
        self.teacher = FrozenNetwork(clip_network)
        self.teacher_weights, self._teacher_card = teacher_weights, card
        self.weighting_lr_multiplier = weighting.lr_multiplier
        proposals = clip_network.num_proposals
        same_number = network.num_proposals == proposals
        if proposal_matching == "index" and not same_number:
            raise UserError(
                f"index needs the teacher's {proposals} proposals, the student has {network.num_proposals}",
                where="model.proposal_matching",
                remedy="set it to assignment",
            )
        self.proposal_matching = proposal_matching or ("index" if same_number else "assignment")
        self.terms = default_terms() if terms is None else tuple(terms)
        names = [term.name for term in self.terms]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"has two of {', '.join(repeated)}", where="model.terms", remedy="leave one")
        learned = {term.name: term.prepare(network, clip_network) for term in self.terms}
        self.beside = nn.ModuleDict({name: part for name, part in learned.items() if part is not None})
        self.learns_truth = weighting.truth > 0
        if not (self.learns_truth or self.terms):
            raise UserError("weighting.truth=0 and terms=[] leave nothing to learn", "model", "set one of them")
        shares = {"detection": weighting.truth} if self.learns_truth else {}
        self.task_weighting = TaskWeighting(shares | {term.name: term.weight for term in self.terms}, weighting.kind)

    def setup(self, stage: str) -> None:
        """Compare the teacher's classes and stride with the data's before it teaches."""
        super().setup(stage)
        if stage == "fit":
            check_teacher(self._teacher_card, self.teacher_weights, self.trainer.datamodule)

    @property
    def learns_without_labels(self) -> bool:
        return bool(self.terms)

    def trained_modules(self) -> list[tuple[str, nn.Module]]:
        return [*super().trained_modules(), ("task_weighting", self.task_weighting), ("beside", self.beside)]

    def lr_multipliers(self) -> dict[str, float]:
        own = {"task_weighting.*": self.weighting_lr_multiplier, "beside.*": self.new_lr_multiplier}
        return own | super().lr_multipliers()

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        frames = normalise_frames(batch.frames, batch.image_sizes)
        encoded, state = self.encode(batch, frames)
        student = self.detect_supervised(batch, encoded, state)
        detection = self.losses(batch, student)
        shown = batch.exists.flatten().nonzero()[:, 0]  # the others repeat a video's first frame
        lesson = Lesson(
            student.of(shown),
            self.ask_teacher(batch, frames, shown),
            [maps[shown] for maps in self.supervised_maps(encoded, batch)],
            batch.image_sizes.repeat_interleave(len(batch.keyframes), dim=0)[shown],
            (self.network, self.teacher.network),
            self.proposal_matching == "index",
        )
        tasks = {"detection": detection["total"]} if self.learns_truth else {}
        tasks |= {term.name: term(lesson) for term in self.terms}
        total, task_weights = self.task_weighting(tasks, self.progress)
        parts = {f"detection/{name}": value for name, value in detection.items() if name != "total"}
        self.log_losses({"total": total, **tasks, **parts}, len(batch.frames))
        shares = {f"train/weight/{name}": value for name, value in task_weights.items()}
        self.log_dict(shares, batch_size=len(batch.frames))
        return total

    def supervised_maps(self, encoded: EncodedFrames, batch: ClipBatch) -> list[Tensor]:
        """Return the maps (B L, C, h, w) of the supervised frames themselves, wherever the outputs for them are.

        They come out of the trunk ``token_delay`` frames after these frames, see ``Timing``.
        """
        first, last = (batch.keyframes[end] + self.network.timing.token_delay for end in (0, -1))
        return [levels[:, first : last + 1].flatten(0, 1) for levels in encoded.maps]

    def ask_teacher(self, batch: ClipBatch, frames: Tensor, shown: Tensor) -> DetectorOutputs:
        """The teacher's outputs for the clips around supervised frames, in the student's order.

        ``frames`` are the batch's, normalised; ``shown`` (N,) are the wanted ones of the B L supervised frames.
        """
        num_frames, length = self.teacher.network.num_frames, batch.frames.shape[1]
        past = self.teacher.network.keyframe_of(num_frames)
        future = self.teacher.network.frames_after_keyframe(num_frames)
        if batch.keyframes[0] < past or batch.keyframes[-1] + future >= length:
            raise UserError(
                f"the teacher's clips of {num_frames} frames reach outside the sample of {length}; set at least "
                f"data.init_args.train_past_frames={past + len(batch.keyframes)} and "
                f"data.init_args.train_future_frames={future}"
            )
        keyframes = torch.tensor(batch.keyframes, device=frames.device)
        needed = keyframes[:, None] + torch.arange(-past, future + 1, device=frames.device)  # (L, T)
        sizes = batch.image_sizes.repeat_interleave(len(keyframes), dim=0)[shown]
        if torch.is_autocast_enabled(frames.device.type):
            frames = frames.to(torch.get_autocast_dtype(frames.device.type))  # half as much to copy
        return self.teacher(gather_clips(frames, needed, shown), sizes, method="outputs")

    def reference_step(self) -> Step:
        """Return the teacher's sliding window: a full clip of frames as large as the student's for one new frame."""
        prepare_for_inference(self.teacher.network)
        clip, sizes = benchmark_clip(self.measured_frame, self.teacher.network.num_frames, self.device)
        return lambda: self.decode(self.teacher(clip, sizes), sizes, sizes)
