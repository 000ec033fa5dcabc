"""The RGB student of decomposed cross-modal distillation: one backbone, two branches, a joint detector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from .backbones.segment_backbone import SegmentBackbone
from .heads.segment_head import SegmentHead
from .modality_fusion import ConcatFusion, GlobalAttentionFusion, LocalAttentiveFusion, ModalityFusion, SumFusion
from .temporal_detector import FeatureProjection, HeadFactory, TemporalOutputs, encode

FUSIONS: dict[str, Callable[[int], ModalityFusion]] = {
    "attentive": LocalAttentiveFusion,
    "concat": ConcatFusion,
    "sum": SumFusion,
    "global_attention": GlobalAttentionFusion,
}


class DecomposedOutputs(NamedTuple):
    """Outputs for B windows in training, T' features each; the inference path gives ``joint`` alone."""

    motion: TemporalOutputs
    appearance: TemporalOutputs
    joint: TemporalOutputs


class DecomposedDetector(nn.Module):
    """DCMD's student (Lee et al., CVPR 2023, https://arxiv.org/abs/2303.17285, section 3; equations 12 to 15).

    Two 1-D projections split the features of one RGB backbone into motion and appearance. While it trains, one branch
    head with shared weights detects on either; a joint head detects on their fusion, and is all that inference needs.
    A new detector has no branch head: ``add_branch_head`` makes it.

    Args:
        num_classes: K.
        backbone: of RGB frames.
        head: makes a head for so many channels and classes.
        dim: D, channels of either branch; that of the teacher's projected features.
        fusion: ``attentive`` (the paper's), or one of those that the paper compares with.
        joint_moves_motion: whether the loss of the joint head reaches the motion projection. Without, motion is learned
            from the teacher alone; the paper's figure does not tell.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: SegmentBackbone,
        head: HeadFactory,
        dim: int = 128,
        fusion: Literal["attentive", "concat", "sum", "global_attention"] = "attentive",
        joint_moves_motion: bool = True,
    ) -> None:
        super().__init__()
        if fusion not in FUSIONS:
            raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}, got {fusion!r}")
        self.backbone = backbone
        self.motion_projection = FeatureProjection(backbone.out_channels, dim)
        self.appearance_projection = FeatureProjection(backbone.out_channels, dim)
        self.fusion = FUSIONS[fusion](dim)
        self.joint_moves_motion = joint_moves_motion
        self.joint_head = head(self.fusion.out_channels, num_classes)
        self.branch_head: SegmentHead[Any] | None = None
        self._make_branch_head = lambda: head(dim, num_classes)

    def add_branch_head(self) -> None:
        """Make the head that the two branches share, unless it is there."""
        if self.branch_head is None:
            like = next(self.joint_head.parameters())
            self.branch_head = self._make_branch_head().to(like.device, like.dtype).train(self.training)

    @property
    def num_classes(self) -> int:
        return self.joint_head.num_classes

    @property
    def final_head(self) -> SegmentHead[Any]:
        """The head whose outputs count."""
        return self.joint_head

    def forward(self, steps: Tensor, mask: Tensor) -> TemporalOutputs:
        """Normalised RGB steps (B, T, 3, H, W) of B windows, and ``mask`` (B, T) bool."""
        motion, appearance, mask = self._split(steps, mask)
        return self._joint(motion, appearance, mask)

    def branches(self, steps: Tensor, mask: Tensor) -> DecomposedOutputs:
        """Run the detector and return the outputs of both branches too."""
        if self.branch_head is None:
            raise ValueError("the detector has no branch head; call add_branch_head before it trains")
        motion, appearance, mask = self._split(steps, mask)
        return DecomposedOutputs(
            TemporalOutputs(motion, mask, self.branch_head(motion, mask)),
            TemporalOutputs(appearance, mask, self.branch_head(appearance, mask)),
            self._joint(motion, appearance, mask),
        )

    def _split(self, steps: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, mask = encode(self.backbone, steps, mask)
        return self.motion_projection(features, mask), self.appearance_projection(features, mask), mask

    def _joint(self, motion: Tensor, appearance: Tensor, mask: Tensor) -> TemporalOutputs:
        fused = self.fusion(motion if self.joint_moves_motion else motion.detach(), appearance, mask)
        return TemporalOutputs(fused, mask, self.joint_head(fused, mask))


def without_branch_head(state_dict: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The tensors that inference needs."""
    return {key: value for key, value in state_dict.items() if not key.startswith(f"{prefix}branch_head.")}
