"""Temporal shift in image models: what moves where, and that nothing crosses the ends of videos."""

import copy

import pytest
import timm
import torch

from callbacks.measures.flops import count_gflops
from lightning_modules.networks.temporal.backbones.shifted_image_backbone import FrameShift, ShiftedImageBackbone
from tests.networks.tiny import randomise

MODELS = {
    "test_resnet": {},  # basic blocks and bottlenecks
    "mobilenetv3_small_050": {},  # inverted residuals
    "mobilenet_edgetpu_v2_xs": {},  # and their fused form
    "test_convnext": {},
    "test_vit": {"img_size": 32},
    "test_vit3": {"img_size": 32},  # with register tokens
}


def build(name: str = "test_resnet", **changes) -> ShiftedImageBackbone:
    torch.manual_seed(0)
    return randomise(ShiftedImageBackbone(name, model_args=MODELS[name], **changes)).double().eval()


def window(batch: int = 2, steps: int = 6, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    frames = torch.randn(batch, steps, channels, 32, 32, dtype=torch.float64, generator=torch.manual_seed(1))
    return frames, torch.ones(batch, steps, dtype=torch.bool)


@pytest.fixture(autouse=True)
def no_gradients(request):
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


# --- the shift itself ------------------------------------------------------------------------------------------------


def test_one_part_comes_from_the_frame_before_and_one_from_the_frame_after():
    shift = FrameShift(fold_div=4, causal=False)
    shift.follows = torch.tensor([False, True, True, False, True])  # two windows: of three frames, and of two
    frames = torch.tensor([[10 * t + c for c in range(8)] for t in range(1, 6)]).float()[:, :, None, None]
    assert shift(frames).flatten(1).tolist() == [
        [0, 0, 22, 23, 14, 15, 16, 17],
        [10, 11, 32, 33, 24, 25, 26, 27],
        [20, 21, 0, 0, 34, 35, 36, 37],
        [0, 0, 52, 53, 44, 45, 46, 47],
        [40, 41, 0, 0, 54, 55, 56, 57],
    ]


def test_the_causal_shift_leaves_the_part_of_the_frame_after_in_place():
    shift = FrameShift(fold_div=4, causal=True)
    shift.follows = torch.tensor([False, True, True])
    frames = torch.tensor([[10 * t + c for c in range(4)] for t in range(1, 4)]).float()[:, :, None, None]
    assert shift(frames).flatten(1).tolist() == [[0, 11, 12, 13], [10, 21, 22, 23], [20, 31, 32, 33]]


def test_of_tokens_the_patches_are_shifted_and_the_class_token_stays():
    shift = FrameShift(fold_div=4, causal=False, num_prefix_tokens=1)
    shift.follows = torch.tensor([False, True])
    tokens = torch.randn(2, 5, 8)
    shifted = shift(tokens)
    assert torch.equal(shifted[:, 0], tokens[:, 0])
    assert torch.equal(shifted[1, 1:, :2], tokens[0, 1:, :2]) and not shifted[0, 1:, :2].any()
    assert torch.equal(shifted[0, 1:, 2:4], tokens[1, 1:, 2:4]) and not shifted[1, 1:, 2:4].any()
    assert torch.equal(shifted[:, 1:, 4:], tokens[:, 1:, 4:])


def test_nothing_of_another_window_is_shifted_in_not_even_nan():
    shift = FrameShift(fold_div=4, causal=False)
    shift.follows = torch.tensor([False, False])
    frames = torch.randn(2, 8, 1, 1)
    frames[1] = torch.nan
    assert not shift(frames)[0].isnan().any()


# --- in a model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_without_shift_a_frame_gets_what_the_image_model_makes_of_it(name):
    backbone, (frames, mask) = build(name, temporal_shift=False), window()
    model = timm.create_model(name, num_classes=0, **MODELS[name]).double().eval()
    model.load_state_dict(backbone.model.state_dict())
    if "vit" in name:
        expected = model.forward_features(frames[0])[:, model.num_prefix_tokens :].mean(1)
        expected = model.fc_norm(expected)
    else:
        expected = model(frames[0])
    features = backbone(frames, mask)
    assert features.shape == (2, backbone.out_channels, 6)
    torch.testing.assert_close(features[0].T, expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("causal", [False, True])
def test_frames_see_their_neighbours_and_a_causal_backbone_the_past_alone(name, causal):
    backbone, (frames, mask) = build(name, causal=causal), window()
    before = backbone(frames, mask)
    other = frames.clone()
    other[:, 3] = torch.randn_like(other[:, 3])
    changed = (backbone(other, mask) - before).abs().amax((0, 1)) > 1e-9
    assert changed[3] and changed[4]
    assert changed[2] == (not causal)
    if causal:
        assert not changed[:3].any()


def test_the_first_layers_of_both_kinds_of_residual_block_read_shifted_frames():
    backbone = build()
    blocks = [block for layer in (1, 2, 3, 4) for block in getattr(backbone.model, f"layer{layer}")]
    assert {type(block).__name__ for block in blocks} == {"BasicBlock", "Bottleneck"}
    frames, mask = window(batch=1)
    read, given = {}, {}
    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda _, inputs, n=number: given.update({n: inputs[0].clone()}))
        block.conv1.register_forward_pre_hook(lambda _, inputs, n=number: read.update({n: inputs[0]}))
    backbone(frames, mask)
    for number in range(len(blocks)):
        fold = given[number].shape[1] // 8
        torch.testing.assert_close(read[number][1:, :fold], given[number][:-1, :fold])
        torch.testing.assert_close(read[number][:-1, fold : 2 * fold], given[number][1:, fold : 2 * fold])
        torch.testing.assert_close(read[number][:, 2 * fold :], given[number][:, 2 * fold :])


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_frames_after_the_end_change_nothing_even_in_training(name):
    backbone, (frames, mask) = build(name).train(), window()
    mask[0, 4:] = False
    statistics = copy.deepcopy(backbone.state_dict())
    features = backbone(frames, mask)
    after = copy.deepcopy(backbone.state_dict())
    backbone.load_state_dict(statistics)
    frames[0, 4:] = torch.nan
    torch.testing.assert_close(backbone(frames, mask), features, rtol=0, atol=0)
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, after[key]), key  # running averages of batch norm


