"""Base of all experiments: where weights come from, the optimiser and its schedule, what is logged and reported."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from datamodules.errors import UserError

from .networks.layers.prepared import release
from .networks.weights.card import Card
from .networks.weights.classes import check_classes, other_classes
from .networks.weights.loading import load_weights, misfits
from .networks.weights.old_names import has_old_names, renamed_from_old
from .optimisation import Schedule, WarmupCosine, parameter_groups, scheduled
from .runs.resuming import (
    GRADIENTS,
    accumulated_gradients,
    continue_cut_epoch,
    count_epochs_rightly,
    restore_gradients,
    seed_batch,
)


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of learning, apart from the optimiser.

    Args:
        schedule: schedule of the learning rate: ``WarmupCosine`` (the default) or ``WarmupSteps``.
        head_lr_multiplier: learning rate of the network's ``head_parameters`` (a detector's localizer and decoder) over
            that of the rest.
        new_lr_multiplier: the same for its ``new_parameters``, which a student has and its teacher has not, such as the
            LSTM. They start at zero while the rest has been trained.
        fresh: patterns of parameters that start fresh although ``weights`` are given; for other classes than the
            weights know: ``["head.decoder.blocks.*.action_logits.*"]``.
    """

    schedule: Schedule | None = None
    head_lr_multiplier: float = 1.0
    new_lr_multiplier: float = 1.0
    fresh: Sequence[str] = ()


