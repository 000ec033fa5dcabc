"""The stem against timm's own models, and networks above it on pixels and on maps."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor

from datamodules.batches import MapFacts
from datamodules.errors import UserError
from lightning_modules.evaluation.map_stem import check_stem, facts_of
from lightning_modules.networks.detection.evad import EvadTeacher
from lightning_modules.networks.detection.vit import VideoViT
from lightning_modules.networks.layers.pixels import normalise_frames
from lightning_modules.networks.layers.stem import ConvolutionalStem, stem_of
from lightning_modules.networks.layers.trunk_size import TrunkSize
from lightning_modules.networks.students.decomposed_attention import DecomposedAttention
from lightning_modules.networks.students.detector import StreamingDetector
from lightning_modules.networks.students.temporal_shift import TemporalShiftAttention
from lightning_modules.networks.students.trunk import StreamingTrunk
from lightning_modules.networks.weights.student_start import student_from_teacher
from lightning_modules.runtimes.stem import stem_runner
from results.benchmarks.random_weights import randomise
from tests.networks.tiny import STUDENT, by_part, head_of

NAME = "test_efficientnet.r160_in1k"
SIZE = TrunkSize(8, 2, 2, 2.0, patch_size=32, num_frames=8, pretrain_size=64, pyramid_layers=(0, 0, 1, 1))
LITE = "tf_efficientnet_lite0"
LITE_LAYERS = ["_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"]


@pytest.fixture
def stem() -> ConvolutionalStem:
    return randomise(ConvolutionalStem(NAME, stages=(3, 4)), 0).eval()


def pixels(length: int = 8, height: int = 64, width: int = 128) -> Tensor:
    draw = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (2, length, 3, height, width), dtype=torch.uint8, generator=draw)


def stored_maps(stem: ConvolutionalStem, frames: Tensor) -> Tensor:
    with torch.no_grad():
        return stem.maps(normalise_frames(frames).flatten(0, 1)).unflatten(0, frames.shape[:2])


def test_maps_are_timms_features_of_the_same_picture(stem):
    config = timm.get_pretrained_cfg(NAME)
    reference = timm.create_model(NAME).eval()
    own = {name: value for name, value in stem.model.state_dict().items() if name in reference.state_dict()}
    reference.load_state_dict(own, strict=False)
    frames = pixels(1)[:, 0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    with torch.no_grad():
        features = reference.forward_intermediates((frames / 255 - mean) / std, intermediates_only=True)
    fine, coarse = features[3], features[4]
    maps = stored_maps(stem, frames[:, None])[:, 0]
    assert stem.stride == 64 // coarse.shape[-2] == 32 and fine.shape[-1] == 2 * coarse.shape[-1]
    torch.testing.assert_close(maps[:, -coarse.shape[1] :], coarse, rtol=1e-4, atol=1e-4)
    for row in (0, 1):
        for column in (0, 1):
            cells = maps[:, : -coarse.shape[1]][:, 2 * row + column :: 4]
            torch.testing.assert_close(cells, fine[..., row::2, column::2], rtol=1e-4, atol=1e-4)


def test_a_frame_depends_on_no_other_whatever_the_mode(stem):
    frames = normalise_frames(pixels())
    whole = stem.train()(frames)
    assert not stem.model.training
    torch.testing.assert_close(stem(frames[1:, 3:4]), whole[1:, 3:4], rtol=1e-4, atol=1e-4)


def test_frozen_weights_get_no_gradient_and_others_do():
    for frozen in (True, False):
        stem = ConvolutionalStem(NAME, frozen=frozen)
        stem(normalise_frames(pixels(1))).square().sum().backward()
        assert all((value.grad is None) == frozen for value in stem.model.parameters())
        assert stem.norm.weight.grad is not None


def teacher(stem: ConvolutionalStem | None) -> EvadTeacher:
    return randomise(EvadTeacher(3, VideoViT(SIZE, stem=stem), head_of(by_part(STUDENT))), 1).eval()


def student(attention: type, stem: ConvolutionalStem | None) -> StreamingDetector:
    return StreamingDetector(3, StreamingTrunk(SIZE, attention, stem=stem), head_of(by_part(STUDENT))).eval()


def test_a_clip_of_maps_gives_what_its_pixels_give(stem):
    network, frames = teacher(stem), pixels()
    maps = stored_maps(network.backbone.stem, frames)
    with torch.no_grad():
        ours = network(normalise_frames(maps).transpose(1, 2))
        theirs = network(normalise_frames(frames).transpose(1, 2))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("attention", [TemporalShiftAttention, DecomposedAttention])
def test_a_student_takes_its_teachers_stem_and_any_split_of_a_stream_gives_the_same(stem, attention):
    taught, network, frames = teacher(stem), student(attention, ConvolutionalStem(NAME)), pixels()
    student_from_teacher(network, taught.state_dict())
    assert network.trunk.stem.fingerprint() == taught.backbone.stem.fingerprint()
    maps, normalised = stored_maps(network.trunk.stem, frames), normalise_frames(frames)
    assert network.pixel_size(maps) == network.pixel_size(frames) == (64, 128)
    with torch.no_grad():
        whole, _ = network(normalised, network.initial_state(2, (64, 128)))
        state, parts = network.initial_state(2, (64, 128)), []
        for piece in (normalised[:, :1], normalise_frames(maps)[:, 1:6], normalised[:, 6:]):  # pixels and maps mixed
            found, state = network(piece, state)
            parts.append(found)
    for one, *others in zip(whole, *parts, strict=True):
        torch.testing.assert_close(torch.cat(others, dim=1), one, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_both_runtimes_make_the_maps_that_the_network_makes(stem):
    frames = pixels(3)[0]
    frames[..., 48:, :] = 0
    expected = stem.maps(normalise_frames(frames[None], torch.tensor([[48, 128]]))[0]).detach()
    pytest.importorskip("openvino")
    for runtime in ("torch", "openvino"):
        maps = torch.from_numpy(stem_runner(stem, runtime, num_threads=1)(frames.numpy(), (48, 128)))
        torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-3)


def test_data_of_another_stem_is_refused(stem):
    class Data:
        maps: MapFacts | None = None

    network, data = teacher(stem), Data()
    check_stem(teacher(None), data)
    data.maps = facts_of(stem_of(network))
    check_stem(network, data)
    with pytest.raises(UserError, match="the network has none"):
        check_stem(teacher(None), data)
    with torch.no_grad():
        next(network.backbone.stem.model.parameters()).mul_(1.5)
    with pytest.raises(UserError, match=f"holds maps of {NAME} {data.maps.stem}, the network's stem is"):
        check_stem(network, data)


def test_half_precision_changes_no_fingerprint(stem):
    before = stem.fingerprint()
    stem.load_state_dict({name: value.half().to(value.dtype) for name, value in stem.state_dict().items()})
    assert stem.fingerprint() == before


def in_the_names_of_the_package(tensors: dict[str, Tensor], blocks: dict[str, list[str]]) -> dict[str, Tensor]:
    """Weights of EfficientNet-Lite0 as efficientnet-lite-pytorch names them, layer by layer in their order."""
    outside = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    renamed = {}
    for key, value in tensors.items():
        layer, _, part = key.rpartition(".")
        block, _, inner = layer.rpartition(".")
        if block in blocks:
            names = LITE_LAYERS[-len(blocks[block]) :]
            layer = f"_blocks.{list(blocks).index(block)}.{names[blocks[block].index(inner)]}"
        renamed[f"{outside.get(layer, layer)}.{part}"] = value
    return renamed


def test_files_of_timm_and_of_the_package_are_read(tmp_path):
    model = randomise(timm.create_model(LITE), 2)
    blocks = {
        name: [inner for inner, layer in block.named_children() if list(layer.parameters())]
        for name, block in model.named_modules()
        if name.count(".") == 2 and hasattr(block, "conv_dw")
    }
    tensors = model.state_dict()
    torch.save({"state_dict": tensors}, tmp_path / "timm.pth")
    torch.save(in_the_names_of_the_package(tensors, blocks), tmp_path / "package.pth")
    prints = {ConvolutionalStem(LITE, weights=str(tmp_path / f"{of}.pth")).fingerprint() for of in ("timm", "package")}
    assert len(prints) == 1 and ConvolutionalStem(LITE).fingerprint() not in prints
    del tensors["conv_stem.weight"]
    torch.save(tensors | {"more": torch.zeros(2)}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"missing \(1\): conv_stem\.weight; left over \(1\): more"):
        ConvolutionalStem(LITE, weights=str(tmp_path / "odd.pth"))


def test_what_cannot_be_a_stem_is_refused(stem):
    with pytest.raises(ValueError, match="timm has no model called resnet_of_mine"):
        ConvolutionalStem("resnet_of_mine")
    with pytest.raises(ValueError, match=r"has no features of stages=\[7\]"):
        ConvolutionalStem(NAME, stages=(7,))
    with pytest.raises(ValueError, match="patch_size=16 is no multiple of 32"):
        VideoViT(TrunkSize(8, 2, 2, pyramid_layers=(0, 0, 1, 1)), stem=stem)
    with pytest.raises(ValueError, match="frames of 40 x 128 do not divide into cells of stride 32"):
        stem(normalise_frames(pixels(1)[..., :40, :]))
