"""Stored features pass through."""

import torch

from lightning_modules.networks.temporal.backbones.stored_features import StoredFeatures


def test_features_change_their_axes_alone():
    backbone, features = StoredFeatures(5), torch.randn(2, 7, 5)
    assert (backbone.in_channels, backbone.out_channels, backbone.step_stride) == (5, 5, 1)
    assert torch.equal(backbone(features, torch.ones(2, 7, dtype=torch.bool)), features.mT)
    assert not list(backbone.parameters())
