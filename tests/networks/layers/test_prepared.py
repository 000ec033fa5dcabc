"""Networks prepared for inference give what they gave before, and forget what they kept when weights change."""

import copy

import pytest
import torch

from lightning_modules.networks.detection.pyramid import KeyframePyramid
from lightning_modules.networks.layers.positions import SpaceTimePositions
from lightning_modules.networks.layers.prepared import Preparable, prepare_for_inference
from tests.networks.tiny import randomise, tiny_student, tiny_teacher


def kept_by(network) -> int:
    return sum(module._kept is not None for module in network.modules() if isinstance(module, Preparable))


@pytest.mark.parametrize("temporal", ["tsa", "dsta"])
@torch.no_grad()
def test_a_prepared_student_gives_what_it_gave_before(temporal):
    student = randomise(tiny_student(temporal, num_actors=3))
    frames, state = torch.randn(2, 4, 3, 64, 96), student.initial_state(2, (64, 96))
    before, state_before = student(frames, state)
    prepare_for_inference(student)
    assert kept_by(student) > 10
    after, state_after = student(frames, state)
    for ours, theirs in zip((*after, *state_after.memory), (*before, *state_before.memory), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_prepared_teacher_gives_what_it_gave_before():
    teacher, clip = tiny_teacher(), torch.randn(2, 3, 8, 64, 96)
    before = teacher(clip)
    prepare_for_inference(teacher)
    for ours, theirs in zip(teacher(clip), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        lambda network: network.train().eval(),
        lambda network: network.load_state_dict(network.state_dict()),
        lambda network: network.double().float(),
        lambda network: copy.deepcopy(network),
    ],
    ids=["trained", "loaded", "moved", "copied"],
)
def test_a_network_whose_weights_may_change_keeps_nothing(change):
    student = tiny_student("dsta")
    prepare_for_inference(student)
    changed = change(student)
    assert kept_by(changed if isinstance(changed, torch.nn.Module) else student) == 0


def test_what_is_kept_is_in_no_checkpoint():
    student = tiny_student("tsa")
    names = set(student.state_dict())
    prepare_for_inference(student)
    assert set(student.state_dict()) == names


def test_a_prepared_pyramid_is_trained_by_its_weights():
    pyramid = randomise(KeyframePyramid(8, 4)).eval()
    prepare_for_inference(pyramid)
    maps = tuple(torch.randn(1, 8, 4, 6) for _ in range(4))
    sum(level.sum() for level in pyramid(maps)).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in pyramid.parameters())


@torch.no_grad()
def test_prepared_positions_fit_every_frame_size_met():
    positions, plain = SpaceTimePositions(4, 4, 8), SpaceTimePositions(4, 4, 8)
    prepare_for_inference(positions)
    for grid in ((4, 4), (4, 6), (2, 2), (4, 6)):
        torch.testing.assert_close(positions(3, *grid), plain(3, *grid), rtol=0, atol=0)
