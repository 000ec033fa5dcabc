"""Records of annotated actions in time, and the base class of the sources that read them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.annotations.features import FeatureArray, FeatureFolder
from datamodules.annotations.mistakes import AbsentVideo, Mistake
from datamodules.annotations.source import Split, report_left_out
from datamodules.errors import UserError
from datamodules.video.picture_folder import PictureFolder, Video
from datamodules.video.source_files import VIDEO_ENDINGS

NO_SPANS = np.empty((0, 2), np.float64)
NO_CUTS = np.empty(0, np.int64)


class AnnotatedSegments(NamedTuple):
    """One untrimmed video and its n segments in order of time; none where nothing happens or is annotated."""

    video_id: str
    media: Video | FeatureArray | None
    """A video file, a folder of pictures or an array of features; None where only the annotation is there."""
    duration: float | None
    """Seconds; None where the annotation does not say."""
    segments: np.ndarray
    """(n, 2) float64, start and end in seconds from the start of the video; an end lies after its start."""
    labels: np.ndarray
    """(n,) int64 class ids."""
    ambiguous: np.ndarray = NO_SPANS
    """(m, 2) float64, spans that are annotated as ambiguous."""
    cuts: np.ndarray = NO_CUTS
    """(c,) int64, increasing: frames that begin another shot, as far as known; no motion leads to them."""


class SegmentSource:
    """A data set for temporal detection. Constructors touch no disk; ``prepare`` and ``videos`` do."""

    mistakes: list[Mistake] | None = None
    """List that collects what is left out; None warns instead."""

    def prepare(self) -> None:
        """Make or check what ``videos`` will read; called once, on one process. Idempotent."""

    def class_names(self) -> tuple[str, ...]:
        """Names of the K classes; a class id is a position in this tuple."""
        raise NotImplementedError

    def videos(self, split: Split) -> tuple[AnnotatedSegments, ...]:
        """The videos of a split in a fixed order; ``test`` is ``val`` where a data set has no third split."""
        raise NotImplementedError

    def evaluated_on(self) -> str:
        """Name of ``videos("test")`` beside a result."""
        raise NotImplementedError


class RawSegments(NamedTuple):
    """One video as an annotation file has it."""

    annotations: list[tuple[float, float, str]]
    """Start and end in seconds, and the class."""
    subset: str | None = None
    duration: float | None = None
    frame_rate: float | None = None
    """Frames a second."""
    ambiguous: tuple[tuple[float, float], ...] = ()


def annotated(
    origin: str | Path,
    raw: Mapping[str, RawSegments],
    class_names: Sequence[str],
    media: Mapping[str, Video | FeatureArray] | None,
    mistakes: list[Mistake] | None = None,
) -> tuple[AnnotatedSegments, ...]:
    """Turn what a file says into segments, in order of video names, and tell once what is odd about it.

    Segments that do not end after their start are left out. Segments that begin after the end of their video stay: no
    training window will show them, and published evaluators count them as missed.

    Args:
        origin: the annotation file, for messages.
        raw: its videos.
        class_names: names of the classes.
        media: where the videos are; those that are not there are left out. None for an annotation without videos.
        mistakes: where to put down what is left out instead of telling it.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    videos, empty = [], []
    for video_id, entry in sorted(raw.items()):
        if media is not None and video_id not in media:
            continue
        unknown = {label for *_, label in entry.annotations} - numbers.keys()
        if unknown:
            raise UserError(f"{video_id} has the class {min(unknown)!r}, which is not in the list of classes", origin)
        rows = sorted((start, end, numbers[label]) for start, end, label in entry.annotations)
        segments = np.asarray([row[:2] for row in rows], np.float64).reshape(-1, 2)
        if not np.isfinite(segments).all():
            raise UserError(f"a segment of {video_id} has no finite start and end", origin)
        lasting = segments[:, 1] > segments[:, 0]
        empty += [f"{video_id} at {start:g} s" for start, _ in segments[~lasting]]
        videos.append(
            AnnotatedSegments(
                video_id=video_id,
                media=None if media is None else media[video_id],
                duration=entry.duration,
                segments=segments[lasting],
                labels=np.asarray([row[2] for row in rows], np.int64)[lasting],
                ambiguous=np.asarray(sorted(entry.ambiguous), np.float64).reshape(-1, 2),
            )
        )
    absent = [] if media is None else sorted(raw.keys() - media.keys())
    report_left_out(origin, {f"of {len(raw)} videos are not on disk and are left out": absent}, mistakes, AbsentVideo)
    report_left_out(origin, {"segments do not end after their start and are left out": empty}, mistakes)
    if mistakes is None:  # who collects them looks at ends as well as starts (check)
        report_late(origin, videos)
    return tuple(videos)


