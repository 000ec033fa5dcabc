"""Weights of the tasks of a multi-task loss, learned or fixed, in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

LOG_VARIANCE_RANGE = (-3.0, 5.0)


class TaskWeighting(nn.Module):
    """Weighted sum of named losses.

    ``uncertainty``: one learned log-variance s per task, exp(-s) L + s, without constants (Kendall, Gal and Cipolla,
    2018, https://arxiv.org/abs/1705.07115). s starts at -ln of the task's initial weight and is kept within
    ``LOG_VARIANCE_RANGE``. The total may fall below zero. ``fixed``: the initial weights throughout.

    Tasks in ``pinned`` keep their weight in either mode. Otherwise learned weights can neglect the ground truth in
    favour of the term that is easiest to imitate.

    Args:
        weights: initial weight of every task; their names are the tasks' names.
        frozen_until: share of training during which learned weights stay at their start, while losses are still wild.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        weighting: Literal["uncertainty", "fixed"] = "uncertainty",
        pinned: tuple[str, ...] = ("detection",),
        frozen_until: float = 0.1,
    ) -> None:
        super().__init__()
        if any(weight <= 0 for weight in weights.values()):
            raise ValueError(f"weights must be above 0 (leave a task out instead), got {dict(weights)}")
        least, most = (math.exp(-bound) for bound in LOG_VARIANCE_RANGE[::-1])
        is_learned = weighting == "uncertainty"
        learned = {name: weight for name, weight in weights.items() if is_learned and name not in pinned}
        if any(not least <= weight <= most for weight in learned.values()):
            raise ValueError(f"learned weights begin within {least:.2g} and {most:.2g}, got {learned}")
        self.frozen_until = frozen_until
        self.fixed = {name: weight for name, weight in weights.items() if name not in learned}
        self.log_variances = nn.ParameterDict(
            {name: nn.Parameter(-torch.tensor(float(weight)).log()) for name, weight in learned.items()}
        )

    def forward(self, losses: Mapping[str, Tensor], progress: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses by task and the share of training done -> the total, and the weight of every task."""
        if unknown := sorted(set(losses) ^ (set(self.fixed) | set(self.log_variances))):
            raise ValueError(f"the losses and the weights do not name the same tasks; only on one side: {unknown}")
        total, weights = torch.zeros((), device=next(iter(losses.values())).device), {}
        for name, loss in losses.items():
            if name in self.fixed:
                weights[name] = torch.as_tensor(self.fixed[name], device=loss.device)
                total = total + weights[name] * loss
            else:
                log_variance = self.log_variances[name]
                with torch.no_grad():
                    # The parameter itself: a clamped copy would have no gradient that could bring it back.
                    log_variance.clamp_(*LOG_VARIANCE_RANGE)
                if progress < self.frozen_until:
                    log_variance = _without_gradient(log_variance)
                weights[name] = (-log_variance).exp().detach()
                total = total + (-log_variance).exp() * loss + log_variance
        return total, weights


def _without_gradient(value: Tensor) -> Tensor:
    """The value detached; in a distributed run with a gradient of zero, since DDP waits for every parameter's."""
    distributed = dist.is_available() and dist.is_initialized()
    return value.detach() + 0 * value if distributed else value.detach()
