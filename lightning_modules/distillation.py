"""Distil a frozen clip teacher into a streaming student."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from datamodules.batches import ClipBatch

from .clip_detection import benchmark_clip
from .losses.distillation import ActionImitation, BoxImitation, FeatureLoss
from .losses.matching import ProposalMatcher
from .losses.uncertainty import TaskWeighting
from .networks.detections import Detections, DetectorOutputs
from .networks.evad import EvadTeacher
from .networks.frames import normalise_frames
from .networks.frozen import FrozenNetwork
from .networks.prepared import prepare_for_inference
from .networks.student import StreamingDetector
from .networks.weights import load_exactly, read_state_dict, student_from_teacher
from .stream_detection import StreamDetectionModule

DEFAULT_TASK_WEIGHTS = {"detection": 1.0, "features": 5.0, "actions": 5.0, "boxes": 1.0}
WEIGHTING_LR_MULTIPLIER = 20.0
"""A log-variance has to cover a range of several units in as many steps as a weight needs to move by a tenth."""


class DistillationModule(StreamDetectionModule):
    """Ground truth and a frozen teacher train a streaming student.

    Tasks: ``detection`` (ground truth), ``features`` (tokens at the pyramid's layers), ``actions`` and ``boxes`` (the
    teacher's outputs). For every supervised frame the teacher looks at a whole clip around it, from the same crop and
    flip, so it knows the future that the student does not.

    Args:
        network: the student.
        teacher: the teacher's network. teacher_weights: its weights file or checkpoint.
        teacher_keyframe: which frame of its clip the teacher's keyframe is: its middle always, so ``centre`` sees as
            much future as past; ``last`` repeats the newest frame where the future would be.
        from_teacher: start the student from the teacher's weights.
        task_weights: initial weights of the tasks, ``DEFAULT_TASK_WEIGHTS`` by default; a task without one is left out.
        weighting: see ``TaskWeighting``.
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
        teacher_keyframe: Literal["centre", "last"] = "centre",
        from_teacher: bool = True,
        task_weights: Mapping[str, float] | None = None,
        weighting: Literal["uncertainty", "fixed"] = "uncertainty",
        proposal_matching: Literal["index", "assignment"] | None = None,
        action_temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        load_exactly(teacher, read_state_dict(teacher_weights))
        if from_teacher:
            student_from_teacher(network, teacher.state_dict())
        super().__init__(network, **kwargs)
        self.teacher = FrozenNetwork(teacher)
        self.teacher_keyframe = teacher_keyframe
        self.feature_loss = FeatureLoss()
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
        if unknown := sorted(set(tasks) - set(DEFAULT_TASK_WEIGHTS)):
            raise ValueError(f"task_weights names unknown tasks {unknown}; the tasks are {list(DEFAULT_TASK_WEIGHTS)}")
        self.task_weighting = TaskWeighting(tasks, weighting)

    def trained_modules(self) -> list[tuple[str, nn.Module]]:
        return [*super().trained_modules(), ("task_weighting", self.task_weighting)]

    def lr_multipliers(self) -> dict[str, float]:
        return {"task_weighting.*": WEIGHTING_LR_MULTIPLIER} | super().lr_multipliers()

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        student, detection = self.supervised_step(batch)
        teacher = self.ask_teacher(batch)
        sizes = batch.image_sizes.repeat_interleave(len(batch.keyframes), dim=0)
        imitated = self.imitated(student, teacher, sizes)
        persons = imitated.person_logits.softmax(-1)[..., 0]
        tasks = {
            "detection": detection["total"],
            "features": self.feature_loss(student.maps, teacher.maps),
            "actions": self.action_imitation(student.action_logits, imitated.action_logits, persons),
            "boxes": self.box_imitation(
                student.person_logits, student.boxes, imitated.person_logits, imitated.boxes, sizes
            ),
        }
        weights = self.task_weighting
        tasks = {name: loss for name, loss in tasks.items() if name in weights.fixed or name in weights.log_variances}
        total, task_weights = self.task_weighting(tasks, self.progress)
        terms = {f"detection/{name}": value for name, value in detection.items() if name != "total"}
        self.log_losses({"total": total, **tasks, **terms}, len(batch.frames))
        shares = {f"train/weight/{name}": value for name, value in task_weights.items()}
        self.log_dict(shares, batch_size=len(batch.frames))
        return total

    def imitated(self, student: DetectorOutputs, teacher: DetectorOutputs, image_sizes: Tensor) -> Detections:
        """The teacher's detections in the order of the student's proposals."""
        detections = teacher.detections
        if self.proposal_matching == "index":
            return detections
        scale = image_sizes.flip(-1).repeat(1, 2)
        places = self.proposal_matcher(student.boxes[-1], detections.person_logits, detections.boxes, scale)[..., None]
        return Detections(*(part.gather(1, places.expand(-1, -1, part.shape[-1])) for part in detections))

    def ask_teacher(self, batch: ClipBatch) -> DetectorOutputs:
        """The teacher's outputs for the clip around every supervised frame, in the student's order: B L of them."""
        num_frames, length = self.teacher.network.num_frames, batch.frames.shape[1]
        offsets = torch.arange(num_frames, device=batch.frames.device) - num_frames // 2
        if self.teacher_keyframe == "last":
            offsets = offsets.clamp(max=0)
        keyframes = torch.tensor(batch.keyframes, device=batch.frames.device)
        needed = keyframes[:, None] + offsets  # (L, T)
        if int(needed.min()) < 0 or int(needed.max()) >= length:
            past, future = num_frames // 2 + len(keyframes), int(offsets.max())
            raise ValueError(
                f"the teacher's clips of {num_frames} frames reach outside the sample of {length}; set at least "
                f"data.init_args.train_past_frames={past} and data.init_args.train_future_frames={future}"
            )
        frames = normalise_frames(batch.frames, batch.image_sizes)[:, needed].flatten(0, 1)  # (B L, T, 3, H, W)
        sizes = batch.image_sizes.repeat_interleave(len(keyframes), dim=0)
        return self.teacher(frames.transpose(1, 2), sizes, method="outputs")

    def benchmark_reference(self) -> Callable[[], object]:
        """The teacher's sliding window: one full clip for one new frame."""
        prepare_for_inference(self.teacher.network)
        clip, sizes = benchmark_clip(self.teacher.network, self.device, self.teacher.network.num_frames)
        return lambda: self.decode(self.teacher(clip, sizes), sizes, sizes)
