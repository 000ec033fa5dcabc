"""The published implementation's GFLOPs: against published tables, against a plain network, against what we execute."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from callbacks.measures.flops import count_gflops
from lightning_modules.networks.detection import localizer
from lightning_modules.networks.detection.evad import EvadTeacher
from lightning_modules.networks.detection.published_cost import PublishedCost, published_gflops
from lightning_modules.networks.weights.configured import network_of
from tests.networks.tiny import tiny_teacher

CONFIGS = Path(__file__).parents[3] / "configs" / "networks"
DENSE, KEEP_70, KEEP_60 = ({}, {3: 0.7, 6: 0.7, 9: 0.7}, {3: 0.6, 6: 0.6, 9: 0.6})
IDS = ["keep 1.0", "keep 0.7", "keep 0.6"]


def configured(name: str, **changes: Any) -> EvadTeacher:
    """The network of a config without memory for its weights."""
    changed = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    with torch.device("meta"):
        return network_of(CONFIGS / f"{name}.yaml", 80, changed).eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("keep_rates", "enhanced_weight", "total", "parts"),
    [
        (DENSE, 1, 424.53, (3.06, 197.22, 146.77, 5.42, 8.92, 0.76, 42.92, 19.05, 0.41)),
        (KEEP_70, 1, 242.78, (3.06, 116.84, 92.98, 5.42, 8.92, 0.26, 8.02, 7.01, 0.28)),
        (KEEP_60, 4, 208.88, (3.06, 102.15, 79.88, 5.42, 8.92, 0.17, 4.35, 4.68, 0.25)),
    ],
    ids=IDS,
)
def test_every_part_of_the_published_vit_b_is_found_again(keep_rates, enhanced_weight, total, parts):
    """On one 16 x 288 x 288 clip (`EVAD.md`, section 14); the paper rounds the totals to 425, 243 and 209."""
    teacher = configured("evad_vit_b", backbone__keep_rates=keep_rates, backbone__enhanced_weight=enhanced_weight)
    cost = published_gflops(teacher, 288, 288)
    assert cost.total == pytest.approx(total, abs=0.006)
    for name, found, published in zip(PublishedCost._fields, cost, parts, strict=False):
        assert found == pytest.approx(published, abs=0.006), name
    assert cost.total == pytest.approx(sum(cost[:9]))


def test_every_block_of_the_published_vit_b_is_found_again():
    cost = published_gflops(configured("evad_vit_b", backbone__keep_rates=KEEP_70), 288, 288)
    published = [28.69] * 3 + [25.02] + [17.92] * 2 + [15.35] + [11.49] * 2 + [9.69] + [7.52] * 2
    assert cost.encoder_blocks == pytest.approx(published, abs=0.006)


def test_the_config_of_vit_l_is_the_published_737():
    assert published_gflops(configured("evad_vit_l"), 288, 288).total == pytest.approx(737.11, abs=0.006)


@pytest.mark.parametrize(
    ("height", "width", "published"),
    [
        (224, 224, (223.8, 134.2, 116.3)),
        (256, 256, (311.9, 182.3, 157.4)),
        (288, 384, (631.5, 351.4, 301.2)),
        (288, 512, (960.9, 520.4, 444.8)),
    ],
)
def test_other_frame_sizes_cost_what_is_published(height, width, published):
    costs = [
        published_gflops(configured("evad_vit_b", backbone__keep_rates=r), height, width)
        for r in (DENSE, KEEP_70, KEEP_60)
    ]
    assert [cost.total for cost in costs] == pytest.approx(published, rel=3e-4)


def test_a_clip_counts_with_its_padding():
    teacher = tiny_teacher()
    assert published_gflops(teacher, 65, 90) == published_gflops(teacher, 96, 96)


class Plain(nn.Module):
    """The layers of a teacher applied to everything, as the published implementation does it, and nothing spared.

    Which tokens are dropped and what is in a RoI does not change the cost: the first ones, and nothing.

    Args:
        left: tokens after each dropout layer.
    """

    def __init__(self, teacher: EvadTeacher, left: list[int]) -> None:
        super().__init__()
        self.teacher, self.left = teacher, left

    def forward(self, clip: Tensor) -> tuple[Tensor, ...]:
        backbone, pyramid, decoder = self.teacher.backbone, self.teacher.head.pyramid, self.teacher.head.decoder
        grid, left, maps = [side // backbone.size.patch_size for side in clip.shape[-2:]], iter(self.left), []
        tokens = backbone.patch_embed(clip).flatten(1, 2)
        for layer, block in enumerate(backbone.blocks):
            tokens = tokens + block.attn(block.norm1(tokens))
            if block.dropout is not None:
                tokens = tokens[:, : next(left)]
            tokens = tokens + block.mlp(block.norm2(tokens))
            if layer in backbone.size.pyramid_layers:
                maps.append(tokens[:, : grid[0] * grid[1]].transpose(1, 2).unflatten(2, grid))
        levels = self.levels(pyramid, maps)
        features, boxes = (
            self.teacher.head.localizer.proposal_features[None],
            self.teacher.head.localizer.proposal_boxes[None],
        )
        crops = torch.zeros(*features.shape, *[self.teacher.head.localizer.roi_size] * 2)
        for stage in self.teacher.head.localizer.stages:
            features, person_logits, boxes = stage(features, crops, boxes)
        tokens = decoder.encoder_to_decoder(backbone.norm(tokens))
        actors = torch.zeros(1, boxes.shape[1], decoder.dim)
        sequence = torch.cat([tokens, actors], dim=1)
        for block in decoder.blocks:
            sequence = sequence + block.attn(block.norm1(sequence))
            sequence = sequence + block.mlp(block.norm2(sequence))
        return person_logits, boxes, block.classify(sequence[:, -boxes.shape[1] :]), *levels

    @staticmethod
    def levels(pyramid: nn.Module, maps: list[Tensor]) -> list[Tensor]:
        inner, levels = None, []
        for number, factor in reversed([*enumerate((4, 2, 1, 0.5))]):
            resampled = maps[number] if factor == 1 else F.interpolate(maps[number], scale_factor=factor)
            lateral = pyramid.laterals[number](resampled)
            inner = lateral if inner is None else lateral + F.interpolate(inner, scale_factor=2)
            levels.append(pyramid.outputs[number](inner))
        return levels


@pytest.mark.parametrize(
    ("changes", "height", "width", "num_frames", "left"),
    [
        ({}, 64, 64, 8, [52, 39]),  # 4 slots of 16 tokens: ceil(0.8 x 64), ceil(0.75 x 52)
        ({}, 64, 96, 8, [77, 58]),  # of 24: ceil(76.8), ceil(57.75)
        ({"keep_rates": {}}, 64, 96, 8, []),
        ({}, 64, 64, 2, [16, 16]),  # the keyframe's slot alone is not dropped from
        ({"mlp_ratio": 2.0, "decoder_mlp_ratio": 3.0, "decoder_depth": 3, "patch_size": 8}, 32, 64, 8, [103, 78]),
    ],
)
def test_the_arithmetic_is_that_of_a_plain_network_counted_operation_by_operation(
    changes, height, width, num_frames, left
):
    teacher = tiny_teacher(**changes)
    counted = count_gflops(Plain(teacher, left), torch.zeros(1, 3, num_frames, height, width))
    assert counted.uncounted == ()
    assert published_gflops(teacher, height, width, num_frames).total == pytest.approx(counted.gflops, rel=1e-9)


@pytest.mark.parametrize(
    ("changes", "num_frames"), [({}, 8), ({}, 2), ({"keep_rates": {}}, 8), ({"roi_kernel": "separable"}, 8)]
)
def test_a_tiny_network_executes_no_more_than_published(changes, num_frames):
    teacher = tiny_teacher(**changes)
    executed = count_gflops(teacher, torch.zeros(1, 3, num_frames, 64, 96))
    assert executed.uncounted == ()
    published = published_gflops(teacher, 64, 96, num_frames)
    assert 0.5 * published.total < executed.gflops < published.total


@pytest.mark.parametrize(("keep_rates", "executed"), [(DENSE, 412.41), (KEEP_70, 237.99), (KEEP_60, 204.95)], ids=IDS)
def test_vit_b_executes_less_than_published(keep_rates, executed, monkeypatch):
    """``executed`` is what ``count_gflops`` finds on a CPU in a minute; here torch counts without computing anything.

    The compiled RoIAlign does not run so, and torch counts no norms and no interpolation: they are added by hand.
    """
    teacher = configured("evad_vit_b", backbone__keep_rates=keep_rates)

    def empty_crops(pyramid: tuple[Tensor, ...], strides, boxes: Tensor, size: int, kernel: str) -> Tensor:
        return boxes.new_empty(*boxes.shape[:2], pyramid[0].shape[1], size, size)

    monkeypatch.setattr(localizer, "pyramid_roi_align", empty_crops)
    by_hand = 6 * 100 * 7 * 7 * 256 * 4 * 4  # RoIAlign: four taps of each of four samples a bin
    by_hand += 8 * 18 * 18 * (768 + 384) * 16  # position codes of encoder and decoder, resized

    def count_norm(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal by_hand
        by_hand += 5 * output.numel()

    for layer in teacher.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.register_forward_hook(count_norm)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        teacher(torch.empty(1, 3, 16, 288, 288, device="meta"))
    counted = (counter.get_total_flops() / 2 + by_hand) / 1e9
    assert counted == pytest.approx(executed, abs=0.006)
    assert counted < published_gflops(teacher, 288, 288).total
