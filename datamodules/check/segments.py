"""A look through the data of an experiment on actions in time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datamodules.annotations.features import FeatureArray, num_features, read_features
from datamodules.annotations.mistakes import Mistake
from datamodules.annotations.segment_source import AnnotatedSegments
from datamodules.check.report import Report, remark_on_absent_videos, remark_on_classes
from datamodules.check.videos import in_train_and_elsewhere, open_video, splits_of
from datamodules.errors import UserError
from datamodules.frames.store import DecodedFrames, FrameStore
from datamodules.sampling.segment_windows import SteppedVideo
from datamodules.sampling.windows import LATE_SECONDS
from datamodules.segments import SegmentDataModule, check_features


def check_segments(datamodule: SegmentDataModule, every_frame: bool) -> Report:
    """Read all annotation, open all videos or arrays of features; arguments as of ``check_data``."""
    source = datamodule.source
    source.mistakes = []
    source.prepare()
    report = Report(type(source).__name__, source.class_names(), mistakes=source.mistakes)
    store = DecodedFrames(datamodule.store.scale)  # a cache would be filled first
    files: dict[str, dict[str, object]] = {}
    for split, videos in splits_of(source, report):
        files[split] = {video.video_id: video.media or video.video_id for video in videos}
        _judge(split, videos, datamodule, store, report, every_frame)
    report.mistakes += in_train_and_elsewhere(files)
    remark_on_absent_videos(report)
    remark_on_classes(report)
    return report


def _judge(
    split: str,
    videos: Sequence[AnnotatedSegments],
    datamodule: SegmentDataModule,
    store: FrameStore,
    report: Report,
    every_frame: bool,
) -> None:
    from tqdm import tqdm

    labels, steps, count = np.zeros(len(report.class_names), np.int64), 0, 0
    of_features: list[tuple[AnnotatedSegments, SteppedVideo]] = []
    for video in tqdm(videos, desc=f"{split} videos", unit="video", leave=False):
        labels += np.bincount(video.labels, minlength=len(labels))
        count += len(video.segments)
        known = len(report.mistakes)
        duration, length = _open(video, store, report, every_frame)
        steps += length
        if len(report.mistakes) == known:  # what can be opened may still be refused by training
            try:
                stepped = datamodule.stepped(video, store)
                if stepped.frames is None:
                    of_features.append((video, stepped))
            except UserError as error:
                report.mistakes.append(Mistake("videos that training refuses", str(error)))
        if duration is not None:
            report.mistakes += _outside(video, duration)
    if of_features:
        try:
            check_features(*zip(*of_features, strict=True))
        except UserError as error:
            report.mistakes.append(Mistake("features that training refuses", str(error)))
    report.labels[split] = labels
    report.counts[split] = {"videos": len(videos), "frames or features": steps, "segments": count}
    if count == 0:
        report.mistakes.append(
            Mistake(
                "splits without segments",
                split,
                f"{len(videos)} videos",
                "compare the names in the annotation, in the lists of videos and on disk",
            )
        )


def _open(video: AnnotatedSegments, store: FrameStore, report: Report, every_frame: bool) -> tuple[float | None, int]:
    """Return a video's length in seconds, None where unknown, and in frames or features."""
    if video.media is None:
        return video.duration, 0
    if isinstance(video.media, FeatureArray):
        try:
            length = num_features(video.media)
            if every_frame:
                read_features(video.media, 0, length)
            return video.duration, length
        except ValueError as error:
            report.mistakes.append(Mistake("features that cannot be read", str(error)))
            return video.duration, 0
    facts = open_video(video.media, store, every_frame, report.mistakes)
    return (video.duration, 0) if facts is None else (float(facts.times[-1]), len(facts.times))


def _outside(video: AnnotatedSegments, duration: float) -> list[Mistake]:
    """Return one mistake for the video, if segments lie outside it."""
    outside = (video.segments[:, 0] < 0) | (video.segments[:, 1] > duration + LATE_SECONDS)
    if not outside.any():
        return []
    start, end = video.segments[outside][0]
    return [
        Mistake(
            "videos with segments outside them",
            video.video_id,
            f"{outside.sum()} of {len(outside)}, such as {start:.2f} s to {end:.2f} s, but it ends at {duration:.2f} s",
            "segments are in seconds from the start of the video; is it another cut of it?",
        )
    ]
