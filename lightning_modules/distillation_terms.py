"""Terms of distillation, which a student learns beside the ground truth: one class per term."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from .losses.distillation import ActionImitation, AttentionImitation, BoxImitation, FeatureLoss
from .losses.matching import ProposalMatcher
from .networks.detection.evad import EvadTeacher
from .networks.detection.outputs import Detections, DetectorOutputs
from .networks.students.detector import StreamingDetector


@dataclass(frozen=True)
class Lesson:
    """Inputs of the terms in one training step: N supervised frames as the student and as the teacher see them."""

    student: DetectorOutputs
    teacher: DetectorOutputs
    maps: Sequence[Tensor]
    """The student's token maps (N, C, h, w) of the supervised frames, at the layers of ``teacher.maps``."""
    image_sizes: Tensor
    """(N, 2) height and width before padding."""
    networks: tuple[StreamingDetector, EvadTeacher]
    """Student and teacher."""
    same_order: bool
    """True if proposal n of the student is the teacher's proposal n; otherwise they are assigned to each other."""

    @cached_property
    def inside(self) -> Tensor:
        """Return which tokens begin inside their frame, not in the padding: (N, h, w) bool."""
        patch, grid = self.networks[0].patch_size, self.maps[0].shape[-2:]
        within = [
            torch.arange(length, device=self.image_sizes.device) * patch < self.image_sizes[:, axis, None]
            for axis, length in enumerate(grid)
        ]
        return within[0][:, :, None] & within[1][:, None]

    @cached_property
    def imitated(self) -> Detections:
        """The teacher's detections in the order of the student's proposals."""
        detections = self.teacher.detections
        if self.same_order:
            return detections
        scale = self.image_sizes.flip(-1).repeat(1, 2)
        matcher = ProposalMatcher()
        own = self.student.person_logits[-1], self.student.boxes[-1]
        places = matcher(*own, detections.person_logits, detections.boxes, scale)[..., None]
        return Detections(*(part.gather(1, places.expand(-1, -1, part.shape[-1])) for part in detections))


class DistillationTerm(ABC):
    """One term of the loss.

    Args:
        weight: initial weight of the term; weights may be learned, see ``TaskWeighting``.
    """

    name: str
    """Name in the log: ``train/loss/<name>`` and ``train/weight/<name>``."""

    def __init__(self, weight: float = 1.0) -> None:
        if weight <= 0:
            raise ValueError(f"the weight of {self.name} must be above 0, got {weight}; leave the term out instead")
        self.weight = weight

    def prepare(self, student: StreamingDetector, teacher: EvadTeacher) -> nn.Module | None:
        """Fit the term to two networks; return what is trained beside the student, None where nothing is.

        Raises:
            ValueError: it cannot compare the two.
        """
        return None

    @abstractmethod
    def __call__(self, lesson: Lesson) -> Tensor:
        """Return the unweighted loss, a scalar."""


class FeatureTerm(DistillationTerm):
    """The teacher's tokens at the pyramid's layers, see ``FeatureLoss``."""

    name = "features"

    def __init__(self, weight: float = 5.0) -> None:
        super().__init__(weight)
        self.loss = FeatureLoss()

    def prepare(self, student: StreamingDetector, teacher: EvadTeacher) -> nn.Module | None:
        """Return the maps between the two where one is narrower."""
        dims = (student.size.dim, teacher.size.dim)
        if dims[0] == dims[1]:
            return None
        self.loss = FeatureLoss(dims, len(teacher.size.pyramid_layers))
        return self.loss

    def __call__(self, lesson: Lesson) -> Tensor:
        return self.loss(lesson.maps, lesson.teacher.maps, lesson.inside)


class ActionTerm(DistillationTerm):
    """The teacher's action scores, see ``ActionImitation``."""

    name = "actions"

    def __init__(self, weight: float = 5.0, confidence: float = 0.5) -> None:
        super().__init__(weight)
        self.loss = ActionImitation(confidence)

    def __call__(self, lesson: Lesson) -> Tensor:
        imitated = lesson.imitated
        persons = imitated.person_logits.softmax(-1)[..., 0]
        return self.loss(lesson.student.action_logits, imitated.action_logits, persons)


class BoxTerm(DistillationTerm):
    """The teacher's boxes and person scores, see ``BoxImitation``."""

    name = "boxes"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.loss = BoxImitation()

    def __call__(self, lesson: Lesson) -> Tensor:
        student, imitated = lesson.student, lesson.imitated
        truth = (imitated.person_logits, imitated.boxes)
        return self.loss(student.person_logits, student.boxes, *truth, lesson.image_sizes)


class AttentionTerm(DistillationTerm):
    """The attention inside a frame in the block after every layer of the pyramid, see ``AttentionImitation``."""

    name = "attention"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.loss = AttentionImitation()

    def prepare(self, student: StreamingDetector, teacher: EvadTeacher) -> nn.Module | None:
        """Refuse another number of heads, whose attention cannot be compared."""
        heads = (student.size.num_heads, teacher.size.num_heads)
        if heads[0] != heads[1]:
            raise ValueError(
                f"the student's attention has {heads[0]} heads and the teacher's {heads[1]}; leave AttentionTerm out"
            )
        return None

    def __call__(self, lesson: Lesson) -> Tensor:
        student, teacher = lesson.networks
        losses = []
        layers = zip(student.size.pyramid_layers, teacher.size.pyramid_layers, strict=True)
        for (layer, taught_layer), own, taught in zip(layers, lesson.maps, lesson.teacher.maps, strict=True):
            if layer + 1 < student.size.depth and taught_layer + 1 < teacher.size.depth:
                block, teaching = student.trunk.blocks[layer + 1].attention, teacher.backbone.blocks[taught_layer + 1]
                with torch.no_grad():
                    wanted = teaching.attn.project(teaching.norm1(taught.flatten(2).transpose(1, 2)))[:2]
                paid = block.attn.project(block.norm1(own.flatten(2).transpose(1, 2)))[:2]
                losses.append(self.loss(paid, wanted, lesson.inside.flatten(1)))
        return torch.stack(losses).mean()


def default_terms() -> tuple[DistillationTerm, ...]:
    """Features, actions and boxes."""
    return FeatureTerm(), ActionTerm(), BoxTerm()
