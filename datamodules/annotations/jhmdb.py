"""JHMDB-21: trimmed videos of one person and one action, every frame annotated (Jhuang et al., ICCV 2013)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from datamodules.annotations.pickles.safe_pickle import load_pickle
from datamodules.annotations.tubes import GroundTruthPickle, TubeFile, TubeSource
from datamodules.errors import UserError


class JHMDB(TubeSource):
    """928 videos of 15 to 40 frames, 21 classes, three splits. Published results are the mean over the three.

    Train and test once with each ``split``, then ``python -m callbacks.benchmark.split_mean`` averages the three rows.

    Args:
        videos: see ``TubeSource``: ``Frames/<class>/<video>/00001.png``, ``rgb-images/...`` or
            ``<class>/<video>.avi``, of any frame size.
        annotations: ``JHMDB-GT.pkl``, which has the splits too.
        split: number of the split, 1 to 3.
        every_frame: see ``TubeSource``.
        frame_rate: see ``TubeSource``.
    """

    def __init__(
        self,
        videos: str | Path,
        annotations: str | Path,
        split: Literal[1, 2, 3] = 1,
        every_frame: bool = True,
        frame_rate: float = 30.0,
    ) -> None:
        super().__init__(videos, annotations, every_frame, frame_rate)
        if split not in (1, 2, 3):
            raise UserError(f"split must be 1, 2 or 3, got {split}")
        self.split = split

    def _open(self) -> TubeFile:
        file = GroundTruthPickle(self.annotations, load_pickle(self.annotations))
        if len(file.splits) < self.split:
            raise UserError(f"has {len(file.splits)} splits, asked for split {self.split}", self.annotations)
        return file

    def _split(self, split: str) -> set[str]:
        train, test = self._opened().splits[self.split - 1]
        return set(train if split == "train" else test)
