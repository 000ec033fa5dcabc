"""Your own videos: a folder of them, and one csv in AVA's column order."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from datamodules.annotations.ava_csv import BoxUnits, read_ava_csv
from datamodules.annotations.mistakes import UNREADABLE, Mistake, keep
from datamodules.annotations.source import AnnotatedVideo, DetectionSource, Split
from datamodules.video_listing import VideoError, list_frames

VIDEO_ENDINGS = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".ts"})


class OwnVideos(DetectionSource):
    """A folder of videos and one csv.

    Args:
        videos: folder, searched with all its sub-folders; a file belongs to the csv's video of the same name.
        classes: text file with one class name a line; line n is action id n.
        annotations: csv as ``read_ava_csv`` reads it; None for videos that are only to be predicted on.
        train: training videos: their names, or a text file with one name a line. Folders and endings before and after
            a name do not matter, and lists of frames (``labels/Class/video/00001.txt``, as YOWO has) will do.
        val: likewise for evaluation. Where only one of the two is given, the other takes the rest.
        val_fraction: share of the videos to evaluate on if neither is given; the choice depends on their names alone.
        box_units: ``relative`` for fractions of the frame, ``absolute`` for pixels.
        start_seconds: what the csv calls the moment at which the files begin; 900 for AVA's movies cut to 15 minutes.
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
            raise ValueError(f"box_units must be relative or absolute, got {box_units!r}")
        self.folder = Path(videos)
        self.classes = Path(classes)
        self.annotations = None if annotations is None else Path(annotations)
        self.train, self.val = train, val
        self.val_fraction = val_fraction
        self.box_units = box_units
        self.start_seconds = start_seconds
        self._class_names: tuple[str, ...] = ()
        self._all: dict[str, AnnotatedVideo] | None = None

    def prepare(self) -> None:
        """Read everything once, so that mistakes are reported before anything else happens."""
        self._read()

    def class_names(self) -> tuple[str, ...]:
        if not self._class_names:
            if not self.classes.is_file():
                raise FileNotFoundError(f"{self.classes}: no such file; it holds one class name a line")
            lines = self.classes.read_text(encoding="utf-8-sig").rstrip().splitlines()
            if not lines:
                raise ValueError(f"{self.classes} is empty; it must hold one class name a line")
            empty = [number for number, line in enumerate(lines, start=1) if not line.strip()]
            if empty:
                raise ValueError(f"{self.classes}, line {empty[0]} is empty; line n names action id n")
            self._class_names = tuple(line.strip() for line in lines)
        return self._class_names

    def videos(self, split: Split) -> tuple[AnnotatedVideo, ...]:
        everything = self._read()
        train, val = self._split(everything)
        chosen = train if split == "train" else val
        return tuple(video for name, video in everything.items() if name in chosen)

    def _read(self) -> dict[str, AnnotatedVideo]:
        """All videos by name, in order of names."""
        if self._all is None:
            files = self._files()
            if self.annotations is None:
                self._all = {name: AnnotatedVideo(name, _only(paths), ()) for name, paths in sorted(files.items())}
            else:
                self._all = self._annotated(files)
        return self._all

    def _files(self) -> dict[str, list[Path]]:
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder}: no such folder of videos")
        files: dict[str, list[Path]] = {}
        for path in sorted(self.folder.rglob("*")):
            if path.suffix.lower() in VIDEO_ENDINGS and not path.name.startswith("."):
                files.setdefault(path.stem, []).append(path)
        if not files:
            raise FileNotFoundError(f"{self.folder} holds no video ({', '.join(sorted(VIDEO_ENDINGS))})")
        return files

    def _annotated(self, files: dict[str, list[Path]]) -> dict[str, AnnotatedVideo]:
        read = read_ava_csv(self.annotations, self.class_names(), self.box_units, mistakes=self.mistakes)
        absent = sorted(name for name in read if video_name(name) not in files)
        if absent and self.mistakes is None:
            raise FileNotFoundError(
                f"{self.annotations} names {len(absent)} videos of {len(read)} that are not under {self.folder}: "
                f"{', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}"
            )
        videos: dict[str, AnnotatedVideo] = {}
        for written, keyframes in sorted(read.items()):
            name = video_name(written)
            try:
                if name not in files:
                    raise Mistake("annotated videos that are not there", name, f"not under {self.folder}")
                if name in videos:
                    raise Mistake(
                        "videos named in two ways",
                        str(self.annotations),
                        f"names {name} in two ways, one is {written!r}",
                    )
                path = _only(files[name])
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
            raise ValueError(f"videos in both train and val: {', '.join(sorted(train & val)[:5])}")
        return train, val


def video_name(written: str) -> str:
    """The name of a video without folders and ending, nor the class number that UCF101's lists put after them.

    >>> video_name("Basketball/v_Basketball_g07_c04.avi 1"), video_name("labels/Biking/v_Biking_g01_c01/00012.txt")
    ('v_Basketball_g07_c04', 'v_Biking_g01_c01')
    """
    path = PurePosixPath(re.sub(r"(\.\w+) \d+$", r"\1", written.strip()))
    if path.stem.isdigit() and path.suffix.lower() in {".txt", ".jpg", ".png"}:
        return path.parent.name  # a frame
    return path.stem if path.suffix.lower() in VIDEO_ENDINGS else path.name


def named_videos(given: list[str] | str | Path | None, everything: Collection[str]) -> set[str] | None:
    """The videos that a list or a list file names; names of videos that are not here are passed over."""
    if given is None:
        return None
    if isinstance(given, list):
        lines, origin = given, "the list of videos"
    else:
        if not Path(given).is_file():
            raise FileNotFoundError(f"{given}: no such list of videos")
        lines, origin = Path(given).read_text(encoding="utf-8-sig").splitlines(), str(given)
    names = {video_name(line) for line in lines if line.strip()}
    known = names & set(everything)
    if not known:
        raise ValueError(
            f"{origin} names no annotated video; it has {', '.join(sorted(names)[:3]) or 'no lines'}, "
            f"the data has {', '.join(list(everything)[:3])}"
        )
    return known


def _only(paths: Sequence[Path]) -> Path:
    if len(paths) > 1:
        raise Mistake(
            "annotated videos whose name several files have",
            paths[0].stem,
            f"several videos are called {paths[0].stem}: {', '.join(map(str, paths))}",
        )
    return paths[0]
