"""The command ``check``: a look through the data that a config names."""

from __future__ import annotations

import sys
from pathlib import Path

from lightning.pytorch import LightningDataModule, Trainer

from datamodules.check import check_data


def check(
    trainer: Trainer,
    model: None,
    datamodule: LightningDataModule,
    page: Path = Path("runs/check.png"),
    page_clips: int = 12,
    every_frame: bool = False,
    names_shown: int = 10,
    ckpt_path: str | None = None,
    weights_only: bool | None = None,
) -> None:
    """Look through the data that a config names, draw some of it, and say what is wrong.

    The exit status is 1 where something is.

    Args:
        page: where the picture of clips with their boxes goes.
        page_clips: how many clips it shows at most.
        every_frame: decode every frame, not only the first and the last of each video.
        names_shown: how many lines or videos are named for each kind of mistake.
        ckpt_path, weights_only: not used; a run's ``config.yaml``, which has them, can be given as it is.
    """
    report = check_data(datamodule, page, page_clips, every_frame)
    print(report.text(names_shown))
    if report.mistakes:
        sys.exit(1)
