"""Checks of videos that need no annotation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from datamodules.annotations.mistakes import UNREADABLE, Mistake
from datamodules.annotations.segment_source import AnnotatedSegments, SegmentSource
from datamodules.annotations.source import AnnotatedVideo, DetectionSource, Split, shared_videos
from datamodules.check.report import Report
from datamodules.errors import UserError
from datamodules.frames.store import FrameFacts, FrameStore
from datamodules.video.listing import VideoError
from datamodules.video.picture_folder import PictureListing, Video
from datamodules.video.readers import list_video

DECODED_AT_ONCE = 32


def splits_of(
    source: DetectionSource | SegmentSource, report: Report
) -> Iterator[tuple[Split, Sequence[AnnotatedVideo] | Sequence[AnnotatedSegments]]]:
    """The splits that there are; ``test`` only where it is not ``val``."""
    evaluated: set[str] | None = None
    for split in ("train", "val", "test"):
        try:
            videos = source.videos(split)
        except UserError as error:
            # A third split is an extra; the first two are needed.
            if split != "test":
                report.mistakes.append(Mistake("splits that cannot be read", split, str(error)))
            continue
        names = {video.video_id for video in videos}
        if split != "test" or names != evaluated:
            yield split, videos
        evaluated = names if split == "val" else evaluated


def open_video(video: Video, store: FrameStore, every_frame: bool, mistakes: list[Mistake]) -> FrameFacts | None:
    """Look at a video and decode as much of it as tells whether it can be; None where it cannot."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            facts = store.facts(video)
            wanted = np.arange(len(facts.times)) if every_frame else np.asarray([0, len(facts.times) - 1])
            for start in range(0, len(wanted), DECODED_AT_ONCE):
                store.get(video, wanted[start : start + DECODED_AT_ONCE])
        except VideoError as error:
            mistakes.append(Mistake(UNREADABLE, str(error)))
            return None
    listing = list_video(video)
    if isinstance(listing, PictureListing):
        mistakes += _missing_pictures(video, listing)
        unreadable = {str(warning.message) for warning in told if "no readable picture" in str(warning.message)}
        mistakes += [Mistake("pictures that cannot be read", text) for text in sorted(unreadable)]
    return facts


def _missing_pictures(video: Video, listing: PictureListing) -> list[Mistake]:
    """Return one mistake for the folder, if pictures are missing."""
    numbers = np.flatnonzero(~listing.present) + min(1, int(listing.numbers[0]))
    if not len(numbers):
        return []
    shown = ", ".join(map(str, numbers[:5])) + (" ..." if len(numbers) > 5 else "")
    return [
        Mistake(
            "folders with missing pictures",
            str(video),
            f"{len(numbers)} of {len(listing.present)}, the numbers {shown}",
            "the picture before is shown instead; cut the video into pictures again",
        )
    ]


def in_train_and_elsewhere(files: Mapping[str, Mapping[str, object]]) -> list[Mistake]:
    """Videos of ``train`` that another split has too, by name or by file; of each split name -> file."""
    return [
        Mistake(
            f"videos in both train and {split}",
            name,
            str(of_split[name]),
            "what is trained on must not be evaluated on; take them out of one of the lists",
        )
        for split, of_split in files.items()
        if split != "train"
        for name in shared_videos(files.get("train", {}), of_split)
    ]
