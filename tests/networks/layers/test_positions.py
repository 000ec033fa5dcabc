"""Position codes against VideoMAE's formula and an explicit bicubic resize."""

import math

import pytest
import torch

from lightning_modules.networks.layers.positions import SpaceTimePositions, sine_table
from tests.networks.detection import slow_evad


def test_the_table_follows_the_formula():
    table = sine_table(1568, 768)
    assert table.shape == (1568, 768) and table.dtype == torch.float32
    for position, channel in [(0, 0), (0, 1), (1, 0), (1567, 3), (1567, 766), (700, 101)]:
        angle = position / 10000 ** (2 * (channel // 2) / 768)
        expected = math.cos(angle) if channel % 2 else math.sin(angle)
        assert table[position, channel].item() == pytest.approx(expected, abs=1e-6)
    expected = torch.from_numpy(slow_evad.sine_table(20, 6))
    torch.testing.assert_close(sine_table(20, 6).double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", [(4, 4), (4, 6), (6, 4), (2, 3), (18, 32)])
def test_codes_of_any_grid_are_the_bicubic_resize_of_each_slot(grid):
    positions = SpaceTimePositions(num_slots=4, grid=4, dim=6)
    expected = torch.from_numpy(slow_evad.position_codes(4, 4, 6, *grid))
    torch.testing.assert_close(positions(4, *grid).double(), expected, rtol=0, atol=1e-5)


def test_codes_at_the_grid_they_were_made_for_are_the_table_itself():
    positions = SpaceTimePositions(2, 3, 8)
    assert torch.equal(positions(2, 3, 3).flatten(0, 1), sine_table(18, 8))


@pytest.mark.parametrize(
    ("num_slots", "slots"), [(8, range(8)), (4, range(2, 6)), (2, [3, 4]), (1, [4]), (3, [3, 4, 5])]
)
def test_a_shorter_clip_takes_the_middle_slots_so_that_its_keyframe_keeps_its_code(num_slots, slots):
    positions = SpaceTimePositions(8, 2, 4)
    codes = positions(num_slots, 2, 2)
    assert torch.equal(codes, positions.slots(torch.tensor(list(slots)), 2, 2))
    assert torch.equal(codes[num_slots // 2], positions(8, 2, 2)[positions.keyframe_slot])


def test_a_longer_clip_is_refused():
    with pytest.raises(ValueError, match="clip has 9 slots but the network was made for 8; set num_frames"):
        SpaceTimePositions(8, 2, 4)(9, 2, 2)


def test_the_table_is_neither_a_parameter_nor_saved():
    positions = SpaceTimePositions(2, 2, 4)
    assert not list(positions.parameters()) and not positions.state_dict()
