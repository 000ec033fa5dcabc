"""Parameter groups and the learning-rate schedule that every experiment shares."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

NO_DECAY = ("*bias", "*mask_token", "*proposal_features", "*proposal_boxes", "*age_code", "*gate")


def parameter_groups(
    modules: Iterable[tuple[str, nn.Module]], lr_multipliers: Mapping[str, float], lr: float
) -> list[dict]:
    """Trainable parameters, grouped by learning rate and by whether they decay.

    A parameter's rate is ``lr`` times the multiplier of the first pattern of ``lr_multipliers`` that its name matches.
    Vectors (norms, biases), mask token, proposals and codes do not decay (`evad-facts`, section 10).
    """
    groups: dict[tuple[float, bool], list] = {}
    for prefix, module in modules:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                matches = (rate for pattern, rate in lr_multipliers.items() if fnmatch(f"{prefix}.{name}", pattern))
                decayed = parameter.dim() > 1 and not any(fnmatch(name, pattern) for pattern in NO_DECAY)
                groups.setdefault((next(matches, 1.0), decayed), []).append(parameter)
    result = []
    for (multiplier, decayed), parameters in groups.items():
        group: dict = {"params": parameters, "lr": lr * multiplier}
        if not decayed:
            group["weight_decay"] = 0.0
        result.append(group)
    return result


def warmup_cosine(optimizer: Optimizer, total_steps: int, warmup_fraction: float, final_fraction: float) -> LambdaLR:
    """Linear warm-up over the first ``warmup_fraction`` of all steps, then a cosine down to ``final_fraction``."""
    warmup = max(1, round(warmup_fraction * total_steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)
