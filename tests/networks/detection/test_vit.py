"""The video ViT: embedding, order of slots, keyframe maps, token dropout on the way."""

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.networks.detection.vit import EncoderBlock, TubeletEmbedding, VideoViT
from tests.networks.tiny import randomise, vit_of

SIZES = {"dim": 12, "depth": 3, "num_heads": 2, "patch_size": 8, "num_frames": 8, "pretrain_size": 32}


def tiny_vit(**changes) -> VideoViT:
    return randomise(vit_of(SIZES | {"pyramid_layers": (0, 1, 2, 2)} | changes)).eval()


def silenced(vit: VideoViT) -> VideoViT:
    """Blocks that add nothing: tokens stay what the embedding and the position codes made them."""
    with torch.no_grad():
        for block in vit.blocks:
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.zero_()
                layer.bias.zero_()
    return vit


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def some_clips(height=16, width=24):
    return torch.randn(2, 3, 8, height, width, generator=torch.Generator().manual_seed(0))


def test_a_tubelet_is_embedded_by_one_product_with_the_kernel():
    embedding = TubeletEmbedding(5, 8)
    clips = some_clips()
    tokens = embedding(clips)
    assert tokens.shape == (2, 4, 6, 5)
    tubelet = clips[1, :, 4:6, 8:16, 16:24]  # slot 2, row 1, column 2
    expected = (embedding.proj.weight * tubelet).sum((1, 2, 3, 4)) + embedding.proj.bias
    torch.testing.assert_close(tokens[1, 2, 5], expected, rtol=1e-4, atol=1e-5)


def test_the_keyframe_slot_is_the_middle_one_and_leads_the_tokens():
    vit, clips = silenced(tiny_vit()), some_clips()
    encoded = vit(clips)
    slots = vit.patch_embed(clips) + vit.positions(4, 2, 3)
    for tap in encoded.maps:
        torch.testing.assert_close(tap.flatten(2).transpose(1, 2), slots[:, 2], rtol=1e-5, atol=1e-5)
    in_order = torch.cat([slots[:, 2], slots[:, 0], slots[:, 1], slots[:, 3]], dim=1)
    torch.testing.assert_close(encoded.tokens, vit.norm(in_order), rtol=1e-5, atol=1e-5)
    assert encoded.kept.tolist() == [list(range(18))] * 2
    assert encoded.grid == (4, 2, 3)


@pytest.mark.parametrize("key_order", ["position", "as_published"])
def test_kept_tokens_come_from_the_places_reported_unless_as_published(key_order):
    vit, clips = silenced(tiny_vit(keep_rates={0: 0.8, 1: 0.7}, key_order=key_order)), some_clips()
    encoded = vit(clips)
    slots = vit.norm(vit.patch_embed(clips) + vit.positions(4, 2, 3))
    others = torch.cat([slots[:, 0], slots[:, 1], slots[:, 3]], dim=1)
    at_their_places = others.gather(1, encoded.kept[..., None].expand(-1, -1, 12))
    ours = encoded.tokens[:, 6:]
    assert ours.shape[1] == 14 - 6  # 24 tokens -> ceil(19.2) = 20 -> 14
    assert torch.equal(encoded.kept, encoded.kept.sort(dim=1).values)
    same = torch.isclose(ours, at_their_places, atol=1e-4).all(-1)
    assert same.all() if key_order == "position" else not same.all()


def test_what_is_dropped_after_attention_does_not_reach_the_mlp_of_that_block():
    block = randomise(EncoderBlock(12, 2, dropout=tiny_vit(keep_rates={0: 0.6}).blocks[0].dropout))
    tokens, places = torch.randn(1, 10, 12), torch.arange(8)[None]
    left, kept = block(tokens, places)
    plain = randomise(EncoderBlock(12, 2))
    plain.load_state_dict(block.state_dict())
    attended = tokens + plain.attn(plain.norm1(tokens))
    chosen = torch.cat([attended[:, :2], attended[:, 2:][:, kept[0]]], dim=1)
    torch.testing.assert_close(left, chosen + plain.mlp(plain.norm2(chosen)), rtol=1e-4, atol=1e-5)


def test_a_rate_of_one_is_no_dropout():
    vit = tiny_vit(keep_rates={0: 1.0, 1: 1})
    assert all(block.dropout is None for block in vit.blocks)
    assert vit(some_clips()).kept_by_layer == ()


def test_the_pyramid_maps_are_taken_before_the_final_norm_and_in_the_order_named():
    vit, clips = tiny_vit(pyramid_layers=(2, 0, 1, 2)), some_clips()
    maps = vit(clips).maps
    assert torch.equal(maps[0], maps[3]) and not torch.equal(maps[0], maps[1])
    torch.testing.assert_close(vit(clips).tokens[:, :6], vit.norm(maps[0].flatten(2).transpose(1, 2)))


def test_frames_of_the_keyframe_slot_alone_reach_its_embedding():
    vit, clips = silenced(tiny_vit()), some_clips()
    other = clips.clone()
    other[:, :, [0, 1, 2, 3, 6, 7]] = 9.0
    assert torch.equal(vit(other).maps[0], vit(clips).maps[0])
    other = clips.clone()
    other[:, :, 4] += 1.0
    assert not torch.equal(vit(other).maps[0], vit(clips).maps[0])


def test_drop_path_rises_linearly_over_the_blocks_and_is_off_in_eval():
    vit = tiny_vit(drop_path_rate=0.2)
    assert [block.drop_path.drop_prob for block in vit.blocks] == pytest.approx([0.0, 0.1, 0.2])
    assert torch.equal(vit(some_clips()).tokens, vit(some_clips()).tokens)


def test_the_mlp_is_four_times_as_wide_with_exact_gelu():
    block = EncoderBlock(12, 2)
    tokens = torch.randn(1, 4, 12)
    expected = block.mlp.fc2(F.gelu(block.mlp.fc1(tokens), approximate="none"))
    torch.testing.assert_close(block.mlp(tokens), expected)
    assert block.mlp.fc1.weight.shape == (48, 12)
