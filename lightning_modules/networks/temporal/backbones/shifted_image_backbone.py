"""Any image model of timm as a backbone in time, its frames joined by temporal shift."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models._efficientnet_blocks import EdgeResidual, InvertedResidual
from timm.models.convnext import ConvNeXtBlock
from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from .segment_backbone import SegmentBackbone

BRANCH_STARTS: dict[type[nn.Module], tuple[str, ...]] = {
    BasicBlock: ("conv1",),
    Bottleneck: ("conv1",),
    InvertedResidual: ("conv_pw",),
    EdgeResidual: ("conv_exp",),
    ConvNeXtBlock: ("conv_dw",),
    Block: ("attn", "mlp"),
}
"""Residual blocks, and the layers in them that are the first to read the branch beside the shortcut."""


class FrameShift(nn.Module):
    """Replace a part of the channels of each frame by those of its neighbours in time.

    The temporal shift module (Lin et al., ICCV 2019, https://arxiv.org/abs/1811.08383, section 3). Offline 1 /
    ``fold_div`` of the channels come from the next frame and as many from the previous one. ``causal``, the paper's
    online form, takes them from the previous one alone. Where there is no such frame the channels are zero.

    ``follows`` (N,) is set by the caller: whether frame n shows what comes right after frame n - 1.

    Shapes: frames in their order, maps (N, C, h, w), or tokens (N, prefix + h w, C) of which the first stay.
    """

    follows: Tensor | None = None

    def __init__(self, fold_div: int, causal: bool, num_prefix_tokens: int = 0) -> None:
        super().__init__()
        if fold_div < 2:
            raise ValueError(f"fold_div must be at least 2, or nothing of a frame would stay its own, got {fold_div}")
        self.fold_div, self.causal, self.num_prefix_tokens = fold_div, causal, num_prefix_tokens

    def forward(self, features: Tensor) -> Tensor:
        if features.dim() == 4:
            return self.shift(features, 1)
        prefix, patches = features.tensor_split([self.num_prefix_tokens], dim=1)
        return torch.cat([prefix, self.shift(patches, 2)], dim=1)

    def shift(self, features: Tensor, axis: int) -> Tensor:
        """Shift a part of the channels, which lie along ``axis``."""
        fold = features.shape[axis] // self.fold_div
        if fold == 0:
            raise ValueError(f"{features.shape[axis]} channels are too few for fold_div={self.fold_div}")
        if self.follows is None:
            raise RuntimeError("`follows` says which frames come after each other; set it before the first call")
        joined = self.follows[1:].view(-1, *[1] * (features.dim() - 1))  # (N - 1, 1, ...)
        one_frame = [0, 0] * (features.dim() - 1)
        moving = [features.narrow(axis, 0, fold)]
        shifted = [F.pad(moving[0][:-1].where(joined, 0), [*one_frame, 1, 0])]  # of the frame before
        if not self.causal:
            moving.append(features.narrow(axis, fold, fold))
            shifted.append(F.pad(moving[1][1:].where(joined, 0), [*one_frame, 0, 1]))  # of the frame after
        moved = fold * len(moving)
        return torch.cat([*shifted, features.narrow(axis, moved, features.shape[axis] - moved)], dim=axis)

    def before(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """A hook that lets ``layer`` read shifted frames. As a hook, so that no parameter changes its name."""
        return (self(inputs[0]), *inputs[1:])


class ShiftedImageBackbone(SegmentBackbone):
    """An image model on every frame, temporal shift in its residual branches, pooled over space.

    Frames after the end of a video are left out: nothing is shifted in from them, and they are in no batch statistics.

    Shapes: (B, T, in_channels, H, W) -> (B, out_channels, T / step_stride).

    Args:
        name: of the model in timm. Its blocks must be among ``BRANCH_STARTS``, unless ``temporal_shift`` is off.
        in_channels: 3 for RGB or its temporal gradient, 2 for optical flow.
        pretrained: True for timm's weights, or a file of them; the first layer is adapted to ``in_channels``.
        temporal_shift: without it the frames do not see each other.
        fold_div: one part in so many of the channels is shifted, in each direction.
        causal: nothing is shifted from the future.
        step_stride: features are averaged over so many frames.
        model_args: further arguments of the model, such as ``{img_size: 96}`` of a ViT or ``{drop_path_rate: 0.1}``.
    """

    def __init__(
        self,
        name: str = "resnet18",
        in_channels: int = 3,
        pretrained: bool | str | Path = False,
        temporal_shift: bool = True,
        fold_div: int = 8,
        causal: bool = False,
        step_stride: int = 1,
        model_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if step_stride < 1:
            raise ValueError(f"step_stride must be at least 1, got {step_stride}")
        model: Any = timm.create_model(  # whose methods and sizes are those of timm's models
            name,
            pretrained=bool(pretrained),
            pretrained_cfg_overlay=None if isinstance(pretrained, bool) else {"file": str(pretrained)},
            num_classes=0,
            in_chans=in_channels,
            **(model_args or {}),
        )
        self.model: Any = model.to(memory_format=torch.channels_last)  # what oneDNN and tensor cores read fastest
        self.in_channels, self.step_stride = in_channels, step_stride
        self.num_prefix_tokens = getattr(model, "num_prefix_tokens", 0)
        self.out_channels = model.num_features if hasattr(model, "num_prefix_tokens") else model.head_hidden_size
        self.shift = FrameShift(fold_div, causal, self.num_prefix_tokens) if temporal_shift else None
        if self.shift is not None:
            layers = branch_starts(model)
            if not layers:
                known = ", ".join(sorted(block.__name__ for block in BRANCH_STARTS))
                raise ValueError(
                    f"no residual block of {name} is known to temporal shift ({known}); take a ResNet, EfficientNet, "
                    "MobileNet, ConvNeXt or ViT of timm, or set temporal_shift=false"
                )
            for layer in layers:
                layer.register_forward_pre_hook(self.shift.before)

    def forward(self, steps: Tensor, mask: Tensor) -> Tensor:
        frames = steps[mask].contiguous(memory_format=torch.channels_last)  # (N, C, H, W)
        if self.shift is not None:
            # A frame that is there follows the one before it in its window, if that is there too.
            self.shift.follows = F.pad(mask[:, 1:] & mask[:, :-1], [1, 0])[mask]
        pooled = self.pool(self.model.forward_features(frames))
        features = pooled.new_zeros(*mask.shape, pooled.shape[-1]).masked_scatter(mask[..., None], pooled)
        if self.step_stride > 1:
            count = mask.unflatten(1, (-1, self.step_stride)).sum(2).clamp(min=1)
            features = features.unflatten(1, (-1, self.step_stride)).sum(2) / count[..., None]
        return features.transpose(1, 2)

    def pool(self, features: Tensor) -> Tensor:
        """The model's maps (N, C', h, w), or its tokens (N, prefix + h w, C') -> (N, C)."""
        if features.dim() == 4:
            return self.model.forward_head(features, pre_logits=True)
        # ViTs differ in whether they norm tokens or their mean; what a model does not do is an identity in it.
        return self.model.fc_norm(features[:, self.num_prefix_tokens :].mean(1))


def branch_starts(model: nn.Module) -> list[nn.Module]:
    """The layers of a model that temporal shift goes before; blocks without a shortcut would forget what they shift."""
    found = []
    for block in model.modules():
        names = next((names for kind, names in BRANCH_STARTS.items() if isinstance(block, kind)), ())
        if getattr(block, "has_skip", True):
            found += [getattr(block, name) for name in names]
    return found
