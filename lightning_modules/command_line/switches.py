"""Settings of the Trainer: what this machine and these networks cannot do is refused before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, Union, get_args

from jsonargparse import Namespace
from jsonargparse.typing import register_type
from lightning.pytorch import Callback
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.callbacks import Checkpoint, DeviceStatsMonitor, LearningRateMonitor, ProgressBar

from datamodules.errors import UserError

from .settings import Settings

SEED = ("seed_everything",)
GPUS = {
    "gpu": lambda: CUDAAccelerator.is_available() or MPSAccelerator.is_available(),
    "cuda": CUDAAccelerator.is_available,
    "mps": MPSAccelerator.is_available,
}
LEAST = {"accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "log_every_n_steps": 0}
"""Least values of settings that Lightning divides by without a check."""
NEEDED_BY: dict[str, tuple[type[Callback], ...]] = {
    "enable_progress_bar": (ProgressBar,),
    "enable_checkpointing": (Checkpoint,),
    "logger": (LearningRateMonitor, DeviceStatsMonitor),
}
"""Switches of the Trainer, and the callbacks that Lightning refuses where they are off."""


def check_settings(config: Namespace, settings: Settings) -> None:
    """Refuse what a command's settings ask of this machine or these networks in vain.

    Raises:
        UserError: a seed that no generator takes, a number too small, an absent GPU, or networks computed wholly in a
            precision other than float32.
    """
    if not isinstance(config.seed_everything, bool) and not 0 <= config.seed_everything < 2**32:
        raise UserError(f"must lie within 0..{2**32 - 1}, got {config.seed_everything}", settings.place(SEED))
    config = config.trainer
    for name, least in LEAST.items():
        if config[name] is not None and config[name] < least:
            place = settings.place(("trainer", name))
            raise UserError(f"must be at least {least}, got {config[name]}", where=place)
    is_available = GPUS.get(str(config.accelerator), lambda: True)
    if not is_available():
        raise UserError(
            "this machine has no such device that PyTorch can use",
            where=settings.place(("trainer", "accelerator")),
            remedy="set it to auto or cpu",
        )
    precision = str(config.precision)
    if precision in ("bf16-true", "64-true", "64") or precision.startswith("transformer-engine"):
        raise UserError(
            f"{precision} is not supported: networks keep their weights in float32",
            where=settings.place(("trainer", "precision")),
            remedy="set it to 32-true or bf16-mixed",
        )


def possible_callbacks(config: Namespace) -> list[Callback]:
    """Return the Trainer's callbacks without those that need what one of its switches has turned off."""
    callbacks = config.callbacks or []
    off = tuple(kind for switch, kinds in NEEDED_BY.items() if config[switch] is False for kind in kinds)
    return [each for each in (callbacks if isinstance(callbacks, list) else [callbacks]) if not isinstance(each, off)]


class Amount:
    """Mark of a setting that is a whole number of batches or a share of all: 1 is one batch, 1.0 all of them.

    A parser of the type ``float | int`` reads every 1 as 1.0. Which of the two Lightning's ``Optional[Union[int,
    float]]`` puts first depends on what other modules wrote down before, since ``typing`` takes both orders for equal.
    """


def amount(text: str) -> int | float:
    """Return the number that a text is.

    >>> amount("1"), amount("1.0")
    (1, 1.0)
    """
    try:
        return int(text)
    except ValueError:
        return float(text)


register_type(
    Amount,
    serializer=lambda value: value,
    deserializer=amount,
    type_check=lambda value, kind: isinstance(value, int | float) and not isinstance(value, bool),
    deserializer_exceptions=(ValueError, TypeError, AttributeError),
)


def with_amounts(init: Callable[..., None]) -> Callable[..., None]:
    """Return a constructor whose arguments of type ``int | float``, in any order, are annotated as ``Amount``."""
    signature = inspect.signature(init)

    @wraps(init)
    def wrapper(self: object, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)

    parameters = [each.replace(annotation=_with_amount(each.annotation)) for each in signature.parameters.values()]
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def _with_amount(annotation: Any) -> Any:
    types = get_args(annotation)
    if not {int, float} <= set(types):
        return annotation
    return Union[(Amount, *(kind for kind in types if kind not in (int, float)))]
