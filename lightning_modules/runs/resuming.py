"""Exact resuming: random numbers, gradients and counts of epochs, which Lightning does not restore."""

from __future__ import annotations

import os
import random
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loops import _FitLoop
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

GRADIENTS = "accumulated_gradients"
"""Entry of a checkpoint: gradients of a step that is still being accumulated, by parameter, one for each rank."""


def seed_batch(epoch: int, batch_idx: int, rank: int) -> None:
    """Seed what the training of one batch draws (drop path, for instance) by its place in training.

    So neither a validation in between nor a resume changes it. The seed is that of Lightning's ``seed_everything``, 0
    where it was not called; each rank draws its own numbers.
    """
    seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
    of_torch, of_others = np.random.SeedSequence([seed, epoch, batch_idx, rank]).generate_state(2, np.uint64).tolist()
    torch.manual_seed(of_torch)
    np.random.seed(of_others % 2**32)  # noqa: NPY002  (for losses of users that draw from it)
    random.seed(of_others)


def count_epochs_rightly(loop: _FitLoop) -> None:
    """Let a training that goes on from the end of an epoch begin a new one; called where training starts.

    Lightning 2.6 resumes from a checkpoint of an epoch's last batch without counting the epoch that follows. From one
    of an epoch's end, where ``max_steps`` is set, it ends that epoch twice. A checkpoint that is written later then
    records the wrong epoch or batch.
    """
    progress = loop.epoch_progress
    if loop.restarted_mid_epoch and progress.current.ready == progress.current.completed:
        loop.reset_restart_stage()
    elif loop.restarted_on_epoch_end:
        progress.increment_completed()
        loop.reset_restart_stage()
        loop.epoch_loop.reset_restart_stage()
        loop.epoch_loop.restarting = False


def continue_cut_epoch(checkpoint: dict[str, Any]) -> None:
    """Let a training that was stopped within an epoch go on with the rest of it; called where a checkpoint is read.

    Where ``max_time``, ``max_steps`` or a callback stops it, Lightning counts the epoch as done before a checkpoint is
    written. From there it would begin the next one, and the rest would never be trained on.
    """
    loop = checkpoint.get("loops", {}).get("fit_loop", {})
    epochs, batches = loop.get("epoch_progress"), loop.get("epoch_loop.batch_progress")
    if not epochs or not batches or batches["is_last_batch"] or not batches["current"]["ready"]:
        return
    for count in (epochs["current"], epochs["total"]):
        if count["processed"] == count["ready"]:
            count["processed"] -= 1
            count["completed"] = count["processed"]


def accumulated_gradients(module: L.LightningModule) -> dict[str, Tensor]:
    """Return gradients (ranks, ...) on the CPU, by parameter, if a step waits for further batches; otherwise none.

    Every rank has to call it. A rank without a gradient that another rank has counts as zero.
    """
    trainer = module.trainer
    done = trainer.fit_loop.batch_idx + 1
    if done % trainer.accumulate_grad_batches == 0 or done >= trainer.num_training_batches:
        return {}
    parameters = [(name, each) for name, each in module.named_parameters() if each.requires_grad]
    here = torch.tensor([each.grad is not None for _, each in parameters], dtype=torch.uint8, device=module.device)
    anywhere = _of_all_ranks(module, here).any(0).tolist()
    return {
        name: _of_all_ranks(module, torch.zeros_like(each) if each.grad is None else each.grad).cpu()
        for (name, each), wanted in zip(parameters, anywhere, strict=True)
        if wanted
    }


def restore_gradients(module: L.LightningModule, gradients: dict[str, Tensor]) -> None:
    """Put ``accumulated_gradients`` of this rank back in their place."""
    world_size = module.trainer.world_size
    if saved := next((len(each) for each in gradients.values() if len(each) != world_size), None):
        rank_zero_warn(
            f"the checkpoint was written in the midst of a step by {saved} processes, now there are {world_size}: what "
            "they had accumulated is left out"
        )
        return
    for name, parameter in module.named_parameters():
        if name in gradients:
            parameter.grad = gradients[name][module.global_rank].to(parameter)


def _of_all_ranks(module: L.LightningModule, value: Tensor) -> Tensor:
    """(ranks, ...)"""
    return module.all_gather(value).reshape(module.trainer.world_size, *value.shape)
