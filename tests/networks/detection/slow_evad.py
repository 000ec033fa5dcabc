"""EVAD as `EVAD.md` states it, in numpy float64 with plain loops: slow, and sharing nothing with the networks.

It reads the weights by the names that ``EvadTeacher.state_dict()`` gives them and takes one padded clip at a time.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import erf


class SlowOutputs(NamedTuple):
    """R stages, D decoder blocks, P proposals, K classes; ``kept`` as reported after each dropout layer."""

    person_logits: np.ndarray  # (R, P, 2)
    boxes: np.ndarray  # (R, P, 4)
    action_logits: np.ndarray  # (D, P, K)
    maps: list[np.ndarray]  # (C, h, w) each
    kept: list[np.ndarray]


def linear(values, weights, name):
    bias = weights.get(f"{name}.bias", 0.0)
    return values @ weights[f"{name}.weight"].T + bias


def layer_norm(values, weights, name, eps):
    centred = values - values.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return normed * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def softmax(values):
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def relu(values):
    return np.maximum(values, 0)


def gelu(values):
    return 0.5 * values * (1 + erf(values / math.sqrt(2)))


def attention_maps(query, key, value, num_heads):
    """(N, C) each -> heads side by side (N, C), and every head's whole map (H, N, N)."""
    width = query.shape[1] // num_heads
    outputs, maps = [], []
    for head in range(num_heads):
        part = slice(head * width, (head + 1) * width)
        maps.append(softmax(query[:, part] @ key[:, part].T / math.sqrt(width)))
        outputs.append(maps[-1] @ value[:, part])
    return np.concatenate(outputs, axis=1), np.stack(maps)


def video_attention(tokens, weights, name, num_heads):
    """VideoMAE's self-attention: no key bias."""
    dim = tokens.shape[1]
    query, key, value = np.split(tokens @ weights[f"{name}.qkv.weight"].T, [dim, 2 * dim], axis=1)
    query, value = query + weights[f"{name}.q_bias"], value + weights[f"{name}.v_bias"]
    outputs, maps = attention_maps(query, key, value, num_heads)
    return linear(outputs, weights, f"{name}.proj"), maps


def mlp(tokens, weights, name):
    return linear(gelu(linear(tokens, weights, f"{name}.fc1")), weights, f"{name}.fc2")


