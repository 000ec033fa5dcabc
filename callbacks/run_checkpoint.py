"""Checkpoints of a run: at the end of epochs, and within them often enough that a kill loses little."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

SECONDS_PER_MINUTE = 60.0


class RunCheckpoint(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint``, whose ``last.ckpt`` is also written within an epoch and when training ends.

    Within an epoch it is written after a step of the optimiser, never while gradients are gathered for one.

    Args:
        every_minutes: minutes of training between two writes of ``last.ckpt`` within an epoch; None for never.
        monitor, mode, save_top_k, filename, save_on_train_epoch_end: see ``ModelCheckpoint``.
    """

    def __init__(
        self,
        every_minutes: float | None = 10.0,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        save_top_k: int = 1,
        filename: str | None = None,
        save_on_train_epoch_end: bool | None = None,
    ) -> None:
        super().__init__(
            filename=filename,
            monitor=monitor,
            save_last=True,
            save_top_k=save_top_k,
            mode=mode,
            save_on_train_epoch_end=save_on_train_epoch_end,
        )
        self.every_minutes = every_minutes
        self._clock: Callable[[], float] = time.monotonic
        self._since = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._since = self._clock()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._is_due(trainer, batch_idx + 1):
            before = self._last_global_step_saved
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
            self._last_global_step_saved = before  # or a validation after this batch would save nothing
            self._since = self._clock()

    def _is_due(self, trainer: Trainer, batches: int) -> bool:
        """Return whether to write after so many batches of the epoch; the first process decides."""
        is_last = batches >= trainer.num_training_batches  # what comes at the end of the epoch follows at once
        if self.every_minutes is None or is_last or batches % trainer.accumulate_grad_batches:
            return False
        is_due = self._clock() - self._since >= SECONDS_PER_MINUTE * self.every_minutes
        return trainer.strategy.broadcast(is_due) and not self._should_skip_saving_checkpoint(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the weights that a training ends with, wherever in an epoch that is."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what is known of the best checkpoints; without a measure there is none, and nothing to know."""
        if self.monitor is not None:
            super().load_state_dict(state_dict)
