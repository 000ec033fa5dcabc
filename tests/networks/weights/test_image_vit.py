"""Starting from an image ViT: timm's own model is the reference, on pictures that stand still."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from lightning_modules.clip_detection import ClipDetectionModule
from lightning_modules.networks.detection.vit import VideoViT
from lightning_modules.networks.layers.pixels import normalise_frames
from lightning_modules.networks.layers.trunk_size import TrunkSize
from lightning_modules.networks.students.decomposed_attention import DecomposedAttention
from lightning_modules.networks.students.temporal_shift import TemporalShiftAttention
from lightning_modules.networks.students.trunk import StreamingTrunk
from lightning_modules.networks.weights import image_files, image_vit
from lightning_modules.networks.weights.image_vit import load_pretrained
from results.benchmarks.random_weights import randomise
from tests.networks.tiny import tiny_teacher

SIZES = {"embed_dim": 24, "depth": 3, "num_heads": 3}
ALIKE = {"class_token": False, "global_pool": "", "num_classes": 0}
"""A ViT of tokens of patches alone."""
SIZE = TrunkSize(24, 3, 3, num_frames=8, pretrain_size=64, pyramid_layers=(0, 1, 2, 2))
IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
KINDS = {
    "plain": {},
    "LayerScale": {"init_values": 0.1},
    "DINOv2 with registers": {"init_values": 0.1, "reg_tokens": 4, "no_embed_class": True},
    "positions of registers": {"reg_tokens": 2},
    "without biases": {"qkv_bias": False},
}


def picture_model(seed: int = 0, **settings: object) -> VisionTransformer:
    return randomise(
        VisionTransformer(**({"img_size": 64, "patch_size": 16, "num_classes": 5} | SIZES | settings)), seed
    )


def without_prefix(model: VisionTransformer) -> dict[str, Tensor]:
    """Weights of a ViT without class token and registers; positions of patches are the last rows."""
    tensors = model.state_dict()
    return {
        name: value[:, -model.patch_embed.num_patches :] if name == "pos_embed" else value
        for name, value in tensors.items()
        if not name.startswith(("cls_token", "reg_token", "head."))
    }


def pixels(count: int = 2, side: int = 64) -> Tensor:
    return torch.randint(
        0, 256, (count, 1, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )


def reference_features(model: VisionTransformer, frames: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval().forward_features((frames[:, 0] / 255 - IMAGENET[0]) / IMAGENET[1])


def keyframe_tokens(network: VideoViT, frames: Tensor, num_frames: int) -> Tensor:
    clips = normalise_frames(frames.expand(-1, num_frames, -1, -1, -1)).transpose(1, 2)
    with torch.no_grad():
        tokens = network.eval()(clips).tokens
    return tokens[:, : frames.shape[-1] * frames.shape[-2] // network.size.patch_size**2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_frames", [2, 8])
def test_a_still_clip_has_the_features_of_timms_own_model(kind, num_frames, tmp_path):
    model = picture_model(**KINDS[kind])
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    settings = {name: value for name, value in KINDS[kind].items() if name not in ("reg_tokens", "no_embed_class")}
    reference = picture_model(**settings, **ALIKE)
    reference.load_state_dict(without_prefix(model))
    network = VideoViT(SIZE, learned_positions=True)
    report = load_pretrained(network, tmp_path / "vit.pth")
    tokens = keyframe_tokens(network, pixels(), num_frames)
    torch.testing.assert_close(tokens, reference_features(reference, pixels()), rtol=0, atol=2e-5)
    assert report.missing == () or kind == "without biases"
    assert not any(name.startswith(("blocks", "patch_embed", "pos_embed", "norm")) for name in report.left_over)
    notes = " ".join(report.notes)
    assert ("LayerScales made part" in notes) == ("init_values" in KINDS[kind])
    assert "cls_token" in notes and ("reg_token" in notes) == ("reg_tokens" in KINDS[kind])


@pytest.mark.parametrize(("patch_size", "img_size"), [(14, 56), (8, 32), (16, 80)])
def test_other_patches_and_grids_become_what_timm_makes_of_them(patch_size, img_size):
    model = picture_model(patch_size=patch_size, img_size=img_size, init_values=0.2)
    reference = picture_model(init_values=0.2, **ALIKE)
    bare = without_prefix(model)
    reference.load_state_dict(checkpoint_filter_fn(bare, reference, interpolation="bicubic", antialias=True))
    network = VideoViT(SIZE, learned_positions=True)
    report = load_pretrained(network, model.state_dict())
    tokens = keyframe_tokens(network, pixels(), 8)
    torch.testing.assert_close(tokens, reference_features(reference, pixels()), rtol=0, atol=2e-5)
    notes = " ".join(report.notes)
    assert (f"resized from {patch_size} to 16" in notes) == (patch_size != 16)
    assert ("resampled from 5 x 5 to 4 x 4" in notes) == (img_size == 80)


@pytest.mark.parametrize("attention", [TemporalShiftAttention, DecomposedAttention])
def test_a_stream_that_stands_still_has_them_too(attention):
    model = picture_model(init_values=0.2)
    reference = picture_model(init_values=0.2, **ALIKE)
    reference.load_state_dict(without_prefix(model))
    trunk = StreamingTrunk(SIZE, attention, learned_positions=True).eval()
    report = load_pretrained(trunk, model.state_dict())
    assert set(report.missing) == trunk.new_parameters()
    frames = normalise_frames(pixels().expand(-1, 6, -1, -1, -1))
    with torch.no_grad():
        encoded, _ = trunk(frames, trunk.initial_state(2))
    # Enough frames for every block to see the same before as now.
    torch.testing.assert_close(encoded.tokens[:, -1], reference_features(reference, pixels()), rtol=0, atol=2e-5)


def test_a_model_of_timms_hub_is_read_with_its_own_normalisation(monkeypatch):
    """``test_vit`` of timm stands for what the hub has; its weights are random here."""
    made = timm.create_model

    def offline(name: str, pretrained: bool = False, **settings: object) -> object:
        assert pretrained
        return randomise(made(name, pretrained=False, **settings), 0)

    monkeypatch.setattr(image_files.timm, "create_model", offline)
    config = timm.get_pretrained_cfg("test_vit.r160_in1k")
    size = TrunkSize(64, 6, 2, mlp_ratio=3.0, num_frames=4, pretrain_size=160, pyramid_layers=(0, 1, 2, 3))
    report = load_pretrained(VideoViT(size, learned_positions=True), "timm:test_vit.r160_in1k")
    assert any(", ".join(f"{value:g}" for value in (*config.mean, *config.std)) in note for note in report.notes)
    with pytest.raises(ValueError, match="timm has no model called vit_enormous"):
        load_pretrained(VideoViT(size), "timm:vit_enormous")


def test_what_does_not_fit_is_refused_and_changes_nothing():
    network = VideoViT(SIZE, learned_positions=True)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    cases = [
        (picture_model(embed_dim=48).state_dict(), "build the network with dim=48"),
        (picture_model(depth=4).state_dict(), "4 blocks in the file, 3 in the network"),
        (picture_model(pre_norm=True).state_dict(), "norm_pre"),
        (picture_model(qk_norm=True).state_dict(), r"without a place in the network .*q_norm"),
        ({k: v for k, v in picture_model().state_dict().items() if k != "pos_embed"}, "no absolute positions"),
        (picture_model().state_dict() | {"pos_embed": torch.zeros(1, 12, 24)}, "12 positions are those of no square"),
    ]
    for tensors, match in cases:
        with pytest.raises(ValueError, match=match):
            load_pretrained(network, tensors)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with pytest.raises(ValueError, match="learned_positions=true"):
        load_pretrained(VideoViT(SIZE), picture_model().state_dict())


def test_a_detectors_module_starts_from_a_picture_model(tmp_path):
    network = tiny_teacher(learned_positions=True, keep_rates={})
    model = picture_model(depth=5)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    ClipDetectionModule(network, pretrained=str(tmp_path / "vit.pth"))
    assert torch.equal(network.backbone.blocks[4].mlp.fc1.weight, model.blocks[4].mlp.fc1.weight)
    assert image_vit.is_image_vit(model.state_dict())
