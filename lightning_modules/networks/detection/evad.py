"""EVAD: a clip detector on a plain ViT (Chen et al., ICCV 2023, https://arxiv.org/abs/2304.08451). The teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..layers.constants import constant
from ..layers.pixels import pad_clips
from ..layers.positions import Keyframe
from ..layers.stem import pixel_size
from ..layers.trunk_size import TrunkSize
from .head import DetectionHead, HeadFactory
from .outputs import Detections, DetectorOutputs
from .vit import VideoViT


class EvadTeacher(nn.Module):
    """Clip detector: the actors of a clip's keyframe and their actions.

    Args:
        num_classes: K.
        backbone: encodes the clip; its size says where the keyframe stands.
        head: makes the head for the backbone's tokens.
    """

    def __init__(self, num_classes: int, backbone: VideoViT, head: HeadFactory = DetectionHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head(backbone.layout, num_classes)

    @property
    def size(self) -> TrunkSize:
        """Return the size of the backbone."""
        return self.backbone.size

    @property
    def num_classes(self) -> int:
        return self.head.num_classes

    @property
    def num_frames(self) -> int:
        """Frames of a full clip."""
        return self.size.num_frames

    @property
    def frame_size(self) -> int:
        """Side in pixels of the frames that it was made for."""
        return self.size.pretrain_size

    @property
    def patch_size(self) -> int:
        return self.size.patch_size

    @property
    def keyframe(self) -> Keyframe:
        """Return the place of the keyframe in a clip."""
        return self.size.keyframe

    @property
    def num_proposals(self) -> int:
        return self.head.localizer.num_proposals

    def keyframe_of(self, num_frames: int) -> int:
        """Return the number of the keyframe in a clip of ``num_frames``."""
        return num_frames - 1 if self.keyframe == "last" else num_frames // 2

    def frames_after_keyframe(self, num_frames: int) -> int:
        return num_frames - 1 - self.keyframe_of(num_frames)

    def head_parameters(self) -> set[str]:
        """Return the names of parameters that may learn faster than the trunk."""
        return {f"head.{name}" for name in self.head.fast_parameters()}

    def forward(self, clips: Tensor | Sequence[Tensor], image_sizes: Tensor | None = None) -> Detections:
        """Normalised clips -> detections of their keyframes. Arguments as in ``outputs``."""
        return self.outputs(clips, image_sizes).detections

    def outputs(
        self, clips: Tensor | Sequence[Tensor], image_sizes: Tensor | None = None, deep: bool = False
    ) -> DetectorOutputs:
        """Detect as ``forward`` does, with every refinement stage; ``deep`` adds all decoder blocks' action logits.

        Args:
            clips: normalised clips (3, T, H_i, W_i) of any sizes; or a batch (B, 3, T, H, W) padded to multiples of
                twice the patch size; or a stem's maps of such a batch.
            image_sizes: (B, 2) height and width before padding, of a batch; the whole frame by default.
        """
        if not isinstance(clips, Tensor):
            clips, image_sizes = pad_clips(clips, 2 * self.patch_size)
        elif image_sizes is None:
            size = pixel_size(clips.transpose(1, 2), self.backbone.stem)
            image_sizes = constant(size, clips, torch.long).expand(clips.shape[0], 2)
        encoded = self.backbone(clips)
        actors = self.head.localize(encoded.maps, image_sizes)
        context = self.head.decoder.clip_context(encoded)
        action_logits = self.head.classify(context, actors.boxes[-1], image_sizes, every_block=deep)
        return DetectorOutputs(actors.person_logits, actors.boxes, action_logits, encoded.maps, encoded.kept_by_layer)
