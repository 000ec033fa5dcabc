"""Checkpoint files that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from datamodules.files import sweep, whole_path


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoint files, written beside the target and then renamed.

    A full disk or a kill while one is written leaves the one before it in its place.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            UserError: the disk is full, or the file cannot be written for another reason.
        """
        if storage_options is not None or _is_remote(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with whole_path(path) as unfinished, unfinished.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):  # torch says "unexpected pos" where the disk is full
                    raise error.__context__ from None
                raise

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, loc: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, and remove what a killed run has left unfinished beside it."""
        if not _is_remote(path):
            sweep(Path(path).parent)
        return super().load_checkpoint(path, map_location, weights_only)


def _is_remote(path: str | Path) -> bool:
    return "://" in str(path)
