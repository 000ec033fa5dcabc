"""Parameter groups and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def no_weight_decay(module: nn.Module) -> set[str]:
    """Return the names of the matrices that parts of a module declare not to decay (``no_weight_decay``, as timm)."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        if hasattr(part, "no_weight_decay")
        for name in part.no_weight_decay()
    }


def parameter_groups(
    modules: Iterable[tuple[str, nn.Module]], lr_multipliers: Mapping[str, float], lr: float
) -> list[dict]:
    """Trainable parameters, grouped by learning rate and by whether they decay.

    A parameter's rate is ``lr`` times the multiplier of the first pattern of ``lr_multipliers`` that its name matches.
    Vectors (norms, biases, gates) do not decay, nor does what ``no_weight_decay`` names.
    """
    groups: dict[tuple[float, bool], list] = {}
    for prefix, module in modules:
        spared = no_weight_decay(module)
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                matches = (rate for pattern, rate in lr_multipliers.items() if fnmatch(f"{prefix}.{name}", pattern))
                decayed = parameter.dim() > 1 and name not in spared
                groups.setdefault((next(matches, 1.0), decayed), []).append(parameter)
    result = []
    for (multiplier, decayed), parameters in groups.items():
        group: dict = {"params": parameters, "lr": lr * multiplier}
        if not decayed:
            group["weight_decay"] = 0.0
        result.append(group)
    return result


class Schedule:
    """Learning rate in the course of training, as a factor of the configured one, set anew every step."""

    def factor(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        """The factor at an optimiser step, counted from 0."""
        raise NotImplementedError


class WarmupCosine(Schedule):
    """Linear warm-up, then a cosine over the rest of training.

    Args:
        warmup_fraction: share of all steps in which the rate rises, from near zero.
        final_fraction: where the cosine ends, as a fraction of the configured rate.
    """

    def __init__(self, warmup_fraction: float = 0.05, final_fraction: float = 0.01) -> None:
        self.warmup_fraction, self.final_fraction = warmup_fraction, final_fraction

    def factor(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        warmup = max(1, round(self.warmup_fraction * total_steps))
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return self.final_fraction + (1 - self.final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


class WarmupSteps(Schedule):
    """Linear warm-up, then constant rates that change at given epochs; EVAD's schedule.

    Epochs are fractional: with 100 steps an epoch, step 150 is at 1.5. Milestones {5: 0.1, 8: 0.01} mean a tenth of the
    configured rate from epoch 5 on and a hundredth from epoch 8 on.

    Args:
        milestones: epoch -> factor of the configured rate from there on.
        warmup_epochs: how long the rate rises.
        warmup_from: factor at the first step.
    """

    def __init__(self, milestones: dict[int, float], warmup_epochs: float = 2.0, warmup_from: float = 0.1) -> None:
        if warmup_epochs < 0 or not 0 < warmup_from <= 1:
            raise ValueError(
                "warmup_epochs must not be negative and warmup_from must be in (0, 1], "
                f"got {warmup_epochs} and {warmup_from}"
            )
        self.milestones = dict(sorted(milestones.items()))
        self.warmup_epochs, self.warmup_from = warmup_epochs, warmup_from

    def factor(self, step: int, total_steps: int, steps_per_epoch: int) -> float:
        epoch = step / steps_per_epoch
        if epoch >= self.warmup_epochs:
            return self._after_warmup(epoch)
        goal = self._after_warmup(self.warmup_epochs)
        return self.warmup_from + (goal - self.warmup_from) * epoch / self.warmup_epochs

    def _after_warmup(self, epoch: float) -> float:
        passed = [factor for milestone, factor in self.milestones.items() if milestone <= epoch]
        return passed[-1] if passed else 1.0


def scheduled(optimizer: Optimizer, schedule: Schedule, total_steps: int, steps_per_epoch: int) -> LambdaLR:
    """The schedule as torch's schedulers are: every group's rate times the same factor."""
    return LambdaLR(optimizer, lambda step: schedule.factor(step, total_steps, steps_per_epoch))
