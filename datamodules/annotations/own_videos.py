"""Your own videos: a folder of them, and one csv in AVA's column order."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath

import numpy as np

from datamodules.annotations.ava_csv import BoxUnits, read_ava_csv
from datamodules.annotations.mistakes import UNREADABLE, Mistake, keep
from datamodules.annotations.places import only_video
from datamodules.annotations.source import AnnotatedVideo, DetectionSource, Split, report_left_out
from datamodules.errors import UserError
from datamodules.text_files import read_class_list, read_lines
from datamodules.video.listing import VideoError, list_frames
from datamodules.video.source_files import VIDEO_ENDINGS, is_video_file

CLASS_NUMBER = re.compile(rf"({'|'.join(map(re.escape, sorted(VIDEO_ENDINGS)))}) \d+$", re.IGNORECASE)
"""Text that UCF101's lists put after the name of a file."""


class OwnVideos(DetectionSource):
    """A folder of videos and one csv.

    Args:
        videos: folder, searched with all its sub-folders; a file belongs to the csv's video of the same name.
        classes: text file with one class name per line; line n is action id n.
        annotations: csv as ``read_ava_csv`` reads it; None for videos that are only to be predicted on.
        train: training videos: their names, or a text file with one name per line. Folders and endings before and after
            a name do not matter, and lists of frames (``labels/Class/video/00001.txt``, as YOWO has) will do.
        val: the same for evaluation. If only one of the two is given, the other takes the rest.
        val_fraction: share of the videos to evaluate on if neither is given; the choice depends on their names alone.
        box_units: ``relative`` for fractions of the frame, ``absolute`` for pixels.
        start_seconds: time in the csv at which the files begin; 900 for AVA's movies cut to 15 minutes.
    """

    def __init__(
        self,
        videos: str | Path,
        classes: str | Path,
        annotations: str | Path | None = None,
        train: list[str] | str | Path | None = None,
        val: list[str] | str | Path | None = None,
        val_fraction: float = 0.2,
        box_units: BoxUnits = "relative",
        start_seconds: float = 0.0,
    ) -> None:
        if box_units not in ("relative", "absolute"):
            raise UserError(f"box_units must be relative or absolute, got {box_units!r}")
        if not 0 <= val_fraction <= 1:
            raise UserError(f"val_fraction must be from 0 to 1, got {val_fraction}")
        self.folder = Path(videos)
        self.classes = Path(classes)
        self.annotations = None if annotations is None else Path(annotations)
        self.train, self.val = train, val
        self.val_fraction = val_fraction
        self.box_units = box_units
        self.start_seconds = start_seconds
        self._class_names: tuple[str, ...] = ()
        self._all: dict[str, AnnotatedVideo] | None = None
        self._names: set[str] = set()
        """Names of all files, annotated or not."""
        self._parts: tuple[set[str], set[str]] | None = None
        """Names for training and for evaluation."""

    def prepare(self) -> None:
        """Read everything once, so that mistakes are reported before anything else happens."""
        self._read()

    def class_names(self) -> tuple[str, ...]:
        if not self._class_names:
            self._class_names = read_class_list(self.classes)
        return self._class_names

    def videos(self, split: Split) -> tuple[AnnotatedVideo, ...]:
        everything = self._read()
        if self._parts is None:
            self._parts = self._split(everything)
        train, val = self._parts
        chosen = train if split == "train" else val
        if not chosen and everything and self.train is None and self.val is None and 0 < self.val_fraction < 1:
            raise self._nothing_left(split, len(everything))
        return tuple(video for name, video in everything.items() if name in chosen)

    def _nothing_left(self, split: Split, count: int) -> UserError:
        """Explain that too few videos were divided into two parts."""
        use = "train" if split == "train" else "validate"
        drawn = f"val_fraction={self.val_fraction:g} of {count} videos leaves none to {use} on"
        remedy = f"set val_fraction to {1 / count:.2g}, or name the videos in train and val"
        if count == 1:
            remedy = (
                "annotate a second one; val_fraction=0 with --trainer.limit_val_batches 0 trains on it alone, "
                "val_fraction=1 evaluates on it"
            )
        return UserError(drawn, self.annotations or self.folder, remedy)

    def _read(self) -> dict[str, AnnotatedVideo]:
        """All videos by name, in order of names."""
        if self._all is None:
            files = self._files()
            self._names = set(files)
            if self.annotations is None:
                self._all = {
                    name: AnnotatedVideo(name, only_video(name, paths), ()) for name, paths in sorted(files.items())
                }
            else:
                self._all = self._annotated(files)
        return self._all

    def _files(self) -> dict[str, list[Path]]:
        if not self.folder.is_dir():
            raise UserError("no such folder of videos", self.folder)
        files: dict[str, list[Path]] = {}
        for path in sorted(self.folder.rglob("*")):
            if is_video_file(path):
                files.setdefault(path.stem, []).append(path)
        if not files:
            raise UserError(f"holds no video ({', '.join(sorted(VIDEO_ENDINGS))})", self.folder)
        return files

    def _annotated(self, files: dict[str, list[Path]]) -> dict[str, AnnotatedVideo]:
        read = read_ava_csv(self.annotations, self.class_names(), self.box_units, mistakes=self.mistakes)
        absent = sorted(name for name in read if video_name(name, files) not in files)
        if absent and self.mistakes is None:
            raise UserError(
                f"names {len(absent)} videos of {len(read)} that are not under {self.folder}: "
                f"{', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}",
                self.annotations,
            )
        videos: dict[str, AnnotatedVideo] = {}
        for written, keyframes in sorted(read.items()):
            name = video_name(written, files)
            try:
                if name not in files:
                    raise Mistake("annotated videos that are not there", name, f"not under {self.folder}")
                if name in videos:
                    raise Mistake(
                        "videos named in two ways",
                        str(self.annotations),
                        f"names {name} in two ways, one is {written!r}",
                    )
                path = only_video(name, files[name])
                scale = self._box_scale(path)
            except Mistake as mistake:
                keep(mistake, self.mistakes)
                continue
            except VideoError as error:
                if self.mistakes is not None:
                    self.mistakes.append(Mistake(UNREADABLE, str(error)))
                    continue
                scale = np.ones(4, np.float32)  # its boxes are of no use: who opens it finds the same, and decides
            videos[name] = AnnotatedVideo(
                name,
                path,
                tuple(
                    keyframe._replace(timestamp=keyframe.timestamp - self.start_seconds, boxes=keyframe.boxes / scale)
                    for keyframe in keyframes
                ),
            )
        return videos

    def _box_scale(self, path: Path) -> np.ndarray:
        """(4,) what the corners of this video's boxes are divided by."""
        if self.box_units == "relative":
            return np.ones(4, np.float32)
        listing = list_frames(path)
        return np.asarray([listing.width, listing.height] * 2, np.float32)

    def _split(self, everything: dict[str, AnnotatedVideo]) -> tuple[set[str], set[str]]:
        """Names for training and for evaluation."""
        self._tell_of_strangers(everything)
        train, val = named_videos(self.train, everything), named_videos(self.val, everything)
        if train is None and val is None:
            # By digest: the choice looks random, and is the same on every machine.
            order = sorted(everything, key=lambda name: hashlib.sha256(name.encode()).digest())
            val = set(order[: round(self.val_fraction * len(order))])
        if train is None:
            return everything.keys() - val, val
        if val is None:
            return train, everything.keys() - train
        if train & val and self.mistakes is None:
            raise UserError(f"videos in both train and val: {', '.join(sorted(train & val)[:5])}")
        return train, val

    def _tell_of_strangers(self, everything: Collection[str]) -> None:
        """Warn once of names in ``train`` and ``val`` of videos that are not there: a misspelt one is in the rest.

        Official lists name more videos than most people have, so this is no error.
        """
        there = {*everything, *self._names}
        for key, given in (("train", self.train), ("val", self.val)):
            if given is not None:
                place = f"data.source.{key}" if isinstance(given, list) else given
                strangers = sorted(_listed_names(given, there) - there)
                report_left_out(place, {f"listed videos are not under {self.folder} and are passed over": strangers})


