"""Checkpoints of EVAD's release: names, sizes read from shapes, and the same outputs as the network they came from."""

import re
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_modules.networks.detection.context_decoder import ContextDecoder
from lightning_modules.networks.detection.evad import EvadTeacher
from lightning_modules.networks.detection.head import DetectionHead
from lightning_modules.networks.detection.localizer import Localizer
from lightning_modules.networks.detection.vit import VideoViT
from lightning_modules.networks.layers.positions import sine_table
from lightning_modules.networks.layers.trunk_size import TrunkSize
from lightning_modules.networks.weights.evad_names import is_release, renamed_from_release, sizes_from_shapes
from lightning_modules.networks.weights.loading import evad_from_release, load_exactly, read_state_dict
from tests.networks.tiny import CONFIG, by_part, randomise, teacher_of, tiny_teacher

KEYS_OF_THE_RELEASE = Path(__file__).parents[4] / "shared" / "research" / "evad-state-dict-vitb.txt"
UNTOLD = {
    "num_heads": 3,
    "decoder_heads": 2,
    "localizer_heads": 2,
    "keep_rates": {1: 0.8, 3: 0.75},
    "enhanced_weight": 4.0,
    "pyramid_layers": (0, 2, 3, 4),
    "decoder_roi_size": 2,
    "pretrain_size": 64,
    "num_frames": 8,
}
"""The arguments of ``tests.networks.tiny.CONFIG`` that no shape tells."""
pytestmark = pytest.mark.filterwarnings("ignore:published weights with token dropout")


def published_state(teacher: EvadTeacher) -> dict[str, torch.Tensor]:
    """The teacher's parameters as the release would hold them, each name written out from `EVAD.md`."""
    state = {}
    for part in ("patch_embed", "blocks", "norm"):
        for key, value in getattr(teacher.backbone, part).state_dict().items():
            state[f"{part}.{key}"] = value
    for number in range(4):
        for kind, convolutions in (
            ("lateral", teacher.head.pyramid.laterals),
            ("output", teacher.head.pyramid.outputs),
        ):
            state[f"fpn_{kind}{number + 2}.weight"] = convolutions[number].weight
            state[f"fpn_{kind}{number + 2}.bias"] = convolutions[number].bias
    state["init_proposal_features.weight"] = teacher.head.localizer.proposal_features
    state["init_proposal_boxes.weight"] = teacher.head.localizer.proposal_boxes
    for number, stage in enumerate(teacher.head.localizer.stages):
        prefix = f"det_head.s0_headseries.{number}"
        state[f"{prefix}.self_attn.in_proj_weight"] = stage.self_attn.qkv.weight
        state[f"{prefix}.self_attn.in_proj_bias"] = stage.self_attn.qkv.bias
        state[f"{prefix}.self_attn.out_proj.weight"] = stage.self_attn.proj.weight
        state[f"{prefix}.self_attn.out_proj.bias"] = stage.self_attn.proj.bias
        for key, value in stage.state_dict().items():
            if not key.startswith("self_attn."):
                state[f"{prefix}.{key}"] = value
    state["det_head.mask_token"] = teacher.head.decoder.mask_token
    state["det_head.encoder_to_decoder.weight"] = teacher.head.decoder.encoder_to_decoder.weight
    for key, value in teacher.head.decoder.blocks.state_dict().items():
        state[f"det_head.decoder.blocks.{key}"] = value
    state["criterion.empty_weight"] = torch.tensor([1.0, 0.1])
    return {key: value.detach().clone() for key, value in state.items()}


def some_clips():
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(3, 8, *size, generator=generator) for size in [(50, 90), (64, 70)]]


def outputs_of(teacher: EvadTeacher):
    with torch.no_grad():
        return teacher.outputs(some_clips(), deep=True)


@pytest.mark.parametrize("key_order", ["position", "as_published"])
@pytest.mark.parametrize("container", ["checkpoint", "model_state", "parallel"])
def test_a_release_gives_the_network_it_came_from(container, key_order):
    original = tiny_teacher(key_order=key_order)
    state = published_state(original)
    given = {
        "checkpoint": {"epoch": 11, "model_state": state, "optimizer_state": {}, "cfg": "TRAIN: {}", "amp": None},
        "model_state": state,
        "parallel": {f"module.{key}": value for key, value in state.items()},
    }[container]
    assert is_release(given)
    teacher = evad_from_release(given, **UNTOLD, key_order=key_order)
    assert not teacher.training
    torch.testing.assert_close(outputs_of(teacher), outputs_of(original), rtol=0, atol=0)


def test_rates_may_be_listed_one_a_block():
    original = tiny_teacher()
    listed = UNTOLD | {"keep_rates": [1.0, 0.8, 1.0, 0.75, 1.0]}
    teacher = evad_from_release(published_state(original), **listed)
    torch.testing.assert_close(outputs_of(teacher), outputs_of(original), rtol=0, atol=0)
    with pytest.raises(ValueError, match="keep_rates has 3 entries but the encoder has 5 blocks"):
        evad_from_release(published_state(original), **UNTOLD | {"keep_rates": [1.0, 0.8, 1.0]})


