"""Puppets as a data set for temporal detection: the actions in a video, and their times."""

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
        train_videos: only so many of the training videos, the first; None takes all. With ``full`` and 96 a detector
            learns from what ``small`` has, and is evaluated on four times as much.
    """

    def __init__(
        self,
        root: str | Path = "data/puppets",
        size: Size = "small",
        seed: int = 0,
        train_videos: int | None = None,
    ) -> None:
        if train_videos is not None and train_videos < 1:
            raise ValueError(f"train_videos must be at least 1, got {train_videos}")
        self.puppets = Puppets(root, size, seed)
        self.train_videos = train_videos

    def prepare(self) -> None:
        self.puppets.prepare()

    def class_names(self) -> tuple[str, ...]:
        return CLASS_NAMES

    def videos(self, split: Split) -> tuple[AnnotatedSegments, ...]:
        videos = self.puppets.videos(split)[: self.train_videos if split == "train" else None]
        media = {video.video_id: video.path for video in videos}
        file = self.puppets.folder / f"{'val' if split == 'test' else split}_segments.json"
        raw = {name: entry for name, entry in read_segment_json(file).items() if name in media}
        return annotated(file, raw, CLASS_NAMES, media, self.mistakes)

    def evaluated_on(self) -> str:
        return f"Puppets {self.puppets.size}, validation"
