"""Sources with fewer labels than another source has: to measure what a teacher adds where labels are rare."""

from __future__ import annotations

import math
from pathlib import Path
from zlib import crc32

import numpy as np

from datamodules.annotations.mistakes import Mistake
from datamodules.annotations.source import AnnotatedVideo, DetectionSource, Split
from datamodules.errors import UserError
from datamodules.video.picture_folder import path_of
from datamodules.video.source_files import files_of


class WrappedSource(DetectionSource):
    """Base of sources that change the training videos of another one; everything else is the other's."""

    def __init__(self, source: DetectionSource) -> None:
        self.source = source

    @property
    def start_seconds(self) -> float:
        return self.source.start_seconds

    @property
    def mistakes(self) -> list[Mistake] | None:
        return self.source.mistakes

    @mistakes.setter
    def mistakes(self, mistakes: list[Mistake] | None) -> None:
        self.source.mistakes = mistakes

    def prepare(self) -> None:
        self.source.prepare()

    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names()

    def evaluated_classes(self) -> tuple[int, ...] | None:
        return self.source.evaluated_classes()

    def videos(self, split: Split) -> tuple[AnnotatedVideo, ...]:
        videos = self.source.videos(split)
        return self._training_videos(videos) if split == "train" else videos

    def _training_videos(self, videos: tuple[AnnotatedVideo, ...]) -> tuple[AnnotatedVideo, ...]:
        raise NotImplementedError


class FewLabels(WrappedSource):
    """Keep some of another source's training labels; videos stay, those of other splits as they are.

    The choice depends on the seed and the names of the videos alone. Of one seed, a smaller share of labelled videos is
    part of a larger one.

    Args:
        source: the other one.
        every: one of so many annotated moments of a video keeps its labels, from a random one of the first so many on.
        labelled_videos: share of the training videos that keep labels at all, at least one video.
        seed: seed of both choices.
    """

    def __init__(self, source: DetectionSource, every: int = 1, labelled_videos: float = 1.0, seed: int = 0) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        if not 0 < labelled_videos <= 1:
            raise ValueError(f"labelled_videos is a share above 0 and at most 1, got {labelled_videos}")
        super().__init__(source)
        self.every, self.labelled_videos, self.seed = every, labelled_videos, seed

    def _training_videos(self, videos: tuple[AnnotatedVideo, ...]) -> tuple[AnnotatedVideo, ...]:
        draws = [np.random.default_rng([self.seed, crc32(video.video_id.encode())]) for video in videos]
        places = [(draw.random(), video.video_id) for draw, video in zip(draws, videos, strict=True)]
        firsts = [int(draw.integers(self.every)) for draw in draws]
        with_labels = [place for place, video in zip(places, videos, strict=True) if video.keyframes]
        kept = set(sorted(with_labels)[: max(1, math.floor(self.labelled_videos * len(with_labels) + 0.5))])
        return tuple(
            video._replace(keyframes=video.keyframes[first :: self.every] if place in kept else ())
            for video, place, first in zip(videos, places, firsts, strict=True)
        )


class WithUnlabelled(WrappedSource):
    """Add videos without labels to another source's training videos.

    Args:
        source: the other one.
        folder: what it holds, at any depth, is added under its path in the folder, but for videos with labels.
    """

    def __init__(self, source: DetectionSource, folder: str | Path) -> None:
        super().__init__(source)
        self.folder = Path(folder)

    def _training_videos(self, videos: tuple[AnnotatedVideo, ...]) -> tuple[AnnotatedVideo, ...]:
        labelled = {path_of(video.path).resolve() for video in videos}
        files = files_of(str(self.folder), picture_rate=30.0)
        added = tuple(AnnotatedVideo(name, path, ()) for name, path in files if path_of(path).resolve() not in labelled)
        both = sorted({video.video_id for video in videos} & {video.video_id for video in added})
        if both:
            raise UserError(
                f"has {len(both)} videos named as those with labels: {', '.join(both[:5])}",
                where=self.folder,
                remedy="rename them, or take them out of the folder if they are the same",
            )
        return videos + added
