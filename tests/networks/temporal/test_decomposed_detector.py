"""The RGB student of decomposed distillation."""

import pytest
import torch

from lightning_modules.networks.temporal.decomposed_detector import FUSIONS, DecomposedDetector, without_branch_head
from lightning_modules.networks.weights.loading import load_exactly
from tests.networks.temporal.temporal_parts import MeanColour, StepHead

WINDOW, MASK = torch.randn(2, 6, 3, 4, 4, generator=torch.Generator().manual_seed(1)), torch.ones(2, 6).bool()


def detector(**changes):
    torch.manual_seed(0)
    return DecomposedDetector(4, MeanColour(), StepHead, **({"dim": 8} | changes))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_training_sees_the_joint_outputs_of_inference_and_those_of_both_branches(fusion):
    network = detector(fusion=fusion)
    network.add_branch_head()
    whole, inference = network.branches(WINDOW, MASK), network(WINDOW, MASK)
    torch.testing.assert_close(whole.joint, inference)
    assert whole.motion.features.shape == whole.appearance.features.shape == (2, 8, 6)
    assert not torch.equal(whole.motion.features, whole.appearance.features)
    assert inference.features.shape[1] == network.fusion.out_channels == network.joint_head.in_channels


def test_the_branches_share_the_weights_of_one_head():
    network = detector()
    network.add_branch_head()
    with torch.no_grad():
        network.motion_projection.load_state_dict(network.appearance_projection.state_dict())
    outputs = network.branches(WINDOW, MASK)
    torch.testing.assert_close(outputs.motion, outputs.appearance)


def test_inference_has_no_branch_head_and_the_same_outputs():
    trained, alone = detector(), detector()
    trained.add_branch_head()
    assert alone.branch_head is None and not any(key.startswith("branch_head") for key in alone.state_dict())
    for parameter in trained.parameters():
        torch.nn.init.normal_(parameter)
    load_exactly(alone, without_branch_head(trained.state_dict()))
    torch.testing.assert_close(alone(WINDOW, MASK), trained(WINDOW, MASK))
    with pytest.raises(ValueError, match="no branch head; call add_branch_head"):
        alone.branches(WINDOW, MASK)


def test_a_branch_head_is_made_once_where_the_rest_is():
    network = detector().double()
    network.add_branch_head()
    head = network.branch_head
    network.add_branch_head()
    assert network.branch_head is head and next(head.parameters()).dtype == torch.float64


def test_an_unknown_fusion_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="fusion must be one of attentive, concat, sum, global_attention, got 'mean'"):
        detector(fusion="mean")