def test_a_short_video_has_the_features_it_has_in_a_window_of_its_own():
    backbone, (frames, mask) = build(), window()
    mask[0, 4:] = False
    torch.testing.assert_close(backbone(frames, mask)[:1, :, :4], backbone(frames[:1, :4], mask[:1, :4]))


def test_windows_of_a_batch_do_not_see_each_other():
    backbone, (frames, mask) = build(), window()
    torch.testing.assert_close(backbone(frames, mask)[1:], backbone(frames[1:], mask[1:]))


def test_a_stride_averages_the_features_of_the_frames_that_are_there():
    one, two, (frames, mask) = build(), build(step_stride=2), window()
    mask[0, 3:] = False
    fine, coarse = one(frames, mask), two(frames, mask)
    assert coarse.shape == (2, one.out_channels, 3)
    torch.testing.assert_close(coarse[1], fine[1].unflatten(1, (3, 2)).mean(2))
    torch.testing.assert_close(coarse[0, :, 1], fine[0, :, 2])


def test_flow_has_two_channels():
    backbone = build(in_channels=2)
    frames, mask = window(channels=2)
    assert backbone(frames, mask).shape == (2, backbone.out_channels, 6)


def test_weights_of_a_classifier_are_read_from_a_file_and_fitted_to_the_channels(tmp_path):
    torch.manual_seed(3)
    classifier = timm.create_model("test_resnet")
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    backbone = ShiftedImageBackbone("test_resnet", pretrained=tmp_path / "weights.pth")
    for key, value in backbone.model.state_dict().items():
        assert torch.equal(value, classifier.state_dict()[key]), key
    flow = ShiftedImageBackbone("test_resnet", in_channels=2, pretrained=tmp_path / "weights.pth")
    first, original = flow.model.conv1[0].weight, classifier.conv1[0].weight
    assert first.shape[1] == 2
    torch.testing.assert_close(first, original[:, :2] * 1.5)  # so that like inputs give like outputs


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_every_parameter_receives_a_gradient_under_bfloat16(name):
    backbone = ShiftedImageBackbone(name, model_args=MODELS[name]).train()
    frames, mask = window()
    mask[1, 5:] = False
    with torch.autocast("cpu", torch.bfloat16):
        features = randomise(backbone)(frames.float(), mask)
    features.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


def test_a_copy_shifts_by_its_own_mask():
    backbone, (frames, mask) = build(), window()
    twin = copy.deepcopy(backbone)
    before = twin(frames, mask)
    backbone(frames[:1], mask[:1])
    torch.testing.assert_close(twin(frames, mask), before, rtol=0, atol=0)
    assert twin.model.layer1[0].conv1._forward_pre_hooks != backbone.model.layer1[0].conv1._forward_pre_hooks


def test_the_shift_costs_no_operation_that_counts():
    frames, mask = window(batch=1)
    shifted, plain = (count_gflops(build(temporal_shift=on), frames, mask) for on in (True, False))
    assert shifted.gflops == plain.gflops > 0
    assert not shifted.uncounted


def test_a_model_without_a_known_block_is_refused():
    with pytest.raises(ValueError, match=r"no residual block of test_mambaout is known .*temporal_shift=false"):
        ShiftedImageBackbone("test_mambaout")


@pytest.mark.parametrize(
    ("changes", "message"), [({"fold_div": 1}, "fold_div must be at least 2"), ({"step_stride": 0}, "step_stride")]
)
def test_impossible_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ShiftedImageBackbone("test_resnet", **changes)


def test_too_few_channels_to_shift_are_refused():
    with pytest.raises(ValueError, match="32 channels are too few for fold_div=64"):
        build(fold_div=64)(*window())
