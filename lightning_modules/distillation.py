"""Distil a frozen clip teacher into a streaming student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datamodules.batches import ClipBatch
from datamodules.errors import UserError

from .clip_detection import benchmark_clip
from .losses.distillation import ActionImitation, AttentionImitation, BoxImitation, FeatureLoss, Variance
from .losses.matching import ProposalMatcher
from .losses.uncertainty import TaskWeighting
from .networks.detections import Detections, DetectorOutputs
from .networks.evad import EvadTeacher
from .networks.frames import gather_clips, normalise_frames
from .networks.frozen import FrozenNetwork
from .networks.prepared import prepare_for_inference
from .networks.student import EncodedFrames, StreamingDetector
from .networks.weights import load_weights, student_from_teacher
from .stream_detection import StreamDetectionModule

TASKS = ("detection", "features", "actions", "boxes", "mimicry", "attention")
DEFAULT_TASK_WEIGHTS = {"detection": 1.0, "features": 5.0, "actions": 5.0, "boxes": 1.0}


class DistillationModule(StreamDetectionModule):
    """Ground truth and a frozen teacher train a streaming student.

    Tasks:

    - ``detection``: the ground truth.
    - ``features``: the teacher's tokens at the pyramid's layers.
    - ``actions``, ``boxes``: the teacher's outputs.
    - ``mimicry``: the teacher's outputs again, compared with what the teacher's own frozen head makes of the student's
      features (CrossKD, Wang et al., 2024, https://arxiv.org/abs/2306.11369): there imitation does not compete with the
      ground truth in one head.
    - ``attention``: the attention inside a frame in the block after every layer of the pyramid.

    For every supervised frame the teacher looks at a whole clip around it, from the same crop and flip, so it knows the
    future that the student does not.

    Args:
        network: the student.
        teacher: the teacher's network. teacher_weights: its weights file or checkpoint.
        teacher_keyframe: which frame of its clip the teacher's keyframe is: its middle always, so ``centre`` sees as
            much future as past; ``last`` repeats the newest frame where the future would be; ``curriculum`` begins like
            ``last`` and lets in one frame of the future after another, all of them at ``curriculum_until``.
        curriculum_until: share of training after which a curriculum has come to the whole clip.
        from_teacher: start the student from the teacher's weights.
        task_weights: initial weights of the tasks; a task without one is left out. By default detection 1, features 5,
            actions 5, boxes 1.
        weighting: see ``TaskWeighting``.
        weighting_lr_multiplier: learning rate of learned weights and variances over that of the student: a log-variance
            has to cover a range of several units in as many steps as a weight needs to move by a tenth.
        feature_variance: see ``FeatureLoss``. With learned variances the weight of ``features`` stays as it is.
        proposal_matching: which of the teacher's proposals each of the student's imitates: the one of the same
            ``index``, since a student starts from its teacher's proposals, or the one of an ``assignment``, see
            ``ProposalMatcher``; by default the latter where a student carries proposals or has fewer of them.
        action_temperature: see ``ActionImitation``.

    The other arguments are those of ``StreamDetectionModule``.
    """

    def __init__(
        self,
        network: StreamingDetector,
        teacher: EvadTeacher,
        teacher_weights: str,
        teacher_keyframe: Literal["centre", "last", "curriculum"] = "centre",
        curriculum_until: float = 0.5,
        from_teacher: bool = True,
        task_weights: Mapping[str, float] | None = None,
        weighting: Literal["uncertainty", "fixed"] = "uncertainty",
        weighting_lr_multiplier: float = 20.0,
        feature_variance: Variance = "constant",
        proposal_matching: Literal["index", "assignment"] | None = None,
        action_temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        load_weights(teacher, teacher_weights)
        if from_teacher:
            student_from_teacher(network, teacher.state_dict())
        super().__init__(network, **kwargs)
        self.teacher = FrozenNetwork(teacher)
        self.teacher_keyframe, self.curriculum_until = teacher_keyframe, curriculum_until
        self.weighting_lr_multiplier = weighting_lr_multiplier
        self.feature_loss = FeatureLoss(feature_variance, len(network.pyramid_layers), network.dim)
        self.attention_imitation = AttentionImitation()
        self.action_imitation = ActionImitation(action_temperature)
        self.box_imitation = BoxImitation()
        in_order = not network.carried.count and network.num_proposals == teacher.num_proposals
        if proposal_matching == "index" and network.num_proposals != teacher.num_proposals:
            raise ValueError(
                f"proposal_matching=index needs the teacher's {teacher.num_proposals} proposals, the student has "
                f"{network.num_proposals}; set it to assignment"
            )
        self.proposal_matching = proposal_matching or ("index" if in_order else "assignment")
        self.proposal_matcher = ProposalMatcher()
        tasks = DEFAULT_TASK_WEIGHTS if task_weights is None else task_weights
        if unknown := sorted(set(tasks) - set(TASKS)):
            raise ValueError(f"task_weights names unknown tasks {unknown}; the tasks are {list(TASKS)}")
        # A loss with variances of its own may fall below zero, and then a learned weight would grow without end.
        pinned = ("detection",) if feature_variance == "constant" else ("detection", "features")
        self.task_weighting = TaskWeighting(tasks, weighting, pinned)

    def trained_modules(self) -> list[tuple[str, nn.Module]]:
        learned = [("task_weighting", self.task_weighting), ("feature_loss", self.feature_loss)]
        return [*super().trained_modules(), *learned]

    def lr_multipliers(self) -> dict[str, float]:
        multipliers = dict.fromkeys(("task_weighting.*", "feature_loss.*"), self.weighting_lr_multiplier)
        return multipliers | super().lr_multipliers()

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        frames = normalise_frames(batch.frames, batch.image_sizes)
        encoded, state = self.encode(batch, frames)
        student = self.detect_supervised(batch, encoded, state)
        detection, teacher = self.losses(batch, student), self.ask_teacher(batch, frames)
        sizes = batch.image_sizes.repeat_interleave(len(batch.keyframes), dim=0)
        weights = self.task_weighting
        wanted = {*weights.fixed, *weights.log_variances}
        tasks = {"detection": detection["total"]}
        if "features" in wanted:
            tasks["features"] = self.feature_loss(self.supervised_maps(encoded, batch), teacher.maps)
        if wanted & {"actions", "boxes"}:
            tasks["actions"], tasks["boxes"] = self.imitation(student, teacher, sizes)
        if "mimicry" in wanted:
            through_teacher = self.detect_supervised(batch, encoded, state, self.teacher.network.head)
            tasks["mimicry"] = self.mimicry(through_teacher, teacher, sizes)
        if "attention" in wanted:
            tasks["attention"] = self.attention_loss(self.supervised_maps(encoded, batch), teacher.maps)
        tasks = {name: loss for name, loss in tasks.items() if name in wanted}
        total, task_weights = weights(tasks, self.progress)
        terms = {f"detection/{name}": value for name, value in detection.items() if name != "total"}
        self.log_losses({"total": total, **tasks, **terms}, len(batch.frames))
        shares = {f"train/weight/{name}": value for name, value in task_weights.items()}
        self.log_dict(shares, batch_size=len(batch.frames))
        return total

    def supervised_maps(self, encoded: EncodedFrames, batch: ClipBatch) -> list[Tensor]:
        """The maps (B L, C, h, w) of the supervised frames themselves, wherever the answers about them are.

        They come out of the trunk ``lateness`` frames after these frames.
        """
        first, last = (batch.keyframes[end] + self.network.lateness for end in (0, -1))
        return [levels[:, first : last + 1].flatten(0, 1) for levels in encoded.maps]

    def imitation(self, student: DetectorOutputs, teacher: DetectorOutputs, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """How far the student's actions, and its boxes and persons, are from those of the teacher's proposals."""
        imitated = self.imitated(student, teacher, sizes)
        persons = imitated.person_logits.softmax(-1)[..., 0]
        actions = self.action_imitation(student.action_logits, imitated.action_logits, persons)
        boxes = self.box_imitation(student.person_logits, student.boxes, imitated.person_logits, imitated.boxes, sizes)
        return actions, boxes

    def mimicry(self, through_teacher: DetectorOutputs, teacher: DetectorOutputs, sizes: Tensor) -> Tensor:
        """The same of what the teacher's head finds in the student's features, as one task.

        Actions count as much more than boxes as they do by default.
        """
        actions, boxes = self.imitation(through_teacher, teacher, sizes)
        return actions * (DEFAULT_TASK_WEIGHTS["actions"] / DEFAULT_TASK_WEIGHTS["boxes"]) + boxes

    def attention_loss(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Of the blocks that follow the pyramid's layers, on the supervised frames' maps (B L, C, h, w)."""
        losses = []
        for layer, own, other in zip(self.network.pyramid_layers, student, teacher, strict=True):
            if layer + 1 < len(self.network.blocks):
                block, taught = self.network.blocks[layer + 1].temporal, self.teacher.network.backbone.blocks[layer + 1]
                with torch.no_grad():
                    wanted = taught.attn.project(taught.norm1(other.flatten(2).transpose(1, 2)))[:2]
                found = block.attn.project(block.norm1(own.flatten(2).transpose(1, 2)))[:2]
                losses.append(self.attention_imitation(found, wanted))
        return torch.stack(losses).mean()

    def imitated(self, student: DetectorOutputs, teacher: DetectorOutputs, image_sizes: Tensor) -> Detections:
        """The teacher's detections in the order of the student's proposals."""
        detections = teacher.detections
        if self.proposal_matching == "index":
            return detections
        scale = image_sizes.flip(-1).repeat(1, 2)
        places = self.proposal_matcher(student.boxes[-1], detections.person_logits, detections.boxes, scale)[..., None]
        return Detections(*(part.gather(1, places.expand(-1, -1, part.shape[-1])) for part in detections))

    @property
    def future_frames(self) -> int:
        """How many frames after its keyframe the teacher sees now."""
        whole = self.teacher.network.num_frames - self.teacher.network.num_frames // 2 - 1
        if self.teacher_keyframe == "curriculum":
            return min(whole, int((whole + 1) * self.progress / max(self.curriculum_until, 1e-6)))
        return whole if self.teacher_keyframe == "centre" else 0

    def ask_teacher(self, batch: ClipBatch, frames: Tensor) -> DetectorOutputs:
        """The teacher's outputs for the clip around every supervised frame, in the student's order: B L of them.

        ``frames`` are the batch's, normalised.
        """
        num_frames, length = self.teacher.network.num_frames, batch.frames.shape[1]
        offsets = torch.arange(num_frames, device=batch.frames.device) - num_frames // 2
        offsets = offsets.clamp(max=self.future_frames)
        keyframes = torch.tensor(batch.keyframes, device=batch.frames.device)
        needed = keyframes[:, None] + offsets  # (L, T)
        if int(needed.min()) < 0 or int(needed.max()) >= length:
            past, future = num_frames // 2 + len(keyframes), int(offsets.max())
            raise UserError(
                f"the teacher's clips of {num_frames} frames reach outside the sample of {length}; set at least "
                f"data.init_args.train_past_frames={past} and data.init_args.train_future_frames={future}"
            )
        sizes = batch.image_sizes.repeat_interleave(len(keyframes), dim=0)
        if torch.is_autocast_enabled(frames.device.type):
            frames = frames.to(torch.get_autocast_dtype(frames.device.type))  # half as much to copy
        return self.teacher(gather_clips(frames, needed), sizes, method="outputs")

    def benchmark_reference(self) -> Callable[[], object]:
        """The teacher's sliding window: one full clip for one new frame."""
        prepare_for_inference(self.teacher.network)
        clip, sizes = benchmark_clip(self.teacher.network, self.device, self.teacher.network.num_frames)
        return lambda: self.decode(self.teacher(clip, sizes), sizes, sizes)
