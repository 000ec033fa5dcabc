"""Constants are made once, and may take part in anything."""

import torch

from lightning_modules.networks.layers.constants import constant


def test_the_same_numbers_are_the_same_tensor():
    like = torch.zeros(2)
    first = constant((0.5, 2.0), like)
    assert first.tolist() == [0.5, 2.0] and first.dtype == torch.float32
    assert constant((0.5, 2.0), like + 1) is first
    assert constant((0.5, 2.0), like.double()).dtype == torch.float64
    assert constant((3,), like, torch.long).dtype == torch.long


def test_what_inference_made_takes_part_in_training():
    with torch.inference_mode():
        made = constant((1.5, 2.5), torch.zeros(1))
    weight = torch.ones(2, requires_grad=True)
    (weight * made).sum().backward()
    assert weight.grad.tolist() == [1.5, 2.5]
