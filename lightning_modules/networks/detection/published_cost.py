"""GFLOPs of EVAD's published implementation for a clip, from the sizes of our network.

Ours gives the same outputs with fewer operations, so its own count is no figure to hold against published tables.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import Any, NamedTuple

from torch import nn

from ..layers.trunk_size import TUBELET
from .evad import EvadTeacher

NORM_COST = 5
"""Operations an element of a norm with weights, in fvcore's convention."""


class PublishedCost(NamedTuple):
    """GFLOPs of one clip, by part; a multiply-add counts once.

    Softmax, activations and RoIAlign count nothing. Heads that no output of inference reads count nothing either, as
    the counter drops them. These are the action heads of all decoder blocks but the last, and the person logits of all
    stages but the last.
    """

    patch_embedding: float
    encoder_attention: float
    encoder_mlp: float
    pyramid: float
    localizer: float
    """The localizer with its norms."""
    decoder_projection: float
    decoder_attention: float
    decoder_mlp: float
    heads_and_norms: float
    """The last action head, and the norms of encoder and decoder."""
    encoder_blocks: tuple[float, ...]
    """Attention, MLP and norms of every block: another view of the parts above."""

    @property
    def total(self) -> float:
        parts = self._asdict()
        del parts["encoder_blocks"]
        return float(sum(parts.values()))


def published_gflops(teacher: EvadTeacher, height: int, width: int, num_frames: int | None = None) -> PublishedCost:
    """Cost of a clip of ``height`` x ``width`` pixels before padding, of the teacher's number of frames by default.

    Only shapes are read: a teacher on the ``meta`` device will do.
    """
    grid = [2 * ceil(side / (2 * teacher.patch_size)) for side in (height, width)]
    num_keyframe = grid[0] * grid[1]
    num_tokens = (num_frames or teacher.num_frames) // TUBELET * num_keyframe
    backbone, decoder = teacher.backbone, teacher.head.decoder
    encoder_blocks: Iterable[Any] = backbone.blocks
    decoder_blocks: list[Any] = list(decoder.blocks)
    patch_embedding = _layers(num_tokens, backbone.patch_embed)

    blocks: list[int] = []
    encoder_attention = encoder_mlp = norms = 0
    for block in encoder_blocks:
        attention, norm = _attention(num_tokens, block.attn), _layers(num_tokens, block.norm1)
        if block.dropout is not None and num_tokens > num_keyframe:
            num_tokens = num_keyframe + block.dropout.num_kept(num_tokens, num_keyframe)
        mlp, norm = _layers(num_tokens, block.mlp), norm + _layers(num_tokens, block.norm2)
        encoder_attention, encoder_mlp, norms = encoder_attention + attention, encoder_mlp + mlp, norms + norm
        blocks.append(attention + mlp + norm)
    norms += _layers(num_tokens, backbone.norm)

    num_actors = teacher.num_proposals
    length = num_actors + (num_tokens if decoder.context != "none" else 0)
    last = decoder_blocks[-1]
    norms += sum(_layers(length, block.norm1, block.norm2) for block in decoder_blocks)
    return PublishedCost(
        patch_embedding=patch_embedding / 1e9,
        encoder_attention=encoder_attention / 1e9,
        encoder_mlp=encoder_mlp / 1e9,
        pyramid=_pyramid(teacher, num_keyframe) / 1e9,
        localizer=_localizer(teacher) / 1e9,
        decoder_projection=_layers(num_tokens, decoder.encoder_to_decoder) / 1e9,
        decoder_attention=sum(_attention(length, block.attn) for block in decoder_blocks) / 1e9,
        decoder_mlp=sum(_layers(length, block.mlp) for block in decoder_blocks) / 1e9,
        heads_and_norms=(norms + _layers(num_actors, last.act_module, last.action_logits)) / 1e9,
        encoder_blocks=tuple(block / 1e9 for block in blocks),
    )


def _layers(positions: int, *modules: nn.Module) -> int:
    """The linear layers, convolutions and norms in ``modules``, each applied at so many positions."""
    operations = 0
    for layer in (layer for module in modules for layer in module.modules()):
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d):
            operations += layer.weight.numel()
        elif isinstance(layer, nn.LayerNorm):
            operations += NORM_COST * layer.weight.numel()
    return positions * operations


def _attention(num_tokens: int, attention: Any) -> int:
    """The projections and both products of self-attention: a module with ``qkv`` and ``proj``."""
    width: int = attention.proj.in_features
    return _layers(num_tokens, attention.qkv, attention.proj) + 2 * num_tokens**2 * width


def _pyramid(teacher: EvadTeacher, num_keyframe: int) -> int:
    """Maps resampled first, then convolved; interpolation counts one operation an element, as fvcore has it."""
    pyramid, operations = teacher.head.pyramid, 0
    laterals: list[Any] = list(pyramid.laterals)
    for level, factor in enumerate((*pyramid.upsampling, 0.5)):
        pixels, lateral = int(num_keyframe * factor**2), laterals[level]
        operations += _layers(pixels, lateral, pyramid.outputs[level])
        resampled = lateral.in_channels if factor != 1 else 0
        added_from_above = lateral.out_channels if level < len(pyramid.upsampling) else 0
        operations += pixels * (resampled + added_from_above)
    return operations


def _localizer(teacher: EvadTeacher) -> int:
    localizer, operations = teacher.head.localizer, 0
    num_proposals, points = len(localizer.proposal_boxes), localizer.roi_size**2
    stages: list[Any] = list(localizer.stages)
    for stage in stages:
        inner = stage.inst_interact
        operations += _attention(num_proposals, stage.self_attn)
        operations += _layers(num_proposals, inner.dynamic_layer, inner.out_layer, inner.norm3)
        # The two products with the matrices that dynamic_layer makes.
        operations += num_proposals * points * inner.dynamic_layer.out_features
        operations += _layers(num_proposals * points, inner.norm1, inner.norm2)
        operations += _layers(num_proposals, stage.linear1, stage.linear2, stage.norm1, stage.norm2, stage.norm3)
        operations += _layers(num_proposals, stage.reg_module, stage.bboxes_delta)
    return operations + _layers(num_proposals, stages[-1].cls_module, stages[-1].class_logits)
