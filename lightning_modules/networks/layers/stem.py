"""A convolutional stem: an image model of timm that sees each frame by itself, in front of the patch embedding."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..weights.image_files import (
    HUB,
    hub_weights,
    normalisation_of,
    read_image_weights,
    require_model,
    with_timm_names,
)
from .pixels import MEAN, STD
from .trunk_size import NORM_EPS, TrunkSize

NAMES_SHOWN = 6


class ConvolutionalStem(nn.Module):
    """Maps of every frame by itself, so that it is causal and a stream needs no state for it.

    Maps of several stages are joined at the coarsest stride: the cells of a finer one become channels. What a batch
    holds in place of pixels, maps that were computed once, goes through the final norm alone. Statistics of batch norm
    are fixed, whether the weights learn or not.

    Shapes: normalised frames (B, T, 3, H, W), H and W multiples of ``stride``, or maps (B, T, channels, h, w) of them
    -> (B, T, channels, h, w).

    Args:
        name: name of the model in timm, any that has ``features_only``.
        stages: indices of its feature levels, from 0. Of an EfficientNet, 3 has stride 16 and 4 has stride 32.
        weights: a file in the naming of timm or of ``efficientnet-lite-pytorch``; ``timm`` for those of timm's hub.
            None starts at random, for weights that come from a checkpoint.
        frozen: whether its weights stay as they are; its maps can be computed once then.
    """

    def __init__(
        self,
        name: str = "tf_efficientnet_lite0",
        stages: Sequence[int] = (3, 4),
        weights: str | None = None,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        self.name, self.stages, self.frozen = name, tuple(stages), frozen
        require_model(name)
        model = self.model = features_of(name, self.stages, weights)
        self.stride = max(model.feature_info.reduction())
        self.channels = sum(
            channels * (self.stride // stride) ** 2
            for channels, stride in zip(model.feature_info.channels(), model.feature_info.reduction(), strict=True)
        )
        if self.channels == 3:
            raise ValueError(f"stages={list(stages)} of {name} have 3 channels, which is what pixels have")
        mean, std = (torch.tensor(values)[:, None, None] for values in normalisation_of(name))
        # From this project's normalisation of pixels to the model's.
        self.register_buffer("scale", STD / std, persistent=False)
        self.register_buffer("shift", (MEAN - mean) / std, persistent=False)
        self.norm = nn.LayerNorm(self.channels, eps=NORM_EPS)
        self.model.requires_grad_(not frozen)
        self.train(self.training)

    scale: Tensor
    shift: Tensor

    def train(self, mode: bool = True) -> ConvolutionalStem:
        super().train(mode)
        self.model.eval()  # a frame must not depend on the others of its batch
        return self

    def are_maps(self, frames: Tensor) -> bool:
        """Return whether (B, T, C, h, w) are maps computed before, not pixels."""
        return frames.shape[2] == self.channels

    def pixel_size(self, frames: Tensor) -> tuple[int, int]:
        """Height and width in pixels of (B, T, C, h, w), frames or maps of them."""
        height, width = frames.shape[-2:]
        factor = self.stride if self.are_maps(frames) else 1
        return height * factor, width * factor

    def maps(self, frames: Tensor) -> Tensor:
        """Normalised frames (N, 3, H, W) -> maps (N, channels, h, w) before the norm: what can be computed once."""
        height, width = frames.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(f"frames of {height} x {width} do not divide into cells of stride {self.stride}")
        features = self.model(frames * self.scale + self.shift)
        grid = height // self.stride
        return torch.cat([F.pixel_unshuffle(part, part.shape[-2] // grid) for part in features], dim=1)

    def forward(self, frames: Tensor) -> Tensor:
        maps = frames if self.are_maps(frames) else self.maps(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        return self.norm(maps.movedim(2, -1)).movedim(-1, 2)

    def fingerprint(self) -> str:
        """Return what two stems share whose maps are the same, 16 hex digits; weights count in half precision."""
        digest = hashlib.sha256(f"{self.name} {self.stages}".encode())
        for name, value in sorted(self.model.state_dict().items()):
            if value.is_floating_point():
                digest.update(name.encode())
                digest.update(value.detach().cpu().half().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def features_of(name: str, stages: Sequence[int], weights: str | None) -> Any:
    """Return timm's model as an extractor of the features of ``stages``.

    Raises:
        ValueError: the model has no such features, or weights that do not fit.
    """
    arguments: dict[str, Any] = {"features_only": True, "out_indices": tuple(stages)}
    if weights is not None:
        tensors = hub_weights(name) if weights == HUB else weights_of(name, weights)
        arguments |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": tensors}}
    log = logging.getLogger("timm.models._builder")  # it names the layers behind the last stage
    was_off, log.disabled = log.disabled, True
    try:
        return timm.create_model(name, **arguments)
    except (IndexError, AssertionError) as error:  # timm's ways of saying so
        raise ValueError(f"timm's {name} has no features of stages={list(stages)}") from error
    finally:
        log.disabled = was_off


def weights_of(name: str, path: str | Path) -> dict[str, Tensor]:
    """Return the weights of a file for timm's model ``name``; its classifier may be of any size or missing.

    Raises:
        ValueError: something else is missing, left over or misshapen; it lists what.
    """
    model: Any = timm.create_model(name)
    own = model.state_dict()
    tensors = with_timm_names(read_image_weights(path), own)
    classifier = model.default_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ((classifier,) if isinstance(classifier, str) else classifier))

    def counts(key: str) -> bool:
        return not key.startswith(heads) and not key.endswith("num_batches_tracked")

    missing = [key for key in own if counts(key) and key not in tensors]
    strange = [key for key in tensors if counts(key) and key not in own]
    misshapen = [key for key in own if counts(key) and key in tensors and own[key].shape != tensors[key].shape]
    problems = [
        f"{kind} ({len(keys)}): {', '.join(keys[:NAMES_SHOWN])}{', ...' if len(keys) > NAMES_SHOWN else ''}"
        for kind, keys in (("missing", missing), ("left over", strange), ("misshapen", misshapen))
        if keys
    ]
    if problems:
        raise ValueError(f"{path} holds no weights of timm's {name}; {'; '.join(problems)}")
    return {key: value for key, value in tensors.items() if not key.startswith(heads)}


def embedded(size: TrunkSize, stem: ConvolutionalStem | None) -> tuple[int, int]:
    """Return the side of what a patch embedding reads for one token, in cells of its input, and the input's channels.

    Raises:
        ValueError: the stem's stride does not divide the patch size.
    """
    if stem is None:
        return size.patch_size, size.in_channels
    if size.in_channels != 3:
        raise ValueError(f"a stem sees pixels in colour, in_channels={size.in_channels} are none")
    if size.patch_size % stem.stride:
        raise ValueError(
            f"patch_size={size.patch_size} is no multiple of {stem.stride}, the stride of stages={list(stem.stages)} "
            f"of {stem.name}"
        )
    return size.patch_size // stem.stride, stem.channels


def pixel_size(frames: Tensor, stem: ConvolutionalStem | None) -> tuple[int, int]:
    """Height and width in pixels of frames (B, T, C, h, w), or of those that a stem's maps are of."""
    return (frames.shape[-2], frames.shape[-1]) if stem is None else stem.pixel_size(frames)


def stem_of(network: nn.Module) -> ConvolutionalStem | None:
    """Return the stem of a clip detector or a streaming one; None where it has none."""
    trunk = getattr(network, "backbone", None) or getattr(network, "trunk", None)
    return getattr(trunk, "stem", None)