def video_name(written: str, names: Collection[str] = ()) -> str:
    """Return the name of a video without folders and ending, nor the class number that UCF101's lists put after them.

    >>> video_name("Basketball/v_Basketball_g07_c04.avi 1"), video_name("labels/Biking/v_Biking_g01_c01/00012.txt")
    ('v_Basketball_g07_c04', 'v_Biking_g01_c01')

    Args:
        written: what a list or a csv calls it.
        names: those of the videos that there are; one that is written as it is needs no reading.
    """
    written = written.strip()
    if written in names:
        return written
    path = PurePosixPath(CLASS_NUMBER.sub(r"\1", written.replace("\\", "/")))
    if path.stem.isdigit() and path.suffix.lower() in {".txt", ".jpg", ".png"}:
        return path.parent.name  # a frame
    return path.stem if path.suffix.lower() in VIDEO_ENDINGS else path.name


def named_videos(given: list[str] | str | Path | None, everything: Collection[str]) -> set[str] | None:
    """Return the videos that a list or a list file names; names of videos that are not here are passed over."""
    if given is None:
        return None
    names = _listed_names(given, everything)
    known = names & set(everything)
    if not known:
        raise UserError(
            f"names no annotated video; it has {', '.join(sorted(names)[:3]) or 'no lines'}, the data has "
            f"{', '.join(list(everything)[:3]) or 'none'}",
            "the list of videos" if isinstance(given, list) else given,
        )
    return known


def _listed_names(given: list[str] | str | Path, everything: Collection[str]) -> set[str]:
    lines = given if isinstance(given, list) else read_lines(given, "list of videos")
    return {video_name(line, everything) for line in lines if line.strip()}