class ExperimentModule(L.LightningModule):
    """Base of all experiments; thin on purpose.

    The arguments that every run sets stand by themselves, so that their keys are short (``--model.weights``); the rest
    is in ``training`` and, of detectors, ``detection``.

    Args:
        network: what is trained and evaluated; it has ``num_classes``.
        weights: a weights file or checkpoint to start from (or to evaluate). Nothing may be missing or left over.
        optimizer: called with parameter groups.
        training: how the network learns.
    """

    def __init__(
        self,
        network: nn.Module,
        weights: str | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        training: TrainingSettings = TrainingSettings(),
    ) -> None:
        super().__init__()
        self.network = network
        self.optimizer, self.weights = optimizer, weights
        self.schedule = training.schedule or WarmupCosine()
        self.network_lr_multipliers = network_lr_multipliers(network, training)
        self.new_lr_multiplier = training.new_lr_multiplier
        self._card: Card | None = None
        """That of ``weights``, unless some of its parameters are left alone."""
        if weights is not None:
            card = load_weights(network, weights, training.fresh)
            self._card = None if training.fresh else card
        elif training.fresh:
            raise UserError(
                "names parameters that the weights shall leave alone, but there are no weights",
                where="model.training.fresh",
                remedy="set model.weights too, or drop fresh",
            )
        self._zeros_explained: set[str] = set()
        self._gradients: dict[str, Tensor] = {}
        """Gradients accumulated so far in a step during which a checkpoint was written."""

    def setup(self, stage: str) -> None:
        """Compare the classes of the network with those of the data before anything runs."""
        in_network, in_data = self.network.num_classes, self.trainer.datamodule.num_classes
        if in_network != in_data:
            raise UserError(
                f"network has {in_network} classes but the data has {in_data}",
                where="model.network",
                remedy=f"build it with num_classes={in_data}; the command line does so by itself",
            )
        if difference := other_classes(self._card, getattr(self.trainer.datamodule, "class_names", None)):
            rank_zero_warn(f"model.weights={self.weights} {difference}; every score is taken for that of this number")
        self._zeros_explained.clear()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take what resuming needs; give weights from before detectors were made of parts the names of today."""
        self._gradients = checkpoint.get(GRADIENTS, {})
        continue_cut_epoch(checkpoint)
        state, prefix = checkpoint["state_dict"], "network."
        network = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if has_old_names(network):
            others = {key: value for key, value in state.items() if not key.startswith(prefix)}
            network = renamed_from_old(network)
            checkpoint["state_dict"] = {prefix + key: value for key, value in network.items()} | others
        check_classes(self.network, network, self.trainer.ckpt_path if self._trainer else None)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take the tensors of a checkpoint; what does not fit is listed."""
        if strict and (problems := misfits(self.state_dict(), state_dict)):
            raise UserError(
                f"this checkpoint is of another network than {type(self.network).__name__} as configured; "
                + "; ".join(problems),
                where=self._trainer and self._trainer.ckpt_path,
                remedy="give the config that it was trained with",
            )
        return super().load_state_dict(state_dict, strict, assign)

    def configure_optimizers(self) -> dict[str, Any]:
        try:
            optimizer = self.optimizer([nn.Parameter(torch.zeros(()))])  # only to learn the configured learning rate
        except ValueError as error:
            raise UserError(str(error), where="model.optimizer") from error
        groups = parameter_groups(self.trained_modules(), self.lr_multipliers(), optimizer.defaults["lr"])
        optimizer = self.optimizer(groups)
        self.trainer.fit_loop.setup_data()  # else a run with max_steps alone does not know its epochs yet
        total_steps = self.trainer.estimated_stepping_batches
        if total_steps == math.inf:
            raise UserError(
                "the schedule of the learning rate needs to know how long training lasts",
                where="trainer.max_epochs",
                remedy="set it, or trainer.max_steps, beside max_time",
            )
        steps_per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        scheduler = scheduled(optimizer, self.schedule, int(total_steps), steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if gradients := accumulated_gradients(self):
            checkpoint[GRADIENTS] = gradients

    def on_fit_start(self) -> None:
        """Say how much is trained."""
        sizes = {True: 0, False: 0}
        for parameter in self.parameters():
            sizes[parameter.requires_grad] += parameter.numel()
        rank_zero_info(f"{type(self).__name__}: {sizes[True]:,} parameters are trained, {sizes[False]:,} are frozen")

    def on_train_start(self) -> None:
        count_epochs_rightly(self.trainer.fit_loop)
        restore_gradients(self, self._gradients)
        self._gradients = {}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        seed_batch(self.current_epoch, batch_idx, self.global_rank)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Forget what a measurement in the middle of training has made of the weights."""
        release(self.network)

    def trained_modules(self) -> list[tuple[str, nn.Module]]:
        """Names and modules whose parameters the optimiser gets."""
        return [("network", self.network)]

    def lr_multipliers(self) -> dict[str, float]:
        """Patterns of parameter names and how much faster than the rest they learn; the first match counts."""
        return {f"network.{name}": multiplier for name, multiplier in self.network_lr_multipliers.items()}

    @property
    def progress(self) -> float:
        """Return the part of training that is done, 0 to 1."""
        return min(1.0, self.trainer.global_step / max(1, int(self.trainer.estimated_stepping_batches)))

    def log_losses(self, losses: dict[str, Tensor], batch_size: int) -> None:
        """``total`` as ``train/loss``, every other entry beside it."""
        self.log("train/loss", losses["total"], prog_bar=True, batch_size=batch_size)
        terms = {f"train/loss/{name}": value for name, value in losses.items() if name != "total"}
        self.log_dict(terms, batch_size=batch_size)

    def say(self, name: str, result: dict[str, Any], protocol: str | None, counted: Sequence[str], key: str) -> None:
        """Print the evaluation summary (outside ``fit``) and, once per run, explain a zero score.

        Args:
            name: what the result is logged as, such as ``val/map``.
            result: what a metric has computed: ``key`` and ``explanation``, and how many of what was counted.
            protocol: of the result. counted: of ``num_frames`` and the like the second word.
            key: the entry of the result that must not be zero without a word.
        """
        if self.trainer.sanity_checking:
            return
        stage, _, measure = name.partition("/")
        if self.trainer.state.fn != "fit":
            counts = " ".join(f"{int(result[f'num_{what}'])} {what}" for what in counted)
            rank_zero_info(f"{stage}: {protocol}; ground truth of {counts}")
        if result["explanation"] and measure not in self._zeros_explained:
            self._zeros_explained.add(measure)
            rank_zero_warn(f"{name} is {float(result[key]):g}: {result['explanation']}")


def network_lr_multipliers(network: nn.Module, training: TrainingSettings) -> dict[str, float]:
    """Return the names of a network's parameters that learn at another rate than the rest, and how much faster."""
    rates = {"new_parameters": training.new_lr_multiplier, "head_parameters": training.head_lr_multiplier}
    result: dict[str, float] = {}
    for kind, multiplier in rates.items():
        if hasattr(network, kind):
            result |= dict.fromkeys(getattr(network, kind)(), multiplier)
        elif multiplier != 1:
            argument = kind.replace("parameters", "lr_multiplier")
            raise UserError(
                f"is {multiplier:g}, but {type(network).__name__} has no {kind}",
                where=f"model.training.{argument}",
                remedy="leave it out",
            )
    return result