def sine_table(num_positions, dim):
    table = np.zeros((num_positions, dim))
    for position in range(num_positions):
        for channel in range(dim):
            angle = position / 10000 ** (2 * (channel // 2) / dim)
            table[position, channel] = math.cos(angle) if channel % 2 else math.sin(angle)
    return table


def cubic_weight(distance, a=-0.75):
    distance = abs(distance)
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    if distance < 2:
        return a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return 0.0


def bicubic_matrix(length, new_length):
    """(new_length, length): half-pixel centres, borders repeated, no antialiasing."""
    matrix = np.zeros((new_length, length))
    for row in range(new_length):
        source = (row + 0.5) * length / new_length - 0.5
        for tap in range(math.floor(source) - 1, math.floor(source) + 3):
            matrix[row, min(max(tap, 0), length - 1)] += cubic_weight(source - tap)
    return matrix


def position_codes(num_slots, pretrain_grid, dim, height, width):
    """(T', h w, C)."""
    table = sine_table(num_slots * pretrain_grid**2, dim).reshape(num_slots, pretrain_grid, pretrain_grid, dim)
    rows, columns = bicubic_matrix(pretrain_grid, height), bicubic_matrix(pretrain_grid, width)
    return np.stack([np.einsum("yi,xj,ijc->yxc", rows, columns, slot) for slot in table]).reshape(num_slots, -1, dim)


def bilinear(grid, y, x):
    """(C, h, w) at one point; more than a cell outside the map it is zero."""
    height, width = grid.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(len(grid))
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, along = y - top, x - left
    return (
        (1 - down) * (1 - along) * grid[:, top, left]
        + (1 - down) * along * grid[:, top, right]
        + down * (1 - along) * grid[:, bottom, left]
        + down * along * grid[:, bottom, right]
    )


def roi_align(grid, box, size, scale, samples=2):
    """(C, h, w) and one xyxy box in pixels -> (C, size, size)."""
    x1, y1, x2, y2 = (side * scale - 0.5 for side in box)
    crop = np.zeros((len(grid), size, size))
    for row in range(size):
        for column in range(size):
            for i in range(samples):
                for j in range(samples):
                    y = y1 + (y2 - y1) * (row + (i + 0.5) / samples) / size
                    x = x1 + (x2 - x1) * (column + (j + 0.5) / samples) / size
                    crop[:, row, column] += bilinear(grid, y, x) / samples**2
    return crop


def conv3x3(grid, weight, bias):
    """(I, h, w) -> (O, h, w), zero padding."""
    padded = np.pad(grid, ((0, 0), (1, 1), (1, 1)))
    height, width = grid.shape[1:]
    result = np.zeros((len(weight), height, width)) + bias[:, None, None]
    for row in range(3):
        for column in range(3):
            result += np.einsum(
                "oi,iyx->oyx", weight[:, :, row, column], padded[:, row : row + height, column : column + width]
            )
    return result


def upsampled(grid, factor):
    return grid.repeat(factor, axis=1).repeat(factor, axis=2)


def embed(clip, weights, patch_size):
    """(3, T, H, W) -> (T', h w, C)."""
    _, frames, height, width = clip.shape
    kernel, bias = weights["backbone.patch_embed.proj.weight"], weights["backbone.patch_embed.proj.bias"]
    slots = []
    for t in range(0, frames, 2):
        for y in range(0, height, patch_size):
            for x in range(0, width, patch_size):
                tubelet = clip[:, t : t + 2, y : y + patch_size, x : x + patch_size]
                slots.append(np.tensordot(kernel, tubelet, axes=4) + bias)
    return np.array(slots).reshape(frames // 2, -1, len(kernel))


def encode(clip, weights, config):
    """The normed tokens (keyframe first), their places outside the keyframe, the keyframe maps and kept places."""
    patch = config["patch_size"]
    height, width = clip.shape[2] // patch, clip.shape[3] // patch
    tokens = embed(clip, weights, patch)
    num_slots, size, dim = tokens.shape
    tokens = tokens + position_codes(num_slots, config["pretrain_size"] // patch, dim, height, width)
    key = num_slots - 1 if config.get("keyframe") == "last" else num_slots // 2
    order = [key, *range(key), *range(key + 1, num_slots)]
    tokens = np.concatenate([tokens[slot] for slot in order])
    places = np.arange(len(tokens) - size)
    maps, kept = {}, []
    for layer in range(config["depth"]):
        block = f"backbone.blocks.{layer}"
        attended, attention = video_attention(
            layer_norm(tokens, weights, f"{block}.norm1", 1e-6), weights, f"{block}.attn", config["num_heads"]
        )
        tokens = tokens + attended
        if layer in config["keep_rates"]:
            scores = np.zeros(len(tokens))
            for head in attention:
                scores += config["enhanced_weight"] * head[:size].sum(0) + head[size:].sum(0)
            number = math.ceil(config["keep_rates"][layer] * len(tokens)) - size
            chosen = sorted(range(len(places)), key=lambda token: -scores[size + token])[:number]
            if config["key_order"] == "position":
                chosen = sorted(chosen)
            tokens = np.concatenate([tokens[:size], tokens[size:][chosen]])
            places = places[chosen]
            kept.append(places)
        tokens = tokens + mlp(layer_norm(tokens, weights, f"{block}.norm2", 1e-6), weights, f"{block}.mlp")
        maps[layer] = tokens[:size].T.reshape(dim, height, width)
    if config["key_order"] == "as_published":
        places = np.sort(places)  # the tokens stay in order of their scores: finding 1
    taps = [maps[layer] for layer in config["pyramid_layers"]]
    return layer_norm(tokens, weights, "backbone.norm", 1e-6), places, taps, kept


def pyramid_of(maps, weights):
    """Four maps of stride 16 -> levels of strides 4, 8, 16 and 32."""
    levels = [upsampled(maps[0], 4), upsampled(maps[1], 2), maps[2], maps[3][:, ::2, ::2]]
    inner, result = None, []
    for number in (3, 2, 1, 0):
        kernel, bias = (weights[f"head.pyramid.laterals.{number}.{part}"] for part in ("weight", "bias"))
        lateral = np.einsum("oi,iyx->oyx", kernel[:, :, 0, 0], levels[number]) + bias[:, None, None]
        inner = lateral if inner is None else lateral + upsampled(inner, 2)
        kernel, bias = (weights[f"head.pyramid.outputs.{number}.{part}"] for part in ("weight", "bias"))
        result.insert(0, conv3x3(inner, kernel, bias))
    return result


def interact(feature, crop, weights, name):
    """One proposal: two matrices from its feature filter its RoI (D, r, r)."""
    dim = len(feature)
    matrices = linear(feature, weights, f"{name}.dynamic_layer")
    half = len(matrices) // 2
    points = crop.reshape(dim, -1).T
    points = relu(layer_norm(points @ matrices[:half].reshape(dim, -1), weights, f"{name}.norm1", 1e-5))
    points = relu(layer_norm(points @ matrices[half:].reshape(-1, dim), weights, f"{name}.norm2", 1e-5))
    return relu(layer_norm(linear(points.reshape(-1), weights, f"{name}.out_layer"), weights, f"{name}.norm3", 1e-5))


def tower(features, weights, name, layers):
    for layer in range(layers):
        features = features @ weights[f"{name}.{3 * layer}.weight"].T
        features = relu(layer_norm(features, weights, f"{name}.{3 * layer + 1}", 1e-5))
    return features


def refine_box(box, deltas):
    x1, y1, x2, y2 = box
    width, height = x2 - x1, y2 - y1
    x, y = x1 + width / 2 + deltas[0] / 2 * width, y1 + height / 2 + deltas[1] / 2 * height
    width *= math.exp(min(deltas[2], math.log(100000 / 16)))
    height *= math.exp(min(deltas[3], math.log(100000 / 16)))
    return np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])


def level_of(box):
    """Pyramid level 2 to 5."""
    area = max((box[2] - box[0]) * (box[3] - box[1]), 0.0)
    return min(max(math.floor(4 + math.log2(math.sqrt(area) / 224 + 1e-8)), 2), 5)


def localize(levels, size, weights, config):
    """Person logits (R, P, 2) and boxes (R, P, 4)."""
    height, width = size
    cx, cy, w, h = weights["head.localizer.proposal_boxes"].T
    boxes = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=1) * [width, height, width, height]
    features = weights["head.localizer.proposal_features"]
    all_logits, all_boxes = [], []
    for number in range(config["num_stages"]):
        stage = f"head.localizer.stages.{number}"
        crops = []
        for box in boxes:
            level = level_of(box)
            scale = 1 / (config["patch_size"] / 4 * 2 ** (level - 2))
            crops.append(roi_align(levels[level - 2], box, config["localizer_roi_size"], scale))
        query, key, value = np.split(linear(features, weights, f"{stage}.self_attn.qkv"), 3, axis=1)
        attended, _ = attention_maps(query, key, value, config["localizer_heads"])
        attended = linear(attended, weights, f"{stage}.self_attn.proj")
        features = layer_norm(features + attended, weights, f"{stage}.norm1", 1e-5)
        filtered = [interact(*pair, weights, f"{stage}.inst_interact") for pair in zip(features, crops, strict=True)]
        features = layer_norm(features + np.array(filtered), weights, f"{stage}.norm2", 1e-5)
        hidden = relu(linear(features, weights, f"{stage}.linear1"))
        features = layer_norm(features + linear(hidden, weights, f"{stage}.linear2"), weights, f"{stage}.norm3", 1e-5)
        people = tower(features, weights, f"{stage}.cls_module", 1)
        all_logits.append(linear(people, weights, f"{stage}.class_logits"))
        deltas = linear(tower(features, weights, f"{stage}.reg_module", 3), weights, f"{stage}.bboxes_delta")
        boxes = np.array([refine_box(*pair) for pair in zip(boxes, deltas, strict=True)])
        all_boxes.append(boxes)
    return np.array(all_logits), np.array(all_boxes)


def extend_box(box, extension, size):
    x1, y1, x2, y2 = box
    grow_x, grow_y = extension[0] * (x2 - x1 + 1) / 2, extension[1] * (y2 - y1 + 1) / 2
    low, high = np.zeros(4), np.array([size[1], size[0], size[1], size[0]]) - 1
    return np.minimum(np.maximum([x1 - grow_x, y1 - grow_y, x2 + grow_x, y2 + grow_y], low), high)


def decode(tokens, places, boxes, grid, size, weights, config):
    """Action logits (D, P, K) of every decoder block, each computed over the whole sequence."""
    num_slots, height, width = grid
    patches, dim = height * width, config["decoder_dim"]
    key = num_slots - 1 if config.get("keyframe") == "last" else num_slots // 2
    tokens = tokens @ weights["head.decoder.encoder_to_decoder.weight"].T
    codes = position_codes(num_slots, config["pretrain_size"] // config["patch_size"], dim, height, width)
    other_slots = [slot for slot in range(num_slots) if slot != key]
    canvas = np.tile(weights["head.decoder.mask_token"][0, 0], (num_slots, patches, 1))
    canvas[key] = tokens[:patches]
    sequence = list(tokens[:patches] + codes[key])
    for token, place in zip(tokens[patches:], places, strict=True):
        slot, patch = other_slots[place // patches], place % patches
        canvas[slot, patch] = token
        sequence.append(token + codes[slot, patch])
    canvas = (canvas + codes).reshape(num_slots, height, width, dim).transpose(0, 3, 1, 2)
    for box in boxes:
        box = extend_box(box, config["roi_extension"], size)
        crops = [roi_align(slot, box, config["decoder_roi_size"], 1 / config["patch_size"]) for slot in canvas]
        sequence.append(np.mean([crop.max(axis=(1, 2)) for crop in crops], axis=0))
    sequence, logits = np.array(sequence), []
    for number in range(config["decoder_depth"]):
        block = f"head.decoder.blocks.{number}"
        normed = layer_norm(sequence, weights, f"{block}.norm1", 1e-6)
        sequence = sequence + video_attention(normed, weights, f"{block}.attn", config["decoder_heads"])[0]
        sequence = sequence + mlp(layer_norm(sequence, weights, f"{block}.norm2", 1e-6), weights, f"{block}.mlp")
        logits.append(
            linear(tower(sequence[-len(boxes) :], weights, f"{block}.act_module", 1), weights, f"{block}.action_logits")
        )
    return np.array(logits)


def slow_evad(clip, size, weights, config) -> SlowOutputs:
    """A padded normalised clip (3, T, H, W) and its (height, width) before padding; ``config`` as ``EvadTeacher``'s."""
    tokens, places, maps, kept = encode(clip, weights, config)
    person_logits, boxes = localize(pyramid_of(maps, weights), size, weights, config)
    grid = (clip.shape[1] // 2, *maps[0].shape[1:])
    action_logits = decode(tokens, places, boxes[-1], grid, size, weights, config)
    return SlowOutputs(person_logits, boxes, action_logits, maps, kept)