def report_late(origin: str | Path, videos: Iterable[AnnotatedSegments]) -> None:
    """Say which videos have segments that begin after their end, as far as durations are known."""
    late = []
    for video in videos:
        beyond = 0 if video.duration is None else np.count_nonzero(video.segments[:, 0] >= video.duration)
        if beyond:
            late.append(f"{video.video_id} ({beyond} of {len(video.segments)}, ends at {video.duration:.2f} s)")
    what = (
        "videos have segments that begin after their end; no training window shows these, and evaluation counts them "
        "as missed, as ActionFormer and OpenTAD do"
    )
    report_left_out(origin, {what: late})


def find_media(
    videos: str | Path | None,
    features: FeatureFolder | None,
    raw: Mapping[str, RawSegments],
    picture_rate: float | None,
) -> dict[str, Video | FeatureArray] | None:
    """Return the file of each video by name; None where neither videos nor features are asked for.

    Args:
        videos: folder searched with its sub-folders, see ``find_videos``.
        features: folder of feature arrays; at most one of the two is given.
        raw: the videos to look for; durations and frame rates come from here.
        picture_rate: pictures per second of folders of pictures; None takes the annotation's frame rate.
    """
    if features is not None:
        found = {name: features.find(name, entry.duration, entry.frame_rate) for name, entry in raw.items()}
        places: dict[str, Video | FeatureArray] = {name: array for name, array in found.items() if array is not None}
    elif videos is not None:
        places = {}
        for name, path in find_videos(videos, raw).items():
            if path.is_dir():
                rate = picture_rate or raw[name].frame_rate
                if rate is None:
                    raise UserError("the annotation does not say how many pictures a second", path, "set picture_rate")
                places[name] = PictureFolder(path, rate)
            else:
                places[name] = path
    else:
        return None
    if raw and not places:
        folder = videos if features is None else features.folder
        raise UserError(f"holds none of {len(raw)} annotated videos, {min(raw)} for instance", folder)
    return places


def find_videos(folder: str | Path, names: Collection[str]) -> dict[str, Path]:
    """The file or the folder of pictures of each video, at any depth; it may be called ``v_<name>`` as well.

    Folders that are a video themselves are not looked into: they may hold many thousands of pictures. Each folder is
    read once, even if links lead back to it.

    Raises:
        UserError: no such folder, or two videos of one name.
    """
    if not Path(folder).is_dir():
        raise UserError("no such folder of videos, or of folders of pictures", folder)
    wanted = {prefix + name: name for prefix in ("v_", "") for name in names}
    found: dict[str, Path] = {}
    visited: set[tuple[int, int]] = set()
    for here, folders, files in os.walk(folder, followlinks=True):
        facts = os.stat(here)
        if (facts.st_dev, facts.st_ino) in visited:
            folders.clear()
            continue
        visited.add((facts.st_dev, facts.st_ino))
        for name in [name for name in sorted(folders) if name in wanted]:
            folders.remove(name)
            _add_video(found, wanted[name], Path(here, name))
        for file in sorted(files):
            name, ending = os.path.splitext(file)
            if name in wanted and ending.lower() in VIDEO_ENDINGS:
                _add_video(found, wanted[name], Path(here, file))
    return found


def _add_video(found: dict[str, Path], name: str, path: Path) -> None:
    earlier = found.setdefault(name, path)
    if earlier is not path and earlier.resolve() != path.resolve():
        raise UserError(f"the video {name!r} is there twice, as {earlier} too", path, "rename or take away one of them")


def check_places(videos: str | Path | None, features: FeatureFolder | None) -> None:
    """The arguments of a source that say where its videos are."""
    if videos is not None and features is not None:
        raise UserError(f"a data set is read from videos={videos} or from features={features.folder}, not from both")
