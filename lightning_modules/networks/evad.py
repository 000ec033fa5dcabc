"""EVAD: a clip detector on a plain ViT (Chen et al., ICCV 2023, https://arxiv.org/abs/2304.08451). The teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from .context_decoder import ContextDecoder
from .detection_head import DetectionHead
from .detections import Detections, DetectorOutputs
from .frames import pad_clips
from .localizer import Localizer
from .positions import Keyframe
from .pyramid import KeyframePyramid
from .roi_align import RoiKernel
from .token_dropout import KeyOrder
from .vit import TUBELET, VideoViT


class EvadTeacher(nn.Module):
    """Detects the actors of a clip's keyframe and their actions.

    The keyframe is frame ``num_frames // 2`` of the clip, as published, or the newest. Defaults are those of the
    published ViT-B model; every size is an argument. Arguments that start with ``decoder_`` belong to the context
    decoder, those of the localizer are ``head_dim`` (also the pyramid's width) to ``roi_kernel``.

    Args:
        keep_rates: encoder block (from 0) -> share of tokens kept there.
        pretrain_size: side of the frames the position codes were made for, in pixels.
        learned_positions: the encoder's position codes are a parameter instead of the fixed sine table.
        roi_extension: how much wider and taller than its box an actor's RoI in the context decoder is.
        temporal_roi: an actor is pooled over all slots; in the keyframe's slot alone otherwise.
        keyframe: where it stands in the clip: in the ``middle``, so that half of the clip is its future, or ``last``.
        decoder_reads_context: actors are refined by the tokens of the clip; otherwise they are classified from their
            RoI features, reading each other alone.
    """

    def __init__(
        self,
        num_classes: int = 80,
        num_frames: int = 16,
        pretrain_size: int = 224,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        patch_size: int = 16,
        mlp_ratio: float = 4.0,
        learned_positions: bool = False,
        keep_rates: dict[int, float] | None = None,
        enhanced_weight: float = 1.0,
        key_order: KeyOrder = "position",
        pyramid_layers: Sequence[int] = (2, 5, 8, 11),
        drop_path_rate: float = 0.0,
        checkpoint_blocks: bool = False,
        head_dim: int = 256,
        num_proposals: int = 100,
        num_stages: int = 6,
        localizer_heads: int = 8,
        dynamic_dim: int = 64,
        localizer_hidden: int = 2048,
        localizer_roi_size: int = 7,
        proposal_boxes: Literal["image", "grid"] = "image",
        roi_kernel: RoiKernel = "torchvision",
        decoder_dim: int = 384,
        decoder_depth: int = 6,
        decoder_heads: int = 6,
        decoder_mlp_ratio: float = 4.0,
        decoder_hidden: int = 2048,
        decoder_roi_size: int = 7,
        roi_extension: tuple[float, float] = (0.4, 0.2),
        decoder_drop_path_rate: float = 0.0,
        decoder_reads_context: bool = True,
        temporal_roi: bool = True,
        keyframe: Keyframe = "middle",
    ) -> None:
        super().__init__()
        if len(pyramid_layers) != 4:
            raise ValueError(f"pyramid_layers needs four blocks, finest level first, got {list(pyramid_layers)}")
        self.num_classes, self.num_frames, self.patch_size = num_classes, num_frames, patch_size
        self.frame_size, self.num_proposals, self.keyframe = pretrain_size, num_proposals, keyframe
        self.backbone = VideoViT(
            dim=dim,
            depth=depth,
            num_heads=num_heads,
            patch_size=patch_size,
            num_frames=num_frames,
            pretrain_size=pretrain_size,
            mlp_ratio=mlp_ratio,
            learned_positions=learned_positions,
            keep_rates=keep_rates,
            enhanced_weight=enhanced_weight,
            key_order=key_order,
            pyramid_layers=pyramid_layers,
            drop_path_rate=drop_path_rate,
            checkpoint_blocks=checkpoint_blocks,
            keyframe=keyframe,
        )
        self.pyramid = KeyframePyramid(dim, head_dim, patch_size)
        self.localizer = Localizer(
            dim=head_dim,
            num_proposals=num_proposals,
            num_stages=num_stages,
            num_heads=localizer_heads,
            dynamic_dim=dynamic_dim,
            hidden_dim=localizer_hidden,
            roi_size=localizer_roi_size,
            proposal_boxes=proposal_boxes,
            roi_kernel=roi_kernel,
        )
        self.decoder = ContextDecoder(
            encoder_dim=dim,
            num_classes=num_classes,
            dim=decoder_dim,
            depth=decoder_depth,
            num_heads=decoder_heads,
            mlp_ratio=decoder_mlp_ratio,
            hidden_dim=decoder_hidden,
            roi_size=decoder_roi_size,
            roi_extension=roi_extension,
            drop_path_rate=decoder_drop_path_rate,
            patch_size=patch_size,
            num_slots=num_frames // TUBELET,
            pretrain_grid=pretrain_size // patch_size,
            reads_context=decoder_reads_context,
            temporal_roi=temporal_roi,
            keyframe=keyframe,
        )

    def keyframe_of(self, num_frames: int) -> int:
        """Return the number of the keyframe in a clip of ``num_frames``."""
        return num_frames - 1 if self.keyframe == "last" else num_frames // 2

    @property
    def head(self) -> DetectionHead:
        """What turns an encoded clip into detections."""
        return DetectionHead(self.backbone.norm, self.pyramid, self.localizer, self.decoder)

    def forward(self, clips: Tensor | Sequence[Tensor], image_sizes: Tensor | None = None) -> Detections:
        """Normalised clips -> detections of their keyframes. Arguments as in ``outputs``."""
        return self.outputs(clips, image_sizes).detections

    def outputs(
        self, clips: Tensor | Sequence[Tensor], image_sizes: Tensor | None = None, deep: bool = False
    ) -> DetectorOutputs:
        """As ``forward``, with every refinement stage; ``deep`` asks for the action logits of every decoder block too.

        Args:
            clips: normalised clips (3, T, H_i, W_i) of any sizes, or a batch (B, 3, T, H, W) padded to multiples of
                twice the patch size.
            image_sizes: (B, 2) height and width before padding, of a batch; the whole frame by default.
        """
        if not isinstance(clips, Tensor):
            clips, image_sizes = pad_clips(clips, 2 * self.patch_size)
        elif image_sizes is None:
            image_sizes = torch.tensor(clips.shape[-2:], device=clips.device).expand(clips.shape[0], 2)
        encoded = self.backbone(clips)
        actors = self.localizer(self.pyramid(encoded.maps), self.pyramid.strides, image_sizes)
        action_logits = self.decoder(encoded, actors.boxes[-1], image_sizes, every_block=deep)
        return DetectorOutputs(actors.person_logits, actors.boxes, action_logits, encoded.maps, encoded.kept_by_layer)
