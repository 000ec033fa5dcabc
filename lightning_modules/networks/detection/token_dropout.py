"""Keyframe-centric token dropout (EVAD, https://arxiv.org/abs/2304.08451, section 3.2; `EVAD.md`, section 3)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

KeyOrder = Literal["position", "as_published"]


class DroppedTokens(NamedTuple):
    """Outputs of a dropout layer: tokens (B, S + M, C), keyframe first, and the places (B, M) of the M others."""

    tokens: Tensor
    kept: Tensor


class KeyframeTokenDropout(nn.Module):
    """Keep every keyframe token and those others that received most attention.

    ``keep_rate`` counts over all tokens, the S keyframe ones included: ceil(keep_rate * N) stay. A token's score is the
    attention it received, averaged over heads and queries, keyframe queries counted ``enhanced_weight`` times.

    The kept tokens stay in order of their places. ``key_order="as_published"`` leaves them in order of their scores but
    reports their places in ascending order, as the published code does. Later layers then see tokens at wrong places.
    Weights published with that code were trained that way; nothing else should use it.
    """

    def __init__(self, keep_rate: float, enhanced_weight: float = 1.0, key_order: KeyOrder = "position") -> None:
        super().__init__()
        if not 0 < keep_rate < 1:
            raise ValueError(f"keep_rate must be between 0 and 1 (leave the layer out for 1), got {keep_rate}")
        if not 0 <= enhanced_weight < math.inf:
            raise ValueError(f"enhanced_weight must be a number of at least 0, got {enhanced_weight}")
        self.keep_rate = keep_rate
        self.enhanced_weight = enhanced_weight
        self.key_order = key_order

    def query_weights(self, num_tokens: int, num_keyframe_tokens: int, device: torch.device) -> Tensor:
        """(N,): what each query's attention counts in the score."""
        weights = torch.ones(num_tokens, device=device)
        weights[:num_keyframe_tokens] = self.enhanced_weight
        return weights

    def num_kept(self, num_tokens: int, num_keyframe_tokens: int) -> int:
        """Return the number of tokens outside the keyframe that are kept."""
        kept = math.ceil(self.keep_rate * num_tokens) - num_keyframe_tokens
        if kept < 0:
            raise ValueError(
                f"keep_rate={self.keep_rate} of {num_tokens} tokens is less than the keyframe's {num_keyframe_tokens}; "
                "raise the keep rate, drop in fewer layers, or use more frames"
            )
        return kept

    def forward(self, tokens: Tensor, received: Tensor, kept: Tensor) -> DroppedTokens:
        """tokens (B, S + M, C), received (B, S + M) and the M places so far (B, M) -> fewer of each."""
        num_keyframe = tokens.shape[1] - kept.shape[1]
        num_kept = self.num_kept(tokens.shape[1], num_keyframe)
        chosen = received[:, num_keyframe:].topk(num_kept, dim=1).indices
        if self.key_order == "position":
            chosen = chosen.sort(dim=1).values
        gathered = tokens[:, num_keyframe:].gather(1, chosen[..., None].expand(-1, -1, tokens.shape[-1]))
        return DroppedTokens(torch.cat([tokens[:, :num_keyframe], gathered], dim=1), kept.gather(1, chosen))
