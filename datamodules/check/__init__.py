"""Check of a user's data: all mistakes in it, not only the first."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningDataModule

from datamodules.check.detection import check_detection
from datamodules.check.report import Report
from datamodules.check.segments import check_segments
from datamodules.detection import DetectionDataModule
from datamodules.errors import UserError
from datamodules.segments import SegmentDataModule


def check_data(
    datamodule: LightningDataModule, page: Path | None = None, page_clips: int = 12, every_frame: bool = False
) -> Report:
    """Read all annotation and open all videos of a DataModule.

    Its source is of no use for training afterwards: it has left out what is wrong.

    Args:
        datamodule: for detection, or for detection in time (of which no page is drawn).
        page: where the picture of clips with their boxes goes, see ``contact_sheet.py``; None draws none.
        page_clips: how many clips it shows at most.
        every_frame: decode every frame, not only the first and the last of each video.
    """
    if isinstance(datamodule, SegmentDataModule):
        return check_segments(datamodule, every_frame)
    if isinstance(datamodule, DetectionDataModule):
        return check_detection(datamodule, page, page_clips, every_frame)
    raise UserError(f"check looks through data for detection and for segments, not through {type(datamodule).__name__}")
