"""Callbacks that monitor a metric which nothing logs: reported at the first chance, not after an epoch of training."""

from __future__ import annotations

import difflib
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer

from datamodules.errors import UserError

ALWAYS_THERE = ("epoch", "step")
"""Names that Lightning adds to the logged metrics."""


class MonitorCheck(Callback):
    """Compare the metrics that other callbacks monitor with those that are logged.

    Names that begin with ``train`` are looked for after the first batch, those with ``val`` after the first validation.
    Where Lightning's sanity check runs (``num_sanity_val_steps``), that is before training.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.limit_val_batches == 0:
            self._check(trainer, ("val",), "validation is off (limit_val_batches 0)")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step <= 1:
            self._check(trainer, ("train",))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # What training logs is not there yet at the sanity check.
        self._check(trainer, ("val",) if trainer.sanity_checking else ("",))

    @staticmethod
    def _check(trainer: Trainer, stages: tuple[str, ...], reason: str | None = None) -> None:
        logged = [*trainer.callback_metrics, *ALWAYS_THERE]
        classes = [f"{stage}/ap/{name}" for stage in ("train", "val") for name in _class_names(trainer)]
        for callback in trainer.callbacks:
            name = getattr(callback, "monitor", None)
            if name is None or not name.startswith(stages) or name in (*logged, *classes):
                continue
            close = difflib.get_close_matches(name, logged, 1)
            there = ", ".join(sorted(logged)[:12])
            raise UserError(
                f"{type(callback).__name__} monitors {name}, which nothing logs" + (f": {reason}" if reason else ""),
                where="trainer.callbacks",
                remedy=None if reason else f"did you mean {close[0]}?" if close else f"logged are {there}",
            )


def watch_monitors(config: Namespace) -> None:
    """Let a Trainer report a monitored metric that nothing logs, if any of its callbacks waits for one.

    One batch is validated before training, so that what validation logs is known then.
    """
    if any(getattr(callback, "monitor", None) is not None for callback in config.callbacks):
        config.callbacks = [MonitorCheck(), *config.callbacks]
        config.num_sanity_val_steps = config.num_sanity_val_steps or 1


def _class_names(trainer: Trainer) -> list[str]:
    """Names of classes, some of which a validation of one batch may not see."""
    return list(getattr(getattr(trainer, "datamodule", None), "class_names", ()))