def test_sizes_are_read_from_the_shapes():
    changes = {"num_classes": 7, "mlp_ratio": 1.75, "decoder_mlp_ratio": 2.25, "num_stages": 2, "localizer_roi_size": 5}
    original = tiny_teacher(**changes)
    found = sizes_from_shapes(renamed_from_release(published_state(original)))
    parts = by_part(CONFIG | changes)
    assert (found.num_classes, found.learned_positions) == (7, False)
    for told, given in ((found.trunk, "size"), (found.localizer, "localizer"), (found.decoder, "decoder")):
        assert told.items() <= parts[given].items()
    torch.testing.assert_close(
        outputs_of(evad_from_release(published_state(original), **UNTOLD)), outputs_of(original), rtol=0, atol=0
    )


def test_a_learned_position_table_is_used():
    original = tiny_teacher(learned_positions=True)
    state = published_state(original) | {"pos_embed": original.backbone.positions.table.detach()[None]}
    teacher = evad_from_release(state, **UNTOLD)
    assert isinstance(teacher.backbone.positions.table, nn.Parameter)
    torch.testing.assert_close(outputs_of(teacher), outputs_of(original), rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"positions.table: \(64, 24\) in the file, \(100, 24\) in the network"):
        evad_from_release(state, **UNTOLD | {"pretrain_size": 80})


def test_learned_positions_start_at_the_fixed_ones():
    torch.testing.assert_close(
        teacher_of(CONFIG | {"learned_positions": True}).backbone.positions.table.data, sine_table(4 * 4 * 4, 24)
    )


def test_layer_scale_is_multiplied_into_the_projections():
    original = tiny_teacher()
    state = published_state(original)
    generator = torch.Generator().manual_seed(2)
    expected = tiny_teacher()
    for number, block in enumerate(expected.backbone.blocks):
        scales = torch.rand(2, 24, generator=generator) + 0.5
        state[f"blocks.{number}.gamma_1"], state[f"blocks.{number}.gamma_2"] = scales
        # Scaled the way the block is defined: its branch times gamma.
        for part, scale in ((block.attn.proj, scales[0]), (block.mlp.fc2, scales[1])):
            part.register_forward_hook(lambda module, inputs, output, scale=scale: output * scale)
    torch.testing.assert_close(
        outputs_of(evad_from_release(state, **UNTOLD)), outputs_of(expected), rtol=1e-4, atol=1e-4
    )


def test_the_order_of_kept_tokens_is_warned_about_only_where_tokens_are_dropped():
    state = published_state(tiny_teacher())
    with pytest.warns(UserWarning, match="as_published"):
        evad_from_release(state, **UNTOLD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evad_from_release(state, **UNTOLD, key_order="as_published")
        evad_from_release(state, **UNTOLD | {"keep_rates": {}})


def test_what_does_not_fit_is_listed():
    state = published_state(tiny_teacher())
    del state["det_head.s0_headseries.1.linear1.bias"]
    state["det_head.extra.weight"] = torch.zeros(1)
    with pytest.raises(
        ValueError, match=r"missing \(1\): head.localizer.stages.1.linear1.bias; left over \(1\): head.decoder.extra"
    ):
        evad_from_release(state, **UNTOLD)
    with pytest.raises(ValueError, match="expected a checkpoint of EVAD's release"):
        evad_from_release({"encoder.blocks.0.norm1.weight": torch.zeros(3)}, **UNTOLD)


def test_a_release_file_is_read_like_our_own_weights(tmp_path):
    original = tiny_teacher()
    path = tmp_path / "EVAD.pyth"
    torch.save({"epoch": 3, "model_state": published_state(original), "cfg": "text", "amp": None}, path)
    network = randomise(teacher_of(CONFIG), seed=9).eval()
    load_exactly(network, read_state_dict(path))
    torch.testing.assert_close(outputs_of(network), outputs_of(original), rtol=0, atol=0)


@pytest.mark.skipif(not KEYS_OF_THE_RELEASE.is_file(), reason=f"no {KEYS_OF_THE_RELEASE}")
def test_every_key_and_shape_of_the_published_vit_b_finds_its_place():
    lines = [line.split() for line in KEYS_OF_THE_RELEASE.read_text().splitlines() if not line.startswith("#")]
    state = {line[0]: torch.empty([int(side) for side in line[1].split("x")], device="meta") for line in lines}
    assert len(state) == 529
    renamed = renamed_from_release(state)
    with torch.device("meta"):
        sizes = sizes_from_shapes(renamed)
        decoder = partial(ContextDecoder, **sizes.decoder)
        head = partial(DetectionHead, localizer=Localizer(**sizes.localizer), decoder=decoder)
        network = EvadTeacher(sizes.num_classes, VideoViT(TrunkSize(**sizes.trunk)), head)
    assert {key: value.shape for key, value in renamed.items()} == {
        key: value.shape for key, value in network.state_dict().items()
    }
    # Their names differ from ours in more than a prefix, so equal sets of names are no accident.
    assert not any(re.match(r"det_head|fpn_|init_", key) for key in renamed)
