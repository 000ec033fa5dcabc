"""EVAD with the published arithmetic, in plain torch: every attention map whole, every head, nothing left out.

It is the reference for speed (``evad_speed.py``) and, at sizes for which the tests' ``slow_evad`` is too slow, for
values. It follows `EVAD.md`, sections 2 to 6 step by step: attention maps are materialised, and maps are upsampled
before the pyramid's convolutions. The decoder refines all tokens in every block and classifies after each; RoIs are
pooled by torchvision's operator slot by slot.

Only the parameters are shared with an ``EvadTeacher``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert, roi_align

from lightning_modules.networks.detection.evad import EvadTeacher


class NaiveOutputs(NamedTuple):
    """Outputs as ``DetectorOutputs``: R stages, D blocks, B clips, P proposals; ``kept`` in order of place."""

    person_logits: Tensor
    boxes: Tensor
    action_logits: Tensor
    kept: list[Tensor]


def naive_evad(teacher: EvadTeacher, clips: Tensor, image_sizes: Tensor) -> NaiveOutputs:
    """The outputs of ``teacher`` for clips (B, 3, T, H, W), padded, of the given sizes (B, 2)."""
    backbone, decoder = teacher.backbone, teacher.head.decoder
    embedded = backbone.patch_embed.proj(clips)
    slots, height, width = embedded.shape[2:]
    per_slot, key = height * width, slots // 2
    tokens = embedded.flatten(2).transpose(1, 2)
    tokens = tokens + positions(backbone.positions, height, width)
    frames = tokens.view(len(clips), slots, per_slot, -1)
    order = [key, *range(key), *range(key + 1, slots)]
    tokens = frames[:, order].flatten(1, 2)
    places = torch.arange((slots - 1) * per_slot, device=clips.device).repeat(len(clips), 1)

    maps, kept = [], []
    for number, block in enumerate(backbone.blocks):
        attended, attention = self_attention(block.attn, block.norm1(tokens))
        tokens = tokens + attended
        if block.dropout is not None:
            tokens, places = drop(tokens, places, attention, block.dropout, per_slot)
            kept.append(places.sort(dim=1).values)
        del attention
        tokens = tokens + mlp(block.mlp, block.norm2(tokens))
        if number in backbone.size.pyramid_layers:
            maps.append(tokens[:, :per_slot].transpose(1, 2).reshape(len(clips), -1, height, width))
    maps = [maps[sorted(backbone.size.pyramid_layers).index(layer)] for layer in backbone.size.pyramid_layers]

    person_logits, boxes = localise(teacher, pyramid(teacher, maps), image_sizes)
    action_logits = refine(decoder, backbone.norm(tokens), places, boxes[-1], image_sizes, (slots, height, width))
    return NaiveOutputs(person_logits, boxes, action_logits, kept)


def positions(codes: Any, height: int, width: int) -> Tensor:
    """(1, T' h w, C): the table as it is, or every slot's grid resized."""
    table, grid = codes.table, codes.grid
    if (height, width) == (grid, grid):
        return table[None]
    slices = table.view(codes.num_slots, grid, grid, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(slices, size=(height, width), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).reshape(1, codes.num_slots * height * width, -1)


def self_attention(attn: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Output (B, N, C) and the whole attention map (B, heads, N, N)."""
    batch, count, dim = tokens.shape
    bias = torch.cat([attn.q_bias, torch.zeros_like(attn.v_bias), attn.v_bias])
    qkv = F.linear(tokens, attn.qkv.weight, bias).reshape(batch, count, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = qkv[0], qkv[1], qkv[2]
    attention = ((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)).softmax(dim=-1)
    return attn.proj((attention @ value).transpose(1, 2).reshape(batch, count, dim)), attention


def mlp(part: Any, tokens: Tensor) -> Tensor:
    return part.fc2(F.gelu(part.fc1(tokens)))


def drop(tokens: Tensor, places: Tensor, attention: Tensor, dropout: Any, per_slot: int) -> tuple[Tensor, Tensor]:
    weights = torch.ones(attention.shape[2], device=tokens.device)
    weights[:per_slot] = dropout.enhanced_weight
    scores = (attention * weights[:, None]).mean(dim=(1, 2))[:, per_slot:]
    count = math.ceil(dropout.keep_rate * tokens.shape[1]) - per_slot
    chosen = scores.topk(count, dim=1).indices
    if dropout.key_order == "position":
        chosen = chosen.sort(dim=1).values
    others = tokens[:, per_slot:].gather(1, chosen[..., None].expand(-1, -1, tokens.shape[-1]))
    return torch.cat([tokens[:, :per_slot], others], dim=1), places.gather(1, chosen)


def pyramid(teacher: EvadTeacher, maps: list[Tensor]) -> list[Tensor]:
    """Strides 4, 8, 16, 32: resampled first, then lateral, sum and output convolution."""
    resampled = [
        F.interpolate(maps[0], scale_factor=4, mode="nearest"),
        F.interpolate(maps[1], scale_factor=2, mode="nearest"),
        maps[2],
        maps[3][..., ::2, ::2],
    ]
    laterals = [conv(level) for conv, level in zip(teacher.head.pyramid.laterals, resampled, strict=True)]
    inner, levels = laterals[3], [teacher.head.pyramid.outputs[3](laterals[3])]
    for level in (2, 1, 0):
        inner = laterals[level] + F.interpolate(inner, scale_factor=2, mode="nearest")
        levels.insert(0, teacher.head.pyramid.outputs[level](inner))
    return levels


def localise(teacher: EvadTeacher, levels: list[Tensor], image_sizes: Tensor) -> tuple[Tensor, Tensor]:
    localizer, strides = teacher.head.localizer, teacher.head.pyramid.strides
    scale = image_sizes.flip(-1).repeat(1, 2)[:, None].float()
    boxes = box_convert(localizer.proposal_boxes, "cxcywh", "xyxy") * scale
    features = localizer.proposal_features.expand(len(boxes), -1, -1)
    logits, refined = [], []
    for stage in localizer.stages:
        crops = pooled_by_level(levels, strides, boxes, localizer.roi_size)  # (B, P, D, r, r)
        features = stage.norm1(features + proposal_attention(stage.self_attn, features))
        interact = stage.inst_interact
        inner, outer = interact.dynamic_layer(features).chunk(2, dim=-1)
        points = crops.flatten(3).transpose(2, 3)
        points = F.relu(interact.norm1(points @ inner.unflatten(-1, (-1, interact.dynamic_dim))))
        points = F.relu(interact.norm2(points @ outer.unflatten(-1, (interact.dynamic_dim, -1))))
        features = stage.norm2(features + F.relu(interact.norm3(interact.out_layer(points.flatten(2)))))
        features = stage.norm3(features + stage.linear2(F.relu(stage.linear1(features))))
        logits.append(stage.class_logits(stage.cls_module(features)))
        dx, dy, dw, dh = (stage.bboxes_delta(stage.reg_module(features)) / features.new_tensor([2, 2, 1, 1])).unbind(-1)
        x1, y1, x2, y2 = boxes.unbind(-1)
        w, h = x2 - x1, y2 - y1
        cx, cy = x1 + 0.5 * w + dx * w, y1 + 0.5 * h + dy * h
        w, h = (side * log.clamp(max=math.log(100_000 / 16)).exp() for side, log in ((w, dw), (h, dh)))
        boxes = torch.stack([cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h], dim=-1)
        refined.append(boxes)
        boxes = boxes.detach()
    return torch.stack(logits), torch.stack(refined)


def pooled_by_level(levels: list[Tensor], strides: tuple[int, ...], boxes: Tensor, size: int) -> Tensor:
    flat = boxes.flatten(0, 1)
    item = torch.arange(len(boxes), device=boxes.device).repeat_interleave(boxes.shape[1])[:, None].to(flat)
    area = (flat[:, 2] - flat[:, 0]) * (flat[:, 3] - flat[:, 1])
    chosen = torch.floor(4 + torch.log2(area.clamp(min=0).sqrt() / 224 + 1e-8)).clamp(2, 5).long() - 2
    crops = flat.new_zeros(len(flat), levels[0].shape[1], size, size)
    for number, (level, stride) in enumerate(zip(levels, strides, strict=True)):
        mine = (chosen == number).nonzero()[:, 0]
        crops[mine] = roi_align(level, torch.cat([item, flat], 1)[mine], size, 1 / stride, 2, aligned=True)
    return crops.unflatten(0, boxes.shape[:2])


def proposal_attention(attn: Any, features: Tensor) -> Tensor:
    batch, count, dim = features.shape
    query, key, value = attn.qkv(features).view(batch, count, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    attention = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(dim=-1)
    return attn.proj((attention @ value).transpose(1, 2).reshape(batch, count, dim))


def refine(
    decoder: Any, tokens: Tensor, places: Tensor, boxes: Tensor, image_sizes: Tensor, grid: tuple[int, int, int]
) -> Tensor:
    slots, height, width = grid
    per_slot, key = height * width, slots // 2
    # The places are filled in ascending order: nothing changes where tokens and places are in order.
    places = places.sort(dim=1).values
    tokens = decoder.encoder_to_decoder(tokens)
    batch, dim = len(tokens), tokens.shape[-1]
    codes = positions(decoder.positions, height, width).view(slots, per_slot, dim)
    other_codes = torch.cat([codes[:key], codes[key + 1 :]]).flatten(0, 1)
    kept = places[..., None].expand(-1, -1, dim)
    grid_tokens = decoder.mask_token.repeat(batch, len(other_codes), 1).scatter(1, kept, tokens[:, per_slot:])
    grid_tokens = grid_tokens.view(batch, slots - 1, per_slot, dim)
    canvas = torch.cat([grid_tokens[:, :key], tokens[:, None, :per_slot], grid_tokens[:, key:]], dim=1) + codes

    x1, y1, x2, y2 = boxes.detach().unbind(-1)
    grow_x, grow_y = (
        (high - low + 1) * part / 2 for low, high, part in zip((x1, y1), (x2, y2), decoder.roi_extension, strict=True)
    )
    sizes = image_sizes.to(boxes) - 1
    limits = (sizes[:, 1:], sizes[:, :1])
    sides = [(x1 - grow_x, 0), (y1 - grow_y, 1), (x2 + grow_x, 0), (y2 + grow_y, 1)]
    extended = torch.stack([torch.minimum(side.clamp(min=0), limits[axis]) for side, axis in sides], dim=-1)
    item = torch.arange(batch, device=boxes.device).repeat_interleave(boxes.shape[1])[:, None].to(boxes)
    rois = torch.cat([item, extended.flatten(0, 1)], dim=1)
    per_tubelet = []
    for slot in range(slots):
        view = canvas[:, slot].transpose(1, 2).reshape(batch, dim, height, width).contiguous()
        crops = roi_align(view, rois, decoder.roi_size, 1 / decoder.patch_size, 2, aligned=True)
        per_tubelet.append(crops.flatten(2).amax(dim=2))
    actors = torch.stack(per_tubelet, dim=1).mean(dim=1).view(batch, -1, dim)

    located = torch.cat([codes[key].expand(batch, -1, -1), other_codes[places]], dim=1)
    sequence = torch.cat([tokens + located, actors], dim=1)
    logits = []
    for block in decoder.blocks:
        sequence = sequence + self_attention(block.attn, block.norm1(sequence))[0]
        sequence = sequence + mlp(block.mlp, block.norm2(sequence))
        logits.append(block.action_logits(block.act_module(sequence[:, -actors.shape[1] :])))
    return torch.stack(logits)
