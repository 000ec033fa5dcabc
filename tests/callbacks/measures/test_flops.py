"""Counts against arithmetic, and once against torch's own counter on the meta device."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import roi_align

from callbacks.measures.flops import FlopCount, count_gflops, einsum_multiply_adds


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def count(module: nn.Module | Callable, *inputs) -> FlopCount:
    return count_gflops(module if isinstance(module, nn.Module) else Function(module), *inputs)


def multiply_adds(module: nn.Module | Callable, *inputs) -> int:
    result = count(module, *inputs)
    assert result.uncounted == ()
    assert result.gflops == pytest.approx(sum(result.by_operator.values()))
    return round(result.gflops * 1e9)


QUERY, KEY, VALUE = torch.rand(2, 3, 64, 32), torch.rand(2, 3, 48, 32), torch.rand(2, 3, 48, 16)


@pytest.mark.parametrize(
    ("module", "shapes", "expected"),
    [
        (nn.Linear(16, 32), [(8, 16)], 8 * 16 * 32),
        (nn.Conv3d(3, 8, (2, 4, 4), stride=(2, 4, 4)), [(1, 3, 8, 16, 16)], 4 * 4 * 4 * 8 * 3 * 2 * 4 * 4),
        (nn.Conv1d(16, 16, 3, groups=16), [(1, 16, 32)], 16 * 3 * 30),
        (nn.LSTM(32, 64, batch_first=True), [(4, 10, 32)], 40 * 4 * 64 * (32 + 64)),
        (
            nn.LSTM(32, 64, num_layers=2, bidirectional=True),
            [(10, 4, 32)],
            40 * 2 * 4 * 64 * ((32 + 64) + (128 + 64)),
        ),
        (nn.LSTM(32, 64, proj_size=8), [(10, 4, 32)], 40 * (4 * 64 * (32 + 8) + 8 * 64)),
        (nn.LSTM(32, 64), [(10, 32)], 10 * 4 * 64 * (32 + 64)),
        (nn.LSTMCell(32, 64), [(4, 32)], 4 * 4 * 64 * (32 + 64)),
        (nn.GRU(32, 64), [(10, 4, 32)], 40 * 3 * 64 * (32 + 64)),
        (nn.RNN(32, 64), [(10, 4, 32)], 40 * 64 * (32 + 64)),
        (nn.LayerNorm(96), [(128, 96)], 128 * 96 * 5),
        (nn.BatchNorm2d(4), [(2, 4, 5, 5)], 200 * 2),
        (torch.matmul, [(5, 7), (7, 9)], 5 * 7 * 9),
        (torch.matmul, [(5, 7), (3, 7, 9)], 3 * 5 * 7 * 9),
        (torch.matmul, [(2, 1, 5, 7), (3, 7, 9)], 2 * 3 * 5 * 7 * 9),
        (torch.matmul, [(3, 5, 7), (7,)], 3 * 5 * 7),
        (torch.matmul, [(7,), (7,)], 7),
        (torch.mm, [(5, 7), (7, 9)], 5 * 7 * 9),
        (torch.bmm, [(3, 5, 7), (3, 7, 9)], 3 * 5 * 7 * 9),
        (torch.baddbmm, [(5, 9), (3, 5, 7), (3, 7, 9)], 3 * 5 * 7 * 9),
        (torch.addbmm, [(5, 9), (3, 5, 7), (3, 7, 9)], 3 * 5 * 7 * 9),
        (lambda a, b: torch.tensordot(a, b, dims=([1, 2], [0, 1])), [(4, 5, 6), (5, 6, 7)], 4 * 5 * 6 * 7),
        (lambda a, b: torch.einsum("bhnd, bhmd -> bhnm", a, b), [(2, 3, 64, 32), (2, 3, 64, 32)], 786_432),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), [(1, 2, 4, 4)], 2 * 8 * 8 * 4),
    ],
)
def test_counts_agree_with_arithmetic(module, shapes, expected):
    assert multiply_adds(module, *(torch.rand(shape) for shape in shapes)) == expected


@pytest.mark.parametrize("options", [{}, {"attn_mask": torch.zeros(64, 48)}, {"is_causal": True}])
def test_attention_counts_both_of_its_products(options):
    def attend(query, key, value):
        return F.scaled_dot_product_attention(query, key, value, **options)

    assert multiply_adds(attend, QUERY, KEY, VALUE) == 2 * 3 * 64 * 48 * (32 + 16)


def test_grouped_query_attention_counts_the_heads_of_the_queries():
    def attend(query, key):
        return F.scaled_dot_product_attention(query, key, key, enable_gqa=True)

    assert multiply_adds(attend, torch.rand(2, 6, 8, 4), torch.rand(2, 3, 8, 4)) == 2 * 6 * 8 * 8 * (4 + 4)


@pytest.mark.parametrize("need_weights", [False, True])
def test_multihead_attention_counts_the_same_with_and_without_weights(need_weights):
    attention = nn.MultiheadAttention(96, 3, batch_first=True)
    expected = 2 * 64 * 96 * 96 * 4 + 2 * 3 * 64 * 64 * 32 * 2

    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x):
            return self.attention(x, x, x, need_weights=need_weights)

    assert multiply_adds(SelfAttention(), torch.rand(2, 64, 96)) == expected


def test_packed_lstm_counts_the_steps_that_exist():
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(32, 64)

        def forward(self, x):
            packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([10, 6, 3]))
            return self.lstm(packed)[0].data

    assert multiply_adds(Packed(), torch.rand(10, 3, 32)) == 19 * 4 * 64 * (32 + 64)


@pytest.mark.parametrize(("ratio", "samples"), [(2, 4), (3, 9), (-1, 4)])
def test_roi_align_counts_four_taps_a_sample(ratio, samples):
    boxes = torch.tensor([[0.0, 0, 0, 4, 4], [0.0, 1, 1, 7, 7]])

    def pool(x, rois):
        return roi_align(x, rois, output_size=7, sampling_ratio=ratio)

    assert multiply_adds(pool, torch.rand(1, 16, 8, 8), boxes) == 2 * 16 * 49 * samples * 4


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)], 24),
        ("ij,jk", [(2, 3), (3, 4)], 24),
        ("...c, cd -> ...d", [(5, 6, 7), (7, 8)], 5 * 6 * 7 * 8),
        ("...ij,...jk", [(9, 1, 2, 3), (5, 3, 4)], 9 * 5 * 24),
        ("bi,bi->b", [(2, 3), (2, 3)], 6),
        ("ij,jk->k", [(2, 3), (3, 4)], 12),  # i is summed before the product
        ("bij->bji", [(2, 3, 4)], 0),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)], 24 + 40),
        ("ij,jk,kl,lm->im", [(2, 30), (30, 4), (4, 50), (50, 6)], 240 + 400 + 600),
    ],
)
def test_einsum_is_exact(equation, shapes, expected):
    assert einsum_multiply_adds(equation, shapes) == expected


def test_einsum_follows_a_given_path():
    shapes = [(2, 3), (3, 4), (4, 5)]
    assert einsum_multiply_adds("ij,jk,kl->il", shapes, path=[1, 2, 0, 1]) == 3 * 4 * 5 + 2 * 3 * 5


class Cell(NamedTuple):
    hidden: Tensor
    memory: Tensor


class State(NamedTuple):
    cell: Cell
    past: Tensor


class Recurrent(nn.Module):
    """Reads its state by field name and writes into it."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.dropout = nn.Dropout(0.5)

    def forward(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        x, (hidden, memory) = self.lstm(self.mix(frames), (state.cell.hidden, state.cell.memory))
        state.past.add_(1)
        return self.dropout(x), State(Cell(hidden, memory), state.past)


def recurrent_inputs() -> tuple[Tensor, State]:
    return torch.rand(2, 1, 8), State(Cell(torch.zeros(1, 2, 8), torch.zeros(1, 2, 8)), torch.zeros(2, 8))


def test_nested_state_reaches_the_module_as_it_is_and_stays_untouched():
    frames, state = recurrent_inputs()
    result = count(Recurrent(), frames, state)
    assert round(result.by_module["mix"] * 1e9) == 2 * 8 * 8
    assert round(result.by_module["lstm"] * 1e9) == 2 * 4 * 8 * 16
    assert result.by_module[""] == pytest.approx(result.gflops)
    assert not state.past.any()


def test_module_keeps_its_modes_parameters_and_hooks():
    module = Recurrent()
    module.mix.eval()
    before = copy.deepcopy(module.state_dict())
    count(module, *recurrent_inputs())
    assert module.training and module.dropout.training and not module.mix.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    torch.testing.assert_close(dict(module.state_dict()), dict(before), rtol=0, atol=0)
    assert torch.backends.mha.get_fastpath_enabled()


def test_counting_works_inside_inference_mode():
    module = Recurrent()
    with torch.inference_mode():
        inside = count(module, *recurrent_inputs())
    assert inside == count(module, *recurrent_inputs())


def test_an_operator_that_nothing_counts_is_named():
    with pytest.warns(UserWarning, match="aten::cdist"):
        result = count(lambda a, b: torch.cdist(a, b).softmax(-1) @ b, torch.rand(4, 8), torch.rand(3, 8))
    assert result.uncounted == ("aten::cdist",)
    assert round(result.gflops * 1e9) == 4 * 3 * 8


def test_elementwise_work_is_neither_counted_nor_reported():
    def work(x):
        y = F.gelu(x).softmax(-1).add_(1).clamp_min(0.5).cumsum(1).roll(1, 0).topk(3).values
        return torch.where(y > 1, y.sqrt(), y.mean()) * torch.arange(3).sin()

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert multiply_adds(work, torch.rand(4, 8)) == 0


def test_an_output_that_hides_its_tensors_is_refused():
    class Opaque:
        def __init__(self, x):
            self.x = x

    with pytest.raises(TypeError, match="returns Opaque"):
        count(lambda x: Opaque(x @ x), torch.rand(4, 4))


class Everything(nn.Module):
    """One of each: convolution, attention, recurrence, einsum, batched products."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv3d(3, 32, (2, 8, 8), stride=(2, 8, 8))
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.lstm = nn.LSTM(32, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(32, 16, batch_first=True)

    def forward(self, clip: Tensor) -> tuple[Tensor, ...]:
        x = self.embed(clip).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.lstm(x + self.mlp(x))[0]
        scores = torch.einsum("bnc,bmc->bnm", x, x)
        return torch.baddbmm(scores, scores, scores), torch.bmm(scores, x), self.gru(x)[0]


def test_torch_counts_twice_as_much_on_the_meta_device():
    with torch.device("meta"):
        module, clip = Everything().eval(), torch.empty(2, 3, 4, 32, 32)
    with FlopCounterMode(display=False) as reference, torch.no_grad():
        module(clip)
    on_cpu = Everything()
    assert 2 * multiply_adds(on_cpu, torch.rand(2, 3, 4, 32, 32)) == reference.get_total_flops()
    assert math.isclose(count(on_cpu, torch.rand(1, 3, 4, 32, 32)).gflops * 4e9, reference.get_total_flops())
