"""Distil a frozen motion teacher into an RGB detector: DCMD, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from datamodules.batches import SegmentBatch
from datamodules.errors import UserError

from .base import TrainingSettings
from .losses.modality_distillation import feature_imitation
from .networks.frozen import FrozenNetwork
from .networks.temporal.decomposed_detector import DecomposedDetector, without_branch_head
from .networks.temporal.heads.segment_head import SegmentHead, start_head_from
from .networks.temporal.temporal_detector import TemporalDetector, TemporalOutputs
from .networks.weights.classes import check_teacher
from .networks.weights.loading import load_weights
from .segment_inputs import Modality, steps_of
from .temporal_detection import SegmentSettings, TemporalDetectionModule

Strategy = Literal["none", "conventional", "decomposed"]
DEFAULT_IMITATION_WEIGHTS = {"features": 1.0, "classes": 1.0, "segments": 1.0}


class MotionDistillationModule(TemporalDetectionModule):
    """Ground truth and a frozen motion teacher train an RGB detector (Lee et al., CVPR 2023, section 3).

    With ``decomposed`` the motion branch learns from the teacher alone (features, class scores, segments), the
    appearance branch from ground truth alone. Both use one branch head. The joint head learns from ground truth. Form
    and weights of the terms are inferred: the equations were not available. ``conventional`` asks both of the same
    features and head. ``none`` leaves the teacher out, and neither needs nor reads motion.

    Teacher and branch head exist while it trains: evaluation builds neither and looks at RGB alone.

    Args:
        network: a ``DecomposedDetector`` for ``decomposed``, a ``TemporalDetector`` for ``conventional``.
        weights, optimizer, training, detection, modality: see ``TemporalDetectionModule``.
        teacher: makes the teacher's network for so many classes, of the student's ``dim`` and head.
        teacher_weights: its weights file or checkpoint.
        teacher_modality: what the teacher looks at.
        strategy: see above. With ``none`` a ``DecomposedDetector`` trains both its paths from ground truth.
        heads_from_teacher: start the student's heads from the teacher's, which learned motion from the same ground
            truth. A joint head then begins by reading the motion branch alone.
        imitation_weights: of ``features``, ``classes`` and ``segments``; one that is absent is left out.
    """

    def __init__(
        self,
        network: DecomposedDetector | TemporalDetector,
        weights: str | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        training: TrainingSettings = TrainingSettings(),  # noqa: B008  (frozen)
        detection: SegmentSettings = SegmentSettings(),  # noqa: B008  (frozen)
        modality: Modality = "rgb",
        teacher: Callable[[int], TemporalDetector] | None = None,
        teacher_weights: str | None = None,
        teacher_modality: Modality = "flow",
        strategy: Strategy = "decomposed",
        heads_from_teacher: bool = True,
        imitation_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(network, weights, optimizer, training, detection, modality)
        decomposed = isinstance(network, DecomposedDetector)
        if strategy != "none" and (strategy == "decomposed") != decomposed:
            needed = "DecomposedDetector" if strategy == "decomposed" else "TemporalDetector"
            raise UserError(
                f"{strategy} needs a {needed} as network, got {type(network).__name__}", where="model.strategy"
            )
        if strategy != "none" and teacher is None:
            raise UserError(
                f"{strategy} needs a teacher", where="model.strategy", remedy="set model.teacher, or strategy to none"
            )
        if strategy == "none" and decomposed and not network.joint_moves_motion:
            raise UserError(
                "nothing would train the motion branch without a teacher",
                where="model.network.joint_moves_motion",
                remedy="set it to true, or model.strategy to decomposed",
            )
        self.make_teacher, self.teacher_weights = teacher, teacher_weights
        self.teacher_modality, self.strategy = teacher_modality, strategy
        self.heads_from_teacher = heads_from_teacher
        self.teacher: FrozenNetwork | None = None
        shares = DEFAULT_IMITATION_WEIGHTS if imitation_weights is None else dict(imitation_weights)
        if unknown := sorted(set(shares) - set(DEFAULT_IMITATION_WEIGHTS)):
            raise UserError(
                f"has {', '.join(unknown)}",
                where="model.imitation_weights",
                remedy=f"there are {', '.join(DEFAULT_IMITATION_WEIGHTS)}",
            )
        self.imitation_weights = shares

    def setup(self, stage: str) -> None:
        """Make what only training needs."""
        super().setup(stage)
        if stage != "fit":
            return
        if isinstance(self.network, DecomposedDetector):
            self.network.add_branch_head()
        if self.strategy != "none" and self.teacher is None:
            if self.teacher_weights is None:
                raise UserError(
                    "a teacher without weights teaches nothing",
                    where="model.teacher_weights",
                    remedy="set it to a checkpoint of configs/motion_teacher.yaml",
                )
            teacher = self.make_teacher(self.network.num_classes)
            check_teacher(load_weights(teacher, self.teacher_weights), self.teacher_weights, self.trainer.datamodule)
            self.teacher = FrozenNetwork(teacher)
            if self.heads_from_teacher and self.weights is None:
                for head in self.heads:
                    start_head_from(head, teacher.head)
        for callback in self.trainer.callbacks:
            if isinstance(callback, WeightAveraging):  # its copy is from before and lacks what has been added
                callback.setup(self.trainer, self, stage)

    @property
    def heads(self) -> tuple[SegmentHead, ...]:
        """Return all heads that train."""
        network = self.network
        return (network.branch_head, network.joint_head) if isinstance(network, DecomposedDetector) else (network.head,)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint of training has a branch head, which evaluation has no place for."""
        super().on_load_checkpoint(checkpoint)
        if getattr(self.network, "branch_head", None) is None:
            checkpoint["state_dict"] = without_branch_head(checkpoint["state_dict"], "network.")

    def training_step(self, batch: SegmentBatch, batch_idx: int) -> Tensor:
        losses = self.losses(batch)
        self.log_losses(losses, len(batch.mask))
        return losses["total"]

    def losses(self, batch: SegmentBatch) -> dict[str, Tensor]:
        """Return every term by name, unweighted, and their weighted sum as ``total``."""
        steps, truth = steps_of(batch, self.modality), self.targets(batch)
        terms: dict[str, Tensor] = {}

        def learn_truth(name: str, head: SegmentHead, outputs: TemporalOutputs) -> Tensor:
            losses = head.loss(outputs.dense, *truth)
            terms.update({f"{name}/{term}": value for term, value in losses.items() if term != "total"})
            return losses["total"]

        if isinstance(self.network, DecomposedDetector):
            outputs = self.network.branches(steps, batch.mask)
            total = learn_truth("appearance", self.network.branch_head, outputs.appearance)
            total = total + learn_truth("joint", self.network.joint_head, outputs.joint)
            head, student = self.network.branch_head, outputs.motion
        else:
            head, student = self.network.head, self.network(steps, batch.mask)
            total = learn_truth("detection", head, student)
        if self.strategy != "none":
            imitation = self.imitation(head, student, batch)
            terms.update({f"motion/{name}": value for name, value in imitation.items()})
            total = total + sum(weight * imitation[name] for name, weight in self.imitation_weights.items())
        return {"total": total, **terms}

    def imitation(self, head: SegmentHead, student: TemporalOutputs, batch: SegmentBatch) -> dict[str, Tensor]:
        """Return the distances of the student's features and detections from those of the motion teacher."""
        teacher = self.teacher(steps_of(batch, self.teacher_modality), batch.mask)
        features = feature_imitation(student.features, teacher.features, student.mask)
        return {"features": features, **head.imitation(student.dense, teacher.dense)}
