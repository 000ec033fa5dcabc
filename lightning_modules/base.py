"""What every experiment shares: where weights come from, the optimiser and its schedule, what is logged and told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from datamodules.errors import UserError

from .networks.weights.loading import load_weights, misfits
from .networks.weights.old_names import has_old_names, renamed_from_old
from .optimisation import Schedule, WarmupCosine, parameter_groups, scheduled
from .runs.resuming import GRADIENTS, accumulated_gradients, count_epochs_rightly, restore_gradients, seed_batch


class ExperimentModule(L.LightningModule):
    """Base of all experiments; thin on purpose.

    Args:
        network: what is trained and evaluated; it has ``num_classes``.
        optimizer: called with parameter groups.
        weights: a weights file or checkpoint to start from (or to evaluate). Nothing may be missing or left over.
        fresh: patterns of parameters that start fresh although ``weights`` are given; for other classes than the
            weights know: ``["head.decoder.blocks.*.action_logits.*"]``.
        schedule: of the learning rate: ``WarmupCosine`` (the default) or ``WarmupSteps``.
    """

    classes_argument = "network.init_args.num_classes"
    """Where a config says how many classes the network has."""

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        weights: str | None = None,
        fresh: Sequence[str] = (),
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.optimizer, self.weights = optimizer, weights
        self.schedule = schedule or WarmupCosine()
        if weights is not None:
            load_weights(network, weights, fresh)
        elif fresh:
            raise ValueError(
                "fresh names parameters that the weights shall leave alone; set weights too, or drop fresh"
            )
        self._zeros_explained: set[str] = set()
        self._gradients: dict[str, Tensor] = {}
        """Of a step that a checkpoint was written in the midst of."""

    def setup(self, stage: str) -> None:
        """Compare the classes of the network with those of the data before anything runs."""
        in_network, in_data = self.network.num_classes, self.trainer.datamodule.num_classes
        if in_network != in_data:
            raise UserError(
                f"network has {in_network} classes but the data has {in_data}; set "
                f"model.init_args.{self.classes_argument}={in_data}, or --count_classes true"
            )
        self._zeros_explained.clear()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take what resuming needs; give weights from before detectors were made of parts the names of today."""
        self._gradients = checkpoint.get(GRADIENTS, {})
        state, prefix = checkpoint["state_dict"], "network."
        network = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if has_old_names(network):
            others = {key: value for key, value in state.items() if not key.startswith(prefix)}
            renamed = {prefix + key: value for key, value in renamed_from_old(network).items()}
            checkpoint["state_dict"] = renamed | others

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
        total_steps = int(self.trainer.estimated_stepping_batches)
        steps_per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        scheduler = scheduled(optimizer, self.schedule, total_steps, steps_per_epoch)
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

    def trained_modules(self) -> list[tuple[str, nn.Module]]:
        """Names and modules whose parameters the optimiser gets."""
        return [("network", self.network)]

    def lr_multipliers(self) -> dict[str, float]:
        """Patterns of parameter names and how much faster than the rest they learn; the first match counts."""
        return {}

    @property
    def progress(self) -> float:
        """How much of training is done, 0 to 1."""
        return min(1.0, self.trainer.global_step / max(1, int(self.trainer.estimated_stepping_batches)))

    def log_losses(self, losses: dict[str, Tensor], batch_size: int) -> None:
        """``total`` as ``train/loss``, every other entry beside it."""
        self.log("train/loss", losses["total"], prog_bar=True, batch_size=batch_size)
        terms = {f"train/loss/{name}": value for name, value in losses.items() if name != "total"}
        self.log_dict(terms, batch_size=batch_size)

    def say(self, name: str, result: dict[str, Any], protocol: str | None, counted: Sequence[str], key: str) -> None:
        """What was evaluated, once it is the run's purpose; and once a run why nothing was found, if so.

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
