"""Fusion of motion and appearance: equations 12 to 15 by hand, and what may depend on what."""

import pytest
import torch

from callbacks.measures.flops import count_gflops
from lightning_modules.networks.temporal.modality_fusion import (
    ConcatFusion,
    GlobalAttentionFusion,
    LocalAttentiveFusion,
    ModalityGate,
    SumFusion,
)
from tests.networks.tiny import randomise

DIM, STEPS = 8, 6
FUSIONS = [LocalAttentiveFusion, ConcatFusion, SumFusion, GlobalAttentionFusion]


def features() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.manual_seed(1)
    motion, appearance = (torch.randn(2, DIM, STEPS, dtype=torch.float64, generator=generator) for _ in range(2))
    mask = torch.ones(2, STEPS, dtype=torch.bool)
    mask[1, 4:] = False
    return motion, appearance, mask


def build(fusion) -> torch.nn.Module:
    return randomise(fusion(DIM)).double()


@pytest.fixture(autouse=True)
def no_gradients(request):
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


def test_the_gates_are_those_computed_by_hand():
    gate = ModalityGate(2)
    gate.query.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    gate.key.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    target = torch.tensor([[[1.0, 3.0, 100.0], [0.0, -4.0, 100.0]]])  # mean over the first two: (2, -2)
    reference = torch.tensor([[[0.5, 0.0, 7.0], [1.0, 5.0, 7.0]]])
    mask = torch.tensor([[True, True, False]])
    # query (2, 2 - 2) = (2, 0); keys (1, 1), (0, 5); products (2, 0), (0, 0)
    sigmoid_of_2 = 0.8807970779778823
    expected = torch.tensor([[sigmoid_of_2 * 1.0, 0.5 * 3.0], [0.5 * 0.0, 0.5 * -4.0]])
    torch.testing.assert_close(gate(target, reference, mask)[0, :, :2], expected)


def test_the_fusion_is_the_equations_step_by_step():
    fusion, (motion, appearance, mask) = build(LocalAttentiveFusion), features()
    fused = fusion(motion, appearance, mask)
    pairs = ((fusion.motion_gate, motion, appearance), (fusion.appearance_gate, appearance, motion))
    for row in range(2):
        valid = mask[row].nonzero().flatten().tolist()
        for t in valid:
            parts = []
            for gate, target, reference in pairs:
                pooled = sum(target[row, :, s] for s in valid) / len(valid)
                weights = torch.sigmoid((gate.query.weight @ pooled) * (gate.key.weight @ reference[row, :, t]))
                parts.append(weights * target[row, :, t])
            torch.testing.assert_close(fused[row, :, t], torch.cat(parts))


def test_given_the_pooled_query_the_output_at_a_time_depends_on_that_time_alone():
    fusion, (motion, appearance, _) = build(LocalAttentiveFusion), features()
    mask = torch.ones(2, STEPS, dtype=torch.bool)
    before = fusion(motion, appearance, mask)

    def changed(values: torch.Tensor) -> torch.Tensor:
        """The same at time 2 and in the mean, different at all other times."""
        others = torch.randn_like(values)
        others[..., 2] = 0
        rest = torch.tensor([0, 1, 3, 4, 5])
        others[..., rest] -= others[..., rest].mean(-1, keepdim=True)
        return values + others

    after = fusion(changed(motion), changed(appearance), mask)
    torch.testing.assert_close(after[..., 2], before[..., 2])
    assert not torch.isclose(after[..., 3], before[..., 3]).any()


def test_the_gradient_at_a_time_reaches_other_times_through_the_pooled_query_alone():
    fusion, (motion, appearance, _) = build(LocalAttentiveFusion), features()
    appearance.requires_grad_(True)
    pooled = motion.mean(2)
    gated = fusion.motion_gate.gate(pooled, appearance) * motion
    gated[..., 2].sum().backward()
    reached = appearance.grad.abs().amax((0, 1)) > 0
    assert reached.tolist() == [False, False, True, False, False, False]


def test_global_attention_reads_all_times_and_those_after_the_end_not():
    fusion, (motion, appearance, mask) = build(GlobalAttentionFusion), features()
    before = fusion(motion, appearance, mask)
    appearance[:, :, 3] += 1
    differences = (fusion(motion, appearance, mask) - before)[:, :DIM].abs().amax(1)
    assert (differences > 1e-9).all()


def test_global_attention_is_torchs_over_the_times_that_are_there():
    fusion, (motion, appearance, mask) = build(GlobalAttentionFusion), features()
    part = fusion.motion_attention
    reference = torch.nn.MultiheadAttention(DIM, 4, batch_first=True, dtype=torch.float64)
    reference.in_proj_weight.copy_(torch.cat([part.query.weight, part.key.weight, part.value.weight]))
    reference.in_proj_bias.zero_()
    reference.out_proj.weight.copy_(part.proj.weight)
    reference.out_proj.bias.copy_(part.proj.bias)
    found, _ = reference(motion.mT, appearance.mT, appearance.mT, key_padding_mask=~mask)
    fused = fusion(motion, appearance, mask)
    assert fused.shape == (2, 2 * DIM, STEPS)
    torch.testing.assert_close(fused[:, :DIM], motion + found.mT)


def test_concatenation_and_sum_are_what_they_are_called():
    motion, appearance, mask = features()
    assert torch.equal(ConcatFusion(DIM)(motion, appearance, mask), torch.cat([motion, appearance], dim=1))
    assert torch.equal(SumFusion(DIM)(motion, appearance, mask), motion + appearance)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_lies_after_the_end_changes_nothing_before_it(fusion):
    fusion, (motion, appearance, mask) = build(fusion), features()
    before = fusion(motion, appearance, mask)
    assert before.shape == (2, fusion.out_channels, STEPS)
    for part in (motion, appearance):
        part[1, :, 4:] = torch.nan
    after = fusion(motion, appearance, mask)
    torch.testing.assert_close(after[0], before[0])
    torch.testing.assert_close(after[1, :, :4], before[1, :, :4])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_window_without_a_step_gives_finite_values_and_gradients(fusion):
    fusion, (motion, appearance, mask) = build(fusion), features()
    motion.requires_grad_(True)
    fused = fusion(motion, appearance, torch.zeros_like(mask))
    fused.sum().backward()
    assert fused.isfinite().all() and motion.grad.isfinite().all()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_all_operators_are_counted_and_every_parameter_receives_a_gradient_under_bfloat16(fusion):
    fusion = build(fusion).float()
    motion, appearance, mask = features()
    count = count_gflops(fusion, motion.float(), appearance.float(), mask)
    assert not count.uncounted
    assert (count.gflops > 0) == any(True for _ in fusion.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        fused = fusion(motion.float().requires_grad_(), appearance.float(), mask)
    fused.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fusion.parameters())


def test_heads_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ValueError, match="dim=6 does not divide into num_heads=4"):
        GlobalAttentionFusion(6)
