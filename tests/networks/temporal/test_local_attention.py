"""Local attention against attention with a band of all T x T scores."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.networks.temporal.local_attention import local_attention


def banded(query, key, value, mask, window):
    """The same with the whole matrix, one softmax a row."""
    length = query.shape[2]
    steps = torch.arange(length)
    near = (steps - steps[:, None]).abs() <= window // 2
    allowed = (near & mask[:, None]) | torch.eye(length, dtype=torch.bool)
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    return scores.masked_fill(~allowed[:, None], -torch.inf).softmax(-1) @ value


@pytest.mark.parametrize(("length", "window"), [(1, 19), (7, 3), (64, 19), (65, 19), (200, 19), (200, 1), (150, 101)])
def test_local_attention_is_banded_attention(length, window):
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, length, 4, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, length, generator=generator) < 0.7
    result = local_attention(query, key, value, mask, window)
    torch.testing.assert_close(result, banded(query, key, value, mask, window), rtol=0, atol=1e-12)


def test_cost_is_linear_in_the_length():
    def cost(length: int) -> int:
        # Without values attention is plain products; not every torch counts a CPU's fused one.
        part = torch.empty(1, 1, length, 4, device="meta")
        with FlopCounterMode(display=False) as counter:
            local_attention(part, part, part, torch.ones(1, length, dtype=torch.bool, device="meta"), 19)
        return counter.get_total_flops()

    assert cost(2304) == 9 * cost(256) > 0
