"""Starting from VideoMAE: every name of its files by hand, against every parameter of the network."""

import argparse
import logging
import math
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from datamodules.errors import UserError
from lightning_modules.clip_detection import ClipDetectionModule
from lightning_modules.networks.detection.vit import VideoViT
from lightning_modules.networks.layers.positions import sine_table
from lightning_modules.networks.layers.trunk_size import TrunkSize
from lightning_modules.networks.weights.loading import save_weights
from lightning_modules.networks.weights.videomae import PretrainedReport, load_videomae
from tests.networks.tiny import CONFIG, student_of, tiny_teacher

# Sizes of the tiny teacher: 4 slots of 4 x 4 patches, five blocks of width 24, two decoder blocks of width 12.
DIM, DEPTH, HEADS, PATCH, ROWS = 24, 5, 3, 16, 64
DECODER_DIM, DECODER_DEPTH = 12, 2


def drawn(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def block_as_published(prefix: str, draw, dim: int, hidden: int) -> dict[str, Tensor]:
    return {
        f"{prefix}norm1.weight": draw(dim),
        f"{prefix}norm1.bias": draw(dim),
        f"{prefix}attn.q_bias": draw(dim),
        f"{prefix}attn.v_bias": draw(dim),
        f"{prefix}attn.qkv.weight": draw(3 * dim, dim),
        f"{prefix}attn.proj.weight": draw(dim, dim),
        f"{prefix}attn.proj.bias": draw(dim),
        f"{prefix}norm2.weight": draw(dim),
        f"{prefix}norm2.bias": draw(dim),
        f"{prefix}mlp.fc1.weight": draw(hidden, dim),
        f"{prefix}mlp.fc1.bias": draw(hidden),
        f"{prefix}mlp.fc2.weight": draw(dim, hidden),
        f"{prefix}mlp.fc2.bias": draw(dim),
    }


def encoder_as_published(
    prefix: str, draw, dim: int = DIM, depth: int = DEPTH, patch: int = PATCH, hidden: int | None = None
) -> dict[str, Tensor]:
    weights = {
        f"{prefix}patch_embed.proj.weight": draw(dim, 3, 2, patch, patch),
        f"{prefix}patch_embed.proj.bias": draw(dim),
    }
    for number in range(depth):
        weights |= block_as_published(f"{prefix}blocks.{number}.", draw, dim, hidden or 4 * dim)
    return weights


def pretraining(
    seed: int = 1, decoder_dim: int = DECODER_DIM, decoder_depth: int = DECODER_DEPTH, **sizes: int
) -> dict[str, Tensor]:
    """A pre-training checkpoint of VideoMAE (and V2)."""
    draw = drawn(seed)
    weights = {"mask_token": draw(1, 1, decoder_dim)}
    weights |= encoder_as_published("encoder.", draw, **sizes)
    dim = len(weights["encoder.patch_embed.proj.bias"])
    weights |= {"encoder.norm.weight": draw(dim), "encoder.norm.bias": draw(dim)}
    for number in range(decoder_depth):
        weights |= block_as_published(f"decoder.blocks.{number}.", draw, decoder_dim, 4 * decoder_dim)
    return weights | {
        "decoder.norm.weight": draw(decoder_dim),
        "decoder.norm.bias": draw(decoder_dim),
        "decoder.head.weight": draw(1536, decoder_dim),
        "decoder.head.bias": draw(1536),
        "encoder_to_decoder.weight": draw(decoder_dim, dim),
    }


def fine_tuned(norm: str = "fc_norm", **sizes: int) -> dict[str, Tensor]:
    """A classifier of VideoMAE (and V2); it has ``norm`` where it was trained without mean pooling."""
    draw = drawn(2)
    weights = encoder_as_published("", draw, **sizes)
    dim = len(weights["patch_embed.proj.bias"])
    return weights | {
        f"{norm}.weight": draw(dim),
        f"{norm}.bias": draw(dim),
        "head.weight": draw(400, dim),
        "head.bias": draw(400),
    }


def layer_of_transformers(prefix: str, draw, dim: int, newer: bool) -> dict[str, Tensor]:
    attention = f"{prefix}attention.attention."
    biases = ("query.bias", "key.bias", "value.bias") if newer else ("q_bias", "v_bias")
    return {
        **{f"{attention}{part}.weight": draw(dim, dim) for part in ("query", "key", "value")},
        **{f"{attention}{bias}": draw(dim) for bias in biases},
        f"{prefix}attention.output.dense.weight": draw(dim, dim),
        f"{prefix}attention.output.dense.bias": draw(dim),
        f"{prefix}intermediate.dense.weight": draw(4 * dim, dim),
        f"{prefix}intermediate.dense.bias": draw(4 * dim),
        f"{prefix}output.dense.weight": draw(dim, 4 * dim),
        f"{prefix}output.dense.bias": draw(dim),
        f"{prefix}layernorm_before.weight": draw(dim),
        f"{prefix}layernorm_before.bias": draw(dim),
        f"{prefix}layernorm_after.weight": draw(dim),
        f"{prefix}layernorm_after.bias": draw(dim),
    }


def transformers_encoder(prefix: str, draw, newer: bool) -> dict[str, Tensor]:
    weights = {
        f"{prefix}embeddings.patch_embeddings.projection.weight": draw(DIM, 3, 2, PATCH, PATCH),
        f"{prefix}embeddings.patch_embeddings.projection.bias": draw(DIM),
    }
    for number in range(DEPTH):
        weights |= layer_of_transformers(f"{prefix}encoder.layer.{number}.", draw, DIM, newer)
    return weights


def transformers_pretraining(newer: bool = False) -> dict[str, Tensor]:
    """``VideoMAEForPreTraining``; newer versions of transformers have a bias in every projection."""
    draw = drawn(3)
    weights = transformers_encoder("videomae.", draw, newer)
    weights |= {"videomae.layernorm.weight": draw(DIM), "videomae.layernorm.bias": draw(DIM)}
    for number in range(DECODER_DEPTH):
        weights |= layer_of_transformers(f"decoder.decoder_layers.{number}.", draw, DECODER_DIM, newer)
    return weights | {
        "decoder.norm.weight": draw(DECODER_DIM),
        "decoder.norm.bias": draw(DECODER_DIM),
        "decoder.head.weight": draw(1536, DECODER_DIM),
        "decoder.head.bias": draw(1536),
        "encoder_to_decoder.weight": draw(DECODER_DIM, DIM),
        "mask_token": draw(1, 1, DECODER_DIM),
    }


def transformers_classifier(newer: bool = False) -> dict[str, Tensor]:
    """``VideoMAEForVideoClassification``."""
    draw = drawn(4)
    return transformers_encoder("videomae.", draw, newer) | {
        "fc_norm.weight": draw(DIM),
        "fc_norm.bias": draw(DIM),
        "classifier.weight": draw(400, DIM),
        "classifier.bias": draw(400),
    }


def same(given: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(given, expected, rtol=0, atol=0)


def assert_block_is(block: torch.nn.Module, weights: dict[str, Tensor], prefix: str) -> None:
    """Every parameter of a block against names as published, an action head of it aside."""
    parameters = {n: p for n, p in block.named_parameters() if not n.startswith(("act_module", "action_logits"))}
    assert len(parameters) == 13
    for name, parameter in parameters.items():
        same(parameter.data, weights[prefix + name])


def assert_layer_is(block: torch.nn.Module, weights: dict[str, Tensor], prefix: str, newer: bool) -> None:
    """The same against names as transformers has them."""
    attention = f"{prefix}attention.attention."
    query, key, value = block.attn.qkv.weight.data.chunk(3)
    expected = {
        f"{attention}query.weight": query,
        f"{attention}key.weight": key,
        f"{attention}value.weight": value,
        attention + ("query.bias" if newer else "q_bias"): block.attn.q_bias.data,
        attention + ("value.bias" if newer else "v_bias"): block.attn.v_bias.data,
    }
    for theirs, module in (
        ("attention.output.dense", block.attn.proj),
        ("intermediate.dense", block.mlp.fc1),
        ("output.dense", block.mlp.fc2),
        ("layernorm_before", block.norm1),
        ("layernorm_after", block.norm2),
    ):
        expected |= {f"{prefix}{theirs}.weight": module.weight.data, f"{prefix}{theirs}.bias": module.bias.data}
    of_layer = {name for name in weights if name.startswith(prefix)} - {f"{attention}key.bias"}
    assert expected.keys() == of_layer
    for name, parameter in expected.items():
        same(parameter, weights[name])


def values(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_accounts_for_everything(report: PretrainedReport, weights, network, before: dict[str, Tensor]) -> None:
    """Every name of the file is used or left over, and what changed in the network is what is not missing."""
    assert sorted(report.used + report.left_over) == sorted(weights)
    after = network.state_dict()
    assert {name for name in after if torch.equal(after[name], before[name])} == set(report.missing)


@pytest.mark.parametrize("wrapper", ["", "module.", "model.", "backbone.", "module._orig_mod."])
def test_a_pretraining_checkpoint_fills_the_encoder_and_the_decoder_blocks_it_has(wrapper):
    network, weights = tiny_teacher(decoder_depth=3), pretraining()
    before = values(network)
    report = load_videomae(network, {wrapper + key: value for key, value in weights.items()})
    backbone, decoder = network.backbone, network.head.decoder
    same(backbone.patch_embed.proj.weight.data, weights["encoder.patch_embed.proj.weight"])
    same(backbone.patch_embed.proj.bias.data, weights["encoder.patch_embed.proj.bias"])
    for number, block in enumerate(backbone.blocks):
        assert_block_is(block, weights, f"encoder.blocks.{number}.")
    same(backbone.norm.weight.data, weights["encoder.norm.weight"])
    same(backbone.norm.bias.data, weights["encoder.norm.bias"])
    same(decoder.encoder_to_decoder.weight.data, weights["encoder_to_decoder.weight"])
    same(decoder.mask_token.data, weights["mask_token"])
    for number in range(DECODER_DEPTH):
        assert_block_is(decoder.blocks[number], weights, f"decoder.blocks.{number}.")
    assert_accounts_for_everything(report, {wrapper + key for key in weights}, network, before)
    assert report.left_over == tuple(
        wrapper + key
        for key in ("decoder.norm.weight", "decoder.norm.bias", "decoder.head.weight", "decoder.head.bias")
    )
    assert {name for name in report.missing if name.startswith("head.decoder.blocks.2.")} >= {
        "head.decoder.blocks.2.norm1.weight"
    }
    assert report.notes == ("2 of the context decoder's 3 blocks start from the pre-training's",)


def test_decoder_blocks_beyond_the_networks_are_left_over():
    network, weights = tiny_teacher(), pretraining(decoder_depth=4)
    report = load_videomae(network, weights)
    for number in range(2):
        assert_block_is(network.head.decoder.blocks[number], weights, f"decoder.blocks.{number}.")
    beyond = {key for key in weights if key.startswith(("decoder.blocks.2.", "decoder.blocks.3."))}
    assert len(beyond) == 26 and beyond < set(report.left_over)


def test_a_decoder_of_another_width_is_left_over_as_a_whole_and_the_encoder_is_filled():
    network, weights = tiny_teacher(), pretraining(decoder_dim=8)
    before = values(network)
    report = load_videomae(network, weights)
    assert_accounts_for_everything(report, weights, network, before)
    assert_block_is(network.backbone.blocks[4], weights, "encoder.blocks.4.")
    assert set(report.left_over) == {key for key in weights if not key.startswith("encoder.")}
    (note,) = report.notes
    assert re.search(r"left over: decoder\.\S+ is \(8,\) in the file, \(12,\) in the network \(the decoder's dim", note)


def test_a_decoder_with_parameters_that_the_context_decoder_lacks_is_left_over_as_a_whole():
    network, weights = tiny_teacher(), pretraining()
    weights["decoder.blocks.1.gamma_1"] = torch.ones(DECODER_DIM)
    before = values(network.head.decoder)
    report = load_videomae(network, weights)
    assert all(torch.equal(value, before[name]) for name, value in network.head.decoder.state_dict().items())
    assert report.notes == (
        "the pre-training decoder is left over: decoder.blocks.1.gamma_1 has no place in the context decoder",
    )


def test_a_bare_backbone_is_filled_too_and_leaves_the_decoder_over():
    backbone, weights = tiny_teacher().backbone, pretraining()
    report = load_videomae(backbone, weights)
    assert_block_is(backbone.blocks[0], weights, "encoder.blocks.0.")
    assert report.missing == () and report.notes == ()
    assert set(report.left_over) == {key for key in weights if not key.startswith("encoder.")}


def test_the_norm_of_a_classifier_on_mean_pooled_tokens_is_left_over_and_ours_keeps_its_start():
    network, weights = tiny_teacher(), fine_tuned()
    before = values(network)
    report = load_videomae(network, weights)
    for number, block in enumerate(network.backbone.blocks):
        assert_block_is(block, weights, f"blocks.{number}.")
    assert_accounts_for_everything(report, weights, network, before)
    assert report.left_over == ("fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias")
    assert {"backbone.norm.weight", "backbone.norm.bias"} < set(report.missing)
    assert not any(name.startswith(("backbone.blocks", "backbone.patch_embed")) for name in report.missing)
    (note,) = report.notes
    assert note.startswith("norm starts fresh")


def test_the_norm_of_a_classifier_without_mean_pooling_is_used():
    network, weights = tiny_teacher(), fine_tuned("norm")
    report = load_videomae(network, weights)
    same(network.backbone.norm.weight.data, weights["norm.weight"])
    assert report.left_over == ("head.weight", "head.bias") and report.notes == ()


@pytest.mark.parametrize("newer", [False, True], ids=["q_bias", "query.bias"])
def test_names_of_transformers_fill_the_encoder_and_the_decoder(newer):
    network, weights = tiny_teacher(), transformers_pretraining(newer)
    before = values(network)
    report = load_videomae(network, weights)
    patches = "videomae.embeddings.patch_embeddings.projection"
    same(network.backbone.patch_embed.proj.weight.data, weights[f"{patches}.weight"])
    same(network.backbone.patch_embed.proj.bias.data, weights[f"{patches}.bias"])
    for number, block in enumerate(network.backbone.blocks):
        assert_layer_is(block, weights, f"videomae.encoder.layer.{number}.", newer)
    same(network.backbone.norm.weight.data, weights["videomae.layernorm.weight"])
    same(network.backbone.norm.bias.data, weights["videomae.layernorm.bias"])
    for number, block in enumerate(network.head.decoder.blocks):
        assert_layer_is(block, weights, f"decoder.decoder_layers.{number}.", newer)
    same(network.head.decoder.encoder_to_decoder.weight.data, weights["encoder_to_decoder.weight"])
    same(network.head.decoder.mask_token.data, weights["mask_token"])
    assert_accounts_for_everything(report, weights, network, before)
    assert set(report.left_over) == {key for key in weights if key.startswith(("decoder.norm", "decoder.head"))}


@pytest.mark.parametrize("newer", [False, True], ids=["q_bias", "query.bias"])
def test_a_classifier_of_transformers_is_one_too(newer):
    network, weights = tiny_teacher(), transformers_classifier(newer)
    report = load_videomae(network, weights)
    assert_layer_is(network.backbone.blocks[3], weights, "videomae.encoder.layer.3.", newer)
    assert report.left_over == ("fc_norm.weight", "fc_norm.bias", "classifier.weight", "classifier.bias")
    assert report.notes[0].startswith("norm starts fresh")


def test_the_encoder_of_transformers_may_be_saved_on_its_own():
    network = tiny_teacher()
    weights = transformers_encoder("", drawn(5), newer=True) | {"layernorm.weight": torch.ones(DIM)}
    report = load_videomae(network, weights)
    assert_layer_is(network.backbone.blocks[2], weights, "encoder.layer.2.", newer=True)
    assert report.left_over == ()


def slow_layer(tokens: list[list[float]], weights: dict[str, Tensor], prefix: str, num_heads: int) -> list[list[float]]:
    """A layer of transformers on one clip, number by number, from its query, key and value and the bias of each."""

    def linear(row: list[float], name: str) -> list[float]:
        matrix, bias = weights[f"{prefix}{name}.weight"].tolist(), weights[f"{prefix}{name}.bias"].tolist()
        return [sum(w * x for w, x in zip(line, row, strict=True)) + b for line, b in zip(matrix, bias, strict=True)]

    def normed(row: list[float], name: str) -> list[float]:
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in row) / len(row) + 1e-6)
        scale, shift = weights[f"{prefix}{name}.weight"].tolist(), weights[f"{prefix}{name}.bias"].tolist()
        return [(x - mean) / deviation * s + b for x, s, b in zip(row, scale, shift, strict=True)]

    inputs = [normed(row, "layernorm_before") for row in tokens]
    query, key, value = (
        [linear(row, f"attention.attention.{part}") for row in inputs] for part in ("query", "key", "value")
    )
    width = len(tokens[0]) // num_heads
    outputs = []
    for number, row in enumerate(tokens):
        merged: list[float] = []
        for head in range(num_heads):
            own = slice(head * width, (head + 1) * width)
            scores = [sum(a * b for a, b in zip(query[number][own], k[own], strict=True)) / width**0.5 for k in key]
            shares = [math.exp(score - max(scores)) for score in scores]
            total = sum(shares)
            merged += [sum(s / total * v[own][c] for s, v in zip(shares, value, strict=True)) for c in range(width)]
        row = [x + y for x, y in zip(row, linear(merged, "attention.output.dense"), strict=True)]
        hidden = linear(normed(row, "layernorm_after"), "intermediate.dense")
        hidden = [x * (1 + math.erf(x / 2**0.5)) / 2 for x in hidden]
        outputs.append([x + y for x, y in zip(row, linear(hidden, "output.dense"), strict=True)])
    return outputs


def test_a_block_computes_what_the_layer_of_transformers_did_whatever_the_bias_of_its_keys():
    network = tiny_teacher().double()
    weights = {key: 0.3 * value.double() for key, value in transformers_classifier(newer=True).items()}
    assert weights["videomae.encoder.layer.2.attention.attention.key.bias"].abs().max() > 0.3
    load_videomae(network, weights)
    tokens = drawn(6)(1, 7, DIM).double()
    with torch.no_grad():
        outputs, _ = network.backbone.blocks[2](tokens, torch.zeros(1, 0, dtype=torch.int64))
    expected = slow_layer(tokens[0].tolist(), weights, "videomae.encoder.layer.2.", HEADS)
    torch.testing.assert_close(outputs[0], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


def test_biases_that_transformers_lost_are_noted():
    weights = transformers_classifier(newer=True)
    for key, value in weights.items():
        if key.endswith((".query.bias", ".key.bias", ".value.bias")):
            value.zero_()
    report = load_videomae(tiny_teacher(), weights)
    assert any("transformers#48675" in note for note in report.notes)
    weights["videomae.encoder.layer.1.attention.attention.value.bias"][3] = 0.1
    assert not any("48675" in note for note in load_videomae(tiny_teacher(), weights).notes)


@pytest.mark.parametrize("container", ["model", "module", "state_dict", "model_state"])
def test_weights_are_found_in_every_container(container):
    network, weights = tiny_teacher(), fine_tuned()
    load_videomae(network, {"epoch": 800, container: weights, "optimizer": {"state": {}}})
    assert_block_is(network.backbone.blocks[0], weights, "blocks.0.")


def test_a_checkpoint_with_its_command_line_in_it_is_read_and_executes_nothing(tmp_path):
    network, weights = tiny_teacher(), pretraining()
    arguments = argparse.Namespace(model="pretrain_videomae_base_patch16_224", lr=1.5e-4, window_size=(8, 14, 14))
    torch.save({"model": weights, "epoch": 799, "args": arguments, "scaler": {"scale": 2.0**16}}, tmp_path / "mae.pth")
    report = load_videomae(network, tmp_path / "mae.pth")
    assert_block_is(network.backbone.blocks[4], weights, "encoder.blocks.4.")
    assert len(report.used) == len(weights) - 4
    trace = tmp_path / "executed"
    for arguments in (Payload(str(trace)), argparse.Namespace(callback=Payload(str(trace)))):
        torch.save({"model": weights, "args": arguments}, tmp_path / "evil.pth")
        with pytest.raises(ValueError, match=r"evil\.pth holds more than tensors"):
            load_videomae(network, str(tmp_path / "evil.pth"))
    assert not trace.exists()


class Payload:
    """Writes a file where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_namespace_is_allowed_while_videomae_is_read_and_not_after(tmp_path):
    torch.save({"model": fine_tuned(), "args": argparse.Namespace(lr=1)}, tmp_path / "mae.pth")
    load_videomae(tiny_teacher(), tmp_path / "mae.pth")
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_safetensors_are_read(tmp_path):
    network, weights = tiny_teacher(), transformers_pretraining()
    save_file(weights, tmp_path / "model.safetensors")
    load_videomae(network, tmp_path / "model.safetensors")
    assert_layer_is(network.backbone.blocks[1], weights, "videomae.encoder.layer.1.", newer=False)
    (tmp_path / "model.safetensors").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"model\.safetensors is no safetensors file"):
        load_videomae(network, tmp_path / "model.safetensors")


def test_a_file_in_half_precision_fills_a_network_in_single(tmp_path):
    network, weights = tiny_teacher(), {key: value.half() for key, value in fine_tuned().items()}
    torch.save(weights, tmp_path / "half.pth")
    load_videomae(network, tmp_path / "half.pth")
    assert network.backbone.blocks[0].attn.q_bias.dtype == torch.float32
    same(network.backbone.blocks[0].attn.q_bias.data, weights["blocks.0.attn.q_bias"].float())


def test_a_file_that_is_absent_or_not_of_weights_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"absent\.pth"):
        load_videomae(tiny_teacher(), tmp_path / "absent.pth")
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list\.pth holds a list"):
        load_videomae(tiny_teacher(), tmp_path / "list.pth")
    with pytest.raises(ValueError, match="no weights among epoch, lr"):
        load_videomae(tiny_teacher(), {"epoch": 3, "lr": 0.1})


@pytest.mark.parametrize("depth", [4, 6])
def test_another_depth_is_an_error_with_both_numbers_and_nothing_is_loaded(depth):
    network = tiny_teacher()
    before = values(network)
    with pytest.raises(
        ValueError, match=rf"{depth} blocks in the file, 5 in the network\. .* depth={depth}, and"
    ) as error:
        load_videomae(network, pretraining(depth=depth))
    assert "missing" not in str(error.value) and "place" not in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("weights", [pretraining, fine_tuned], ids=["pretraining", "fine_tuned"])
def test_the_error_about_shapes_names_the_arguments_with_which_the_network_fits(weights):
    # The proportions of VideoMAE V2 giant: patches of 14, an MLP of 48 / 11.
    giant = weights(dim=22, depth=3, patch=14, hidden=96)
    with pytest.raises(ValueError) as error:
        load_videomae(tiny_teacher(), giant)
    for part in (
        "3 blocks in the file, 5 in the network",
        "patch_embed.proj.weight: (22, 3, 2, 14, 14) in the file, (24, 3, 2, 16, 16) in the network",
        "blocks.0.norm1.weight: (22,) in the file, (24,) in the network",
    ):
        assert part in str(error.value)
    told = dict(re.findall(r"(dim|patch_size|mlp_ratio|depth)=([0-9.]*\d)", str(error.value)))
    assert len(told) == 4
    told = {name: float(value) if name == "mlp_ratio" else int(value) for name, value in told.items()}
    fitting = VideoViT(TrunkSize(num_heads=2, pyramid_layers=(0, 1, 2, 2), **told))
    load_videomae(fitting, giant)
    assert_block_is(fitting.blocks[2], giant, "encoder.blocks.2." if weights is pretraining else "blocks.2.")


def test_a_parameter_without_a_place_in_the_encoder_is_an_error():
    weights = pretraining()
    weights["encoder.blocks.1.gamma_1"] = torch.ones(DIM)
    with pytest.raises(
        ValueError, match=r"without a place in the network \(1\): encoder\.blocks\.1\.gamma_1.*another arch"
    ):
        load_videomae(tiny_teacher(), weights)


def test_a_parameter_that_the_file_lacks_in_the_encoder_is_an_error():
    weights = pretraining()
    del weights["encoder.blocks.3.mlp.fc2.bias"], weights["encoder.blocks.2.attn.v_bias"]
    with pytest.raises(ValueError, match=r"\(2\): blocks\.2\.attn\.v_bias, blocks\.3\.mlp\.fc2\.bias"):
        load_videomae(tiny_teacher(), weights)


def test_a_file_trained_without_biases_of_queries_and_values_leaves_ours_at_their_start():
    weights = {key: value for key, value in fine_tuned().items() if not key.endswith(("q_bias", "v_bias"))}
    report = load_videomae(tiny_teacher(), weights)
    assert sum(name.startswith("backbone.blocks") for name in report.missing) == 2 * DEPTH


def test_a_projection_of_transformers_without_its_others_is_an_error():
    weights = transformers_classifier()
    del weights["videomae.encoder.layer.0.attention.attention.key.weight"]
    with pytest.raises(
        ValueError, match=r"blocks\.0\.attn\.qkv\.weight.*layer\.0\.attention\.attention\.query\.weight"
    ):
        load_videomae(tiny_teacher(), weights)


def test_a_file_with_nothing_of_the_encoder_is_an_error_that_shows_its_names():
    weights = {"conv1.weight": torch.ones(3), "layer1.0.bn1.weight": torch.ones(2), "norm.weight": torch.ones(DIM)}
    with pytest.raises(ValueError, match=r"nothing of a VideoMAE encoder; its names are conv1\.weight, layer1"):
        load_videomae(tiny_teacher(), weights)


def test_two_weights_for_one_parameter_are_an_error():
    weights = fine_tuned()
    weights["module.patch_embed.proj.bias"] = torch.zeros(DIM)
    with pytest.raises(ValueError, match=r"two weights for patch_embed\.proj\.bias: patch_embed\S+ and module\.patch"):
        load_videomae(tiny_teacher(), weights)


@pytest.mark.parametrize("temporal", ["tsa", "dsta"])
def test_a_streaming_detector_takes_what_a_clip_detector_of_its_sizes_takes(temporal):
    clip, student = tiny_teacher(), student_of(temporal, CONFIG)
    of_clip, of_student = load_videomae(clip, pretraining()), load_videomae(student, pretraining())
    assert of_student.used == of_clip.used and of_student.notes == of_clip.notes
    same(student.trunk.patch_embed.proj.weight, clip.backbone.patch_embed.proj.weight)
    same(student.trunk.blocks[2].attention.attn.qkv.weight, clip.backbone.blocks[2].attn.qkv.weight)
    same(student.trunk.blocks[2].mlp.fc1.weight, clip.backbone.blocks[2].mlp.fc1.weight)
    assert {f"trunk.{name}" for name in student.trunk.new_parameters()} <= set(of_student.missing)


def test_a_network_without_encoder_is_refused():
    with pytest.raises(ValueError, match="Linear has no VideoViT and no StreamingTrunk"):
        load_videomae(torch.nn.Linear(2, 2), pretraining())


@pytest.mark.parametrize("name", ["pos_embed", "encoder.pos_embed", "videomae.embeddings.position_embeddings"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stored_table_of_the_fixed_positions_is_used_in_that_the_network_makes_it_itself(name, dtype):
    network = tiny_teacher()
    report = load_videomae(network, fine_tuned() | {name: sine_table(ROWS, DIM)[None].to(dtype)})
    assert name in report.used
    same(network.backbone.positions.table.view(ROWS, DIM), sine_table(ROWS, DIM))


def test_fixed_positions_of_another_size_are_left_over_with_a_note():
    network = tiny_teacher()
    report = load_videomae(network, fine_tuned() | {"pos_embed": sine_table(2 * ROWS, DIM)[None]})
    assert "pos_embed" in report.left_over
    assert report.notes[0].startswith(
        "pos_embed holds 128 codes of width 24, the network has 64 of width 24 (4 slots of 4 x 4); set num_frames and"
    )


def test_learned_positions_are_an_error_where_the_network_has_fixed_ones():
    table = drawn(7)(1, ROWS, DIM)
    with pytest.raises(ValueError, match=r"pos_embed holds learned positions; set learned_positions=true"):
        load_videomae(tiny_teacher(), fine_tuned() | {"pos_embed": table})
    with pytest.raises(ValueError, match=r"128 codes .* learned; set learned_positions=true, and set num_frames and"):
        load_videomae(tiny_teacher(), fine_tuned() | {"pos_embed": torch.cat([table, table], dim=1)})


@pytest.mark.slow
def test_learned_positions_fill_a_network_that_learns_them():
    network, table = tiny_teacher(learned_positions=True), drawn(7)(1, ROWS, DIM)
    report = load_videomae(network, pretraining() | {"encoder.pos_embed": table})
    assert "encoder.pos_embed" in report.used and "backbone.positions.table" not in report.missing
    # The tokens of the file are ordered slot by slot, row by row.
    codes = network.backbone.positions(4, 4, 4)
    same(codes[2, 1 * 4 + 3].detach(), table[0, 2 * 16 + 1 * 4 + 3])
    network = tiny_teacher(learned_positions=True)
    with pytest.raises(ValueError, match=r"65 codes .* learned"):
        load_videomae(network, pretraining() | {"encoder.pos_embed": drawn(7)(1, ROWS + 1, DIM)})
    assert "backbone.positions.table" in load_videomae(network, pretraining()).missing


def test_the_table_has_a_row_a_part_and_counts_that_add_up():
    network, weights = tiny_teacher(), pretraining()
    report = load_videomae(network, weights)
    header, *lines = str(report).splitlines()
    assert header.split() == ["part", "used", "left", "over", "missing"]
    assert lines.pop().startswith("* 2 of the context decoder's 2 blocks")
    rows = {part: tuple(map(int, counts)) for part, *counts in map(str.split, lines)}
    assert list(rows) == ["patch_embed", "blocks", "norm", "decoder", "pyramid", "localizer"]
    assert rows["patch_embed"] == (2, 0, 0) and rows["norm"] == (2, 0, 0)
    assert rows["blocks"] == (13 * DEPTH, 0, 0)
    assert rows["decoder"][:2] == (13 * DECODER_DEPTH + 2, 4)
    totals = [sum(column) for column in zip(*rows.values(), strict=True)]
    assert totals == [len(report.used), len(report.left_over), len(report.missing)]
    assert totals[0] + totals[1] == len(weights)


def test_a_module_starts_from_videomae_and_says_once_what_it_took(tmp_path, caplog):
    torch.save({"model": pretraining()}, tmp_path / "mae.pth")
    network = tiny_teacher()
    with caplog.at_level(logging.INFO):
        ClipDetectionModule(network, pretrained=str(tmp_path / "mae.pth"))
    assert_block_is(network.backbone.blocks[0], pretraining(), "encoder.blocks.0.")
    (said,) = [record.getMessage() for record in caplog.records if "left over" in record.getMessage()]
    assert said.startswith(str(tmp_path / "mae.pth"))
    assert re.search(r"^blocks +65 +0 +0$", said, re.MULTILINE)


def test_weights_and_pretrained_exclude_each_other(tmp_path):
    network, path = tiny_teacher(), str(tmp_path / "evad.pt")
    save_weights(network.state_dict(), path)
    with pytest.raises(ValueError, match=r"weights=\S+evad\.pt .* pretrained=mae\.pth"):
        ClipDetectionModule(network, weights=path, pretrained="mae.pth")


def test_a_full_size_backbone_on_no_device_has_the_names_and_shapes_of_videomae_b():
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in VideoViT().state_dict().items()}
    assert shapes["patch_embed.proj.weight"] == (768, 3, 2, 16, 16)
    assert shapes.keys() == encoder_as_published("", drawn(0), depth=12).keys() | {"norm.weight", "norm.bias"}
