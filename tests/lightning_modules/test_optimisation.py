"""Which parameter learns how fast, and when."""

from math import cos, pi
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_modules.clip_detection import ClipDetectionModule
from lightning_modules.distillation import WEIGHTING_LR_MULTIPLIER, DistillationModule
from lightning_modules.networks.weights import save_weights
from lightning_modules.optimisation import parameter_groups, warmup_cosine
from lightning_modules.stream_detection import StreamDetectionModule
from tests.lightning_modules import tiny


def groups_by_name(module) -> dict[str, dict]:
    """The optimiser's group of every parameter that has one, by its name in the module."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = parameter_groups(module.trained_modules(), module.lr_multipliers(), lr=0.1)
    torch.optim.AdamW(groups, weight_decay=0.05)  # refuses a parameter in two groups; fills in what they do not say
    return {names[id(parameter)]: group for group in groups for parameter in group["params"]}


def test_vectors_tokens_proposals_and_codes_do_not_decay_and_matrices_do():
    groups = groups_by_name(StreamDetectionModule(tiny.student()))
    decays = {name for name, group in groups.items() if group["weight_decay"] == 0.05}
    still = {name for name, group in groups.items() if group["weight_decay"] == 0}
    assert decays | still == set(groups)
    parameters = dict(StreamDetectionModule(tiny.student()).named_parameters())
    assert all(parameters[name].dim() > 1 for name in decays)
    assert {
        "network.decoder.mask_token",
        "network.localizer.proposal_features",
        "network.localizer.proposal_boxes",
        "network.memory.age_code",
        "network.blocks.0.temporal.gate",
        "network.blocks.0.norm2.weight",
        "network.patch_embed.proj.bias",
    } <= still
    assert {"network.patch_embed.proj.weight", "network.blocks.0.mlp.fc1.weight"} <= decays


def test_every_parameter_of_a_network_is_trained():
    for module in (ClipDetectionModule(tiny.teacher()), StreamDetectionModule(tiny.student("tsa"))):
        assert set(groups_by_name(module)) == {name for name, _ in module.named_parameters()}


def test_head_learns_faster_by_its_multiplier():
    groups = groups_by_name(ClipDetectionModule(tiny.teacher(), head_lr_multiplier=8))
    rates = {name: group["lr"] for name, group in groups.items()}
    assert set(rates.values()) == {0.1, 0.8}
    fast = {name for name, rate in rates.items() if rate == 0.8}
    head = ("network.localizer.stages.", "network.decoder.")
    assert fast == {name for name in rates if name.startswith(head)}
    assert rates["network.localizer.proposal_features"] == 0.1  # EVAD counts proposals to the trunk


def test_what_a_student_has_and_its_teacher_has_not_learns_by_a_multiplier_of_its_own():
    module = StreamDetectionModule(tiny.student(), head_lr_multiplier=2, new_lr_multiplier=8)
    rates = {name: group["lr"] for name, group in groups_by_name(module).items()}
    for name in ("lstm.weight_ih_l0", "into_lstm.weight", "out_of_lstm.bias", "gate", "temporal_norm.weight"):
        assert rates[f"network.blocks.1.temporal.{name}"] == pytest.approx(0.8)
    assert rates["network.memory.age_code"] == pytest.approx(0.8)
    assert rates["network.decoder.mask_token"] == pytest.approx(0.2)
    assert rates["network.blocks.1.temporal.attn.qkv.weight"] == 0.1


def test_log_variances_are_trained_without_decay_and_the_teacher_is_not(tmp_path: Path):
    save_weights(tiny.teacher().state_dict(), tmp_path / "teacher.pt")
    module = DistillationModule(tiny.student(), tiny.teacher(), str(tmp_path / "teacher.pt"))
    groups = groups_by_name(module)
    for task in ("features", "actions", "boxes"):
        assert groups[f"task_weighting.log_variances.{task}"]["weight_decay"] == 0
        assert groups[f"task_weighting.log_variances.{task}"]["lr"] == pytest.approx(0.1 * WEIGHTING_LR_MULTIPLIER)
    assert not any(name.startswith("teacher.") for name in groups)
    assert len(groups) == sum(parameter.requires_grad for parameter in module.parameters())


def test_the_fit_uses_the_configured_optimiser_in_groups(tmp_path: Path):
    source = tiny.videos(tmp_path)
    module = ClipDetectionModule(
        tiny.teacher(),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.01, weight_decay=0.3),
        head_lr_multiplier=10,
        warmup_fraction=0.5,
    )
    trainer = tiny.trainer(tmp_path, max_steps=1, limit_val_batches=0)
    trainer.fit(module, datamodule=tiny.clips(source, tmp_path / "cache"))
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, torch.optim.SGD)
    assert sorted({group["initial_lr"] for group in optimizer.param_groups}) == pytest.approx([0.01, 0.1])
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.3}


def test_warm_up_then_cosine():
    parameter = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    schedule = warmup_cosine(optimizer, total_steps=100, warmup_fraction=0.1, final_fraction=0.01)
    rates = []
    for _ in range(120):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:10] == pytest.approx([0.2 * step for step in range(1, 11)])  # linear, from above zero
    assert rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(2.0 * 0.505)  # half-way down to a hundredth
    assert rates[32] == pytest.approx(2.0 * (0.01 + 0.99 * 0.5 * (1 + cos(pi * 22 / 90))))
    assert rates[100:] == pytest.approx([0.02] * 20)  # it stays there


@pytest.mark.parametrize("total_steps", [1, 2])
def test_the_schedule_of_a_very_short_run_is_finite(total_steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
    schedule = warmup_cosine(optimizer, total_steps, warmup_fraction=0.05, final_fraction=0.01)
    for _ in range(total_steps + 1):
        assert 0 < optimizer.param_groups[0]["lr"] <= 1
        optimizer.step()
        schedule.step()
