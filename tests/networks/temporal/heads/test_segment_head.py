"""Heads that start from trained ones."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from lightning_modules.networks.temporal.heads.anchor_free_head import AnchorFreeHead
from lightning_modules.networks.temporal.heads.boundary_matching_head import BoundaryMatchingHead, CellMap
from lightning_modules.networks.temporal.heads.segment_head import start_head_from
from lightning_modules.networks.temporal.heads.segment_pyramid import PyramidSize

HEADS = {
    "anchor_free": lambda channels, dim=16: AnchorFreeHead(channels, 3, PyramidSize(dim, num_levels=2)),
    "boundary": lambda channels, dim=16: BoundaryMatchingHead(channels, 3, dim, CellMap(max_duration=6, dim=8)),
}


@pytest.fixture(params=HEADS)
def make(request):
    return HEADS[request.param]


def test_a_head_for_more_channels_sees_through_the_first_what_the_trained_one_sees(make):
    trained, head = make(8).eval(), make(20).eval()
    start_head_from(head, trained)
    features, mask = torch.randn(2, 20, 12), torch.ones(2, 12, dtype=torch.bool)
    found, expected = tree_leaves(head(features, mask)), tree_leaves(trained(features[:, :8], mask))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    head.train()
    sum(leaf.sum() for leaf in tree_leaves(head(features, mask)) if leaf.requires_grad).backward()
    assert any(p.grad is not None and p.grad.any() for p in head.parameters())


def test_a_head_of_other_arguments_is_refused_by_the_name_of_what_differs(make):
    with pytest.raises(
        ValueError, match=r"has the shape .*, in the trained head .*; give both heads the same arguments"
    ):
        start_head_from(make(8, dim=32), make(8))
    with pytest.raises(ValueError, match="has the shape"):
        start_head_from(make(8), make(20))
