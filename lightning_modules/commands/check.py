"""The command ``check``: mistakes in the data that a config names."""

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
    """Check the data that a config names, draw some of it, and report every mistake.

    The exit status is 1 if there are mistakes.

    Args:
        page: file for the picture of clips with their boxes.
        page_clips: largest number of clips in the picture.
        every_frame: decode every frame, not only the first and the last of each video.
        names_shown: number of lines or videos that are named for each kind of mistake.
        ckpt_path, weights_only: not used; accepted so that a run's ``config.yaml``, which has them, can be given.
    """
    report = check_data(datamodule, page, page_clips, every_frame)
    print(report.text(names_shown))
    if report.mistakes:
        sys.exit(1)
