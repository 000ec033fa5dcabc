"""Checks of the file that ``--ckpt_path`` names, before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from datamodules.errors import UserError
from datamodules.tensor_file import read_tensor_file

from .settings import Settings

OF_THIS_PROCESS = ("best", "last")
"""Words for checkpoints of the run that is under way: a new run has none."""
NO_FILES = ("hpc", "registry")
"""Beginnings of other words that Lightning understands."""


def has_hyper_parameters(config: Namespace, settings: Settings) -> bool:
    """Return whether the checkpoint that a command goes on from says how its model is built; our modules do not say it.

    Raises:
        UserError: see ``read_checkpoint``.
    """
    path = config.get("ckpt_path")
    if path is None or config.get("weights_only") is False:  # nothing is known of what is read with code in it
        return False
    return bool(read_checkpoint(str(path), settings).get("hyper_parameters"))


def read_checkpoint(path: str, settings: Settings) -> Mapping[str, Any]:
    """Return the content of a checkpoint, empty where ``path`` is no file of this machine.

    Raises:
        UserError: there is no such file, or it is no checkpoint of Lightning's.
    """
    where = settings.place(("ckpt_path",))
    if path in OF_THIS_PROCESS:
        raise UserError(
            f"{path} names a checkpoint of this very run, which has none yet",
            where,
            "name a file, such as runs/<name>/latest/checkpoints/last.ckpt",
        )
    if path.startswith(NO_FILES) or "://" in path:
        return {}
    content = read_tensor_file(path, "checkpoint")
    if isinstance(content, Mapping) and "pytorch-lightning_version" in content:
        return content
    raise UserError(
        f"{path} holds weights alone, no checkpoint of a run" if content else f"{path} holds nothing",
        where,
        "give weights as --model.init_args.weights",
    )
