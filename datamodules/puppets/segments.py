"""Puppets as a data set for temporal detection: when somebody in the video does what."""

from __future__ import annotations

from pathlib import Path

from datamodules.annotations.activitynet import read_segment_json
from datamodules.annotations.segment_source import AnnotatedSegments, SegmentSource, annotated
from datamodules.annotations.source import Split
from datamodules.puppets.actions import CLASS_NAMES
from datamodules.puppets.source import Puppets, Size


class PuppetSegments(SegmentSource):
    """The videos of ``Puppets``, which it makes, with the segments that are written beside them.

    Args:
        root, size, seed: as of ``Puppets``.
    """

    def __init__(self, root: str | Path = "data/puppets", size: Size = "small", seed: int = 0) -> None:
        self.puppets = Puppets(root, size, seed)

    def prepare(self) -> None:
        self.puppets.prepare()

    def class_names(self) -> tuple[str, ...]:
        return CLASS_NAMES

    def videos(self, split: Split) -> tuple[AnnotatedSegments, ...]:
        media = {video.video_id: video.path for video in self.puppets.videos(split)}
        file = self.puppets.folder / f"{'val' if split == 'test' else split}_segments.json"
        return annotated(file, read_segment_json(file), CLASS_NAMES, media, self.mistakes)

    def evaluated_on(self) -> str:
        return f"Puppets {self.puppets.size}, validation"
