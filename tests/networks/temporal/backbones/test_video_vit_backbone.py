"""The video ViT on consecutive clips: order of slots, clips that do not see each other, the end of a video."""

import pytest
import torch

from callbacks.measures.flops import count_gflops
from lightning_modules.networks.temporal.backbones.video_vit_backbone import VideoViTBackbone
from tests.networks.tiny import randomise

SIZES = {"clip_frames": 8, "frame_size": 32, "dim": 12, "depth": 2, "num_heads": 2, "patch_size": 16}


def build(**changes) -> VideoViTBackbone:
    return randomise(VideoViTBackbone(**(SIZES | changes))).double().eval()


def window(steps: int = 24, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    frames = torch.randn(2, steps, channels, 32, 32, dtype=torch.float64, generator=torch.manual_seed(1))
    return frames, torch.ones(2, steps, dtype=torch.bool)


@pytest.fixture(autouse=True)
def no_gradients(request):
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


def by_hand(backbone: VideoViTBackbone, clip: torch.Tensor) -> torch.Tensor:
    """(B, 8, C, H, W) -> (B, 4, dim): the encoder's tokens put back into the order of time, block by block."""
    encoder = backbone.encoder
    tokens = encoder.patch_embed(clip.transpose(1, 2)) + encoder.positions(4, 2, 2)
    tokens = tokens.flatten(1, 2)
    for block in encoder.blocks:
        tokens = tokens + block.attn(block.norm1(tokens))
        tokens = tokens + block.mlp(block.norm2(tokens))
    return encoder.norm(tokens).unflatten(1, (4, 4)).mean(2)


def test_a_feature_is_the_mean_over_the_tokens_of_its_slot_in_the_order_of_time():
    backbone, (frames, mask) = build(), window()
    features = backbone(frames, mask)
    assert features.shape == (2, 12, 12)
    expected = torch.cat([by_hand(backbone, clip) for clip in frames.split(8, dim=1)], dim=1)
    torch.testing.assert_close(features.mT, expected)


def test_clips_do_not_see_each_other_and_a_clip_sees_all_of_itself():
    backbone, (frames, mask) = build(), window()
    before = backbone(frames, mask)
    frames[:, 9] = torch.randn_like(frames[:, 9])
    changed = (backbone(frames, mask) - before).abs().amax((0, 1)) > 1e-9
    assert changed.tolist() == [False] * 4 + [True] * 4 + [False] * 4


@pytest.mark.parametrize("steps", [8, 2, 14])
def test_a_window_of_any_even_length_has_half_as_many_features(steps):
    backbone, (frames, mask) = build(), window(steps)
    features = backbone(frames, mask)
    assert features.shape == (2, 12, steps // 2)
    longer, longer_mask = window(16)
    longer[:, :steps], longer_mask[:, steps:] = frames, False
    torch.testing.assert_close(backbone(longer, longer_mask)[:, :, : steps // 2], features)


def test_what_lies_after_the_end_changes_nothing():
    backbone, (frames, mask) = build(), window()
    mask[0, 13:] = False
    before = backbone(frames, mask)
    frames[0, 13:] = torch.nan
    torch.testing.assert_close(backbone(frames, mask), before, rtol=0, atol=0)


def test_flow_has_two_channels():
    backbone = build(in_channels=2)
    assert backbone(*window(channels=2)).shape == (2, 12, 12)
    assert backbone.encoder.patch_embed.proj.weight.shape[1] == 2


def test_it_starts_from_videomae_weights(tmp_path):
    source = build()
    torch.save({"model": source.encoder.state_dict()}, tmp_path / "mae.pth")
    backbone = VideoViTBackbone(**SIZES, pretrained=tmp_path / "mae.pth").double()
    assert torch.equal(backbone.encoder.blocks[1].mlp.fc1.weight, source.encoder.blocks[1].mlp.fc1.weight)
    with pytest.raises(ValueError, match="in_channels=2"):
        VideoViTBackbone(**SIZES, in_channels=2, pretrained=tmp_path / "mae.pth")


def test_every_parameter_receives_a_gradient_under_bfloat16():
    backbone, (frames, mask) = build().float().train(), window()
    with torch.autocast("cpu", torch.bfloat16):
        features = backbone(frames.float(), mask)
    features.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


def test_all_its_operators_are_counted():
    count = count_gflops(
        build().float(), *(part[:1].float() if part.is_floating_point() else part[:1] for part in window())
    )
    assert count.gflops > 0 and not count.uncounted
