"""Causal networks as backbones of windows, and as what gives scores frame by frame.

That they keep to the streaming contract is in test_streaming_contract.py.
"""

import pytest
import torch

from callbacks.measures.flops import count_gflops
from lightning_modules.networks.temporal.backbones.recurrent_features import RecurrentFeatures
from lightning_modules.networks.temporal.backbones.streaming_backbone import StreamingBackbone
from lightning_modules.networks.temporal.backbones.trunk_features import TrunkFeatures
from lightning_modules.networks.temporal.frame_scores import FrameScores
from tests.networks.tiny import STUDENT, randomise, tiny_student, trunk_of

SIZES = {"dim": 8, "depth": 2, "num_heads": 2, "patch_size": 16, "mlp_ratio": 2.0}
ONE_SLOT = {"num_frames": 2, "pretrain_size": 32, "pyramid_layers": ()}


def trunk(temporal: str = "dsta", **changes) -> TrunkFeatures:
    return randomise(TrunkFeatures(trunk_of(temporal, SIZES | ONE_SLOT | changes))).double().eval()


def frames(steps: int = 6, height: int = 32, width: int = 32, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, steps, channels, height, width, dtype=torch.float64, generator=torch.manual_seed(1))


@pytest.fixture(autouse=True)
def no_gradients(request):
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


@pytest.mark.parametrize("temporal", ["tsa", "dsta"])
def test_a_window_has_the_features_that_its_frames_have_one_by_one(temporal):
    backbone, window = StreamingBackbone(trunk(temporal)), frames(6, 48, 32)
    features = backbone(window, torch.ones(2, 6, dtype=torch.bool))
    assert features.shape == (2, backbone.out_channels, 6)
    state, steps = backbone.trunk.initial_state(2, (48, 32), dtype=torch.float64), []
    for step in window.split(1, dim=1):
        feature, state = backbone.trunk(step, state)
        steps.append(feature)
    torch.testing.assert_close(features.mT, torch.cat(steps, dim=1))


def test_what_lies_after_the_end_changes_nothing_before_it():
    backbone, window, mask = StreamingBackbone(trunk()), frames(), torch.ones(2, 6, dtype=torch.bool)
    mask[:, 4:] = False
    before = backbone(window, mask)
    window[:, 4:] = torch.nan
    torch.testing.assert_close(backbone(window, mask)[:, :, :4], before[:, :, :4], rtol=0, atol=0)


@pytest.mark.parametrize("temporal", ["tsa", "dsta"])
def test_the_trunk_has_the_students_parameters_and_makes_its_last_tokens_of_them(temporal):
    student = randomise(tiny_student(temporal, num_frames=2)).double()
    ours = trunk(temporal, **{key: STUDENT[key] for key in SIZES})
    ours.trunk.load_state_dict(student.trunk.state_dict())
    window, taps = frames(5, 64, 64), []
    student.trunk.norm.register_forward_hook(lambda module, inputs, output: taps.append(output))
    student(window, student.initial_state(2, dtype=torch.float64))
    # The student's codes are those of one slot of a grid of its own size.
    ours.trunk.positions = student.trunk.positions
    torch.testing.assert_close(ours(window, ours.state_for(window))[0], taps[0].mean(2))


def test_flow_has_two_channels():
    backbone = StreamingBackbone(trunk(in_channels=2))
    window = frames(channels=2)
    assert backbone.in_channels == 2
    assert backbone(window, torch.ones(2, 6, dtype=torch.bool)).shape == (2, 8, 6)


def test_a_state_for_other_frames_and_frames_that_do_not_divide_are_refused():
    module = trunk()
    state = module.initial_state(2, (32, 64), dtype=torch.float64)
    with pytest.raises(ValueError, match=r"need \(2, 4, 2, 8\)\. .*start anew"):  # as many patches, in other places
        module(frames(height=64), state)
    with pytest.raises(ValueError, match=r"need \(2, 2, 2, 8\)"):
        module(frames(), module.initial_state(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="40 x 32"):
        module(frames(height=40), state)
    with pytest.raises(ValueError, match="pretrain_size=40"):
        trunk("tsa", pretrain_size=40)


def test_scores_are_the_linear_classifiers_of_each_feature():
    network, window = FrameScores(trunk(), num_classes=4).double(), frames()
    logits, _ = network(window, network.state_for(window))
    features, _ = network.trunk(window, network.trunk.state_for(window))
    weight, bias = network.classifier.weight, network.classifier.bias
    torch.testing.assert_close(logits, features @ weight.T + bias)
    assert (network.num_classes, network.in_channels, network.receptive_field) == (4, 3, None)
    assert FrameScores(trunk("tsa"), 3).receptive_field == 4  # two blocks and the embedding look back a frame each


def test_recurrent_features_are_torchs_lstm_over_projected_ones():
    module, features = randomise(RecurrentFeatures(5, dim=6)).double(), torch.randn(2, 9, 5, dtype=torch.float64)
    reference = torch.nn.LSTM(6, 6, batch_first=True).double()
    reference.load_state_dict(module.lstm.state_dict())
    expected, _ = reference(module.projection(features))
    torch.testing.assert_close(module(features, module.state_for(features))[0], expected)


def test_every_parameter_receives_a_gradient_under_bfloat16_and_the_state_stays_in_float32():
    for module, window in (
        (trunk("tsa"), frames()),
        (trunk("dsta"), frames()),
        (randomise(RecurrentFeatures(5, 6)), torch.randn(2, 4, 5)),
    ):
        network, window = FrameScores(module.float(), 3), window.float()
        with torch.autocast("cpu", torch.bfloat16):
            logits, state = network(window, network.state_for(window))
        logits.float().square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        assert {leaf.dtype for leaf in torch.utils._pytree.tree_leaves(state)} <= {torch.float32, torch.bool}


@pytest.mark.parametrize("build", [lambda: trunk("tsa"), lambda: trunk("dsta"), lambda: RecurrentFeatures(5, 6)])
def test_all_operators_of_a_step_are_counted(build):
    network = FrameScores(build().float(), 3)
    step = torch.randn(1, 1, *network.step_shape)
    count = count_gflops(network, step, network.state_for(step))
    assert count.gflops > 0 and not count.uncounted
