"""Tokens that are kept: by hand, and against a plain selection over whole attention maps."""

import math

import pytest
import torch

from lightning_modules.networks.detection.token_dropout import KeyframeTokenDropout


def test_the_most_attended_tokens_outside_the_keyframe_stay_in_order_of_place():
    """Two keyframe tokens, six others; ceil(0.6 x 8) = 5 stay, so three of the others."""
    tokens = torch.arange(8.0).view(1, 8, 1)
    received = torch.tensor([[0.0, 0, 3, 9, 1, 5, 2, 7]])
    left = KeyframeTokenDropout(0.6)(tokens, received, torch.arange(6)[None])
    assert left.tokens.flatten().tolist() == [0, 1, 3, 5, 7]
    assert left.kept.tolist() == [[1, 3, 5]]


def test_as_published_the_same_tokens_stay_in_order_of_score():
    tokens, received = torch.arange(8.0).view(1, 8, 1), torch.tensor([[0.0, 0, 3, 9, 1, 5, 2, 7]])
    left = KeyframeTokenDropout(0.6, key_order="as_published")(tokens, received, torch.arange(6)[None])
    assert left.tokens.flatten().tolist() == [0, 1, 3, 7, 5]
    assert left.kept.tolist() == [[1, 5, 3]]


def test_keyframe_tokens_survive_dropout_whatever_they_receive():
    tokens, received = torch.randn(2, 12, 3), torch.ones(2, 12)
    received[:, :4] = -1
    left = KeyframeTokenDropout(0.5)(tokens, received, torch.arange(8).expand(2, -1))
    assert torch.equal(left.tokens[:, :4], tokens[:, :4])
    assert left.tokens.shape == (2, 6, 3)


def test_places_are_carried_through_several_layers_and_differ_by_clip():
    dropout, places = KeyframeTokenDropout(0.75), torch.arange(12).expand(2, -1)
    tokens = torch.cat([torch.full((2, 4, 1), -1.0), places[..., None].float()], dim=1)
    for seed in range(3):
        received = torch.rand(2, tokens.shape[1], generator=torch.Generator().manual_seed(seed))
        tokens, places = dropout(tokens, received, places)
        assert torch.equal(tokens[:, 4:, 0].long(), places), "each token's value is the place it came from"
    assert tokens.shape[1] == math.ceil(0.75 * math.ceil(0.75 * math.ceil(0.75 * 16)))
    assert places[0].tolist() != places[1].tolist()


@pytest.mark.parametrize(
    ("keep_rate", "tokens", "keyframe", "kept"),
    [
        (0.7, 2592, 324, 1815 - 324),  # the published counts at 288 x 288
        (0.7, 1815, 324, 1271 - 324),
        (0.7, 1271, 324, 890 - 324),
        (0.6, 2592, 324, 1556 - 324),
        (0.5, 16, 8, 0),  # the keyframe alone is left
        (0.51, 100, 10, 41),
        (0.7, 10, 2, 5),  # 0.7 x 10 is 7 exactly, also in floating point
    ],
)
def test_the_share_kept_counts_all_tokens_and_rounds_up(keep_rate, tokens, keyframe, kept):
    assert KeyframeTokenDropout(keep_rate).num_kept(tokens, keyframe) == kept


def test_keeping_less_than_the_keyframe_is_refused():
    with pytest.raises(ValueError, match=r"keep_rate=0.4 of 16 tokens is less than the keyframe's 8; raise the"):
        KeyframeTokenDropout(0.4).num_kept(16, 8)


@pytest.mark.parametrize("keep_rate", [0.0, 1.0, -0.5, 1.5])
def test_a_rate_that_is_no_share_is_refused(keep_rate):
    with pytest.raises(ValueError, match="leave the layer out for 1"):
        KeyframeTokenDropout(keep_rate)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_an_enhanced_weight_that_is_no_weight_is_refused(weight):
    with pytest.raises(ValueError, match=f"enhanced_weight must be a number of at least 0, got {weight}"):
        KeyframeTokenDropout(0.5, enhanced_weight=weight)


def test_keyframe_queries_count_as_often_as_they_are_said_to():
    weights = KeyframeTokenDropout(0.5, enhanced_weight=4.0).query_weights(5, 2, torch.device("cpu"))
    assert weights.tolist() == [4, 4, 1, 1, 1]
