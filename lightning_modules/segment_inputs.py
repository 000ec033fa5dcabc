"""Inputs of a temporal detector from a batch of windows, and conversion between seconds and its features."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from datamodules.batches import SegmentBatch
from datamodules.errors import UserError

from .networks.layers.pixels import normalise_frames
from .networks.temporal.heads.segment_head import ScoredSegments

Modality = Literal["rgb", "flow", "rgb_and_flow", "temporal_gradient", "features", "rgb_features", "flow_features"]
"""Input of a detector: frames, the motion between them, both (the channels of a step side by side), or stored features.
Of features that were stored side by side, RGB first (``FeatureFolder.second_folder``), it may be one half of the
channels."""
FLOW_UNIT = 4.0
"""Pixels from one step to the next that a network sees as 1."""


def steps_of(batch: SegmentBatch, modality: Modality) -> Tensor:
    """The steps of B windows as a network takes them: (B, T, C, H, W), or (B, T, C) for stored features.

    The temporal gradient of a step is its normalised frame minus the one before; the first of a window has none.
    """
    if modality.endswith("features"):
        if batch.features is None:
            raise UserError(f"modality={modality} needs stored features, but the data has frames; set modality=rgb")
        return _half(batch.features.transpose(1, 2), modality)
    if "flow" in modality and batch.flow is None:
        raise UserError(f"modality={modality} needs optical flow, and the data has none; set data.init_args.flow")
    if modality == "flow":
        return batch.flow / FLOW_UNIT
    if batch.frames is None:
        raise UserError(f"modality={modality} needs frames, but the data has stored features; set modality=features")
    frames = normalise_frames(batch.frames, batch.image_sizes)
    if modality == "temporal_gradient":
        frames = frames.diff(dim=1, prepend=frames[:, :1])
    frames = frames.masked_fill(~batch.mask[:, :, None, None, None], 0)
    return frames if modality != "rgb_and_flow" else torch.cat([frames, batch.flow / FLOW_UNIT], dim=2)


def _half(features: Tensor, modality: Modality) -> Tensor:
    """The channels of one modality, (B, T, C) or (B, T, C / 2)."""
    if modality == "features":
        return features
    if features.shape[-1] % 2:
        raise UserError(
            f"modality={modality} is half of the channels of features, but there are {features.shape[-1]}; store as "
            "many for RGB as for flow, or set modality=features"
        )
    return features.chunk(2, dim=-1)[0 if modality == "rgb_features" else 1]


def seconds_to_features(batch: SegmentBatch, step_stride: int) -> tuple[Tensor, ...]:
    """The segments of a batch in units of features, feature i lasting from i to i + 1: B entries (n, 2) float32."""
    begins, units = _scale(batch, step_stride)
    return tuple(
        ((segments - begin) / unit).float() for segments, begin, unit in zip(batch.segments, begins, units, strict=True)
    )


def features_to_seconds(found: ScoredSegments, batch: SegmentBatch, row: int, step_stride: int) -> ScoredSegments:
    """Detections in window ``row`` with their ends in seconds of the video, and within it."""
    begins, units = _scale(batch, step_stride)
    seconds = (found.segments.double() * units[row] + begins[row]).clamp(min=0)
    return found._replace(segments=seconds.clamp(max=float(batch.durations[row])))


def _scale(batch: SegmentBatch, step_stride: int) -> tuple[Tensor, Tensor]:
    """(B,) when the first feature begins and how long one lasts, in seconds."""
    return batch.times[:, 0] - batch.step_seconds / 2, batch.step_seconds * step_stride
