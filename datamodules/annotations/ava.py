"""Annotations in AVA's column order, and with them your own videos.

One row a box and action, no header needed::

    video,seconds,x1,y1,x2,y2,action_id,person_id
    kitchen_01,12.5,0.21,0.10,0.48,0.95,3,0

Corners are fractions of the frame, action ids count from 1. The person id may be left out.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from datamodules.annotations.source import AnnotatedVideo, DetectionSource, Keyframe, Split
from datamodules.video_listing import list_frames

BoxUnits = Literal["relative", "absolute"]
VIDEO_ENDINGS = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".ts"})
LARGEST_FRACTION = 1.5
"""Boxes may stick out of the frame a little; beyond this they must be pixels."""


def read_ava_csv(
    path: str | Path,
    class_names: Sequence[str],
    box_units: BoxUnits = "relative",
) -> dict[str, tuple[Keyframe, ...]]:
    """Read the keyframes of every video named in a csv, in order of time.

    A row has 8 columns, or 7 without the person id. Rows with the same video, time, box and person are one box with
    several actions. An empty action id is a box without action. A row of two columns (video, seconds) is an annotated
    moment without boxes. The first row may be a header.

    Args:
        path: the csv file.
        class_names: names of the K classes; action id n is the n-th of them, from 1.
        box_units: what the file holds. Boxes are returned as they are written: a Keyframe with absolute boxes still has
            to be divided by the size of its video.
    """
    path = Path(path)
    moments: dict[str, dict[float, dict[tuple[str, ...], set[int]]]] = {}
    try:
        file = path.open(newline="", encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such annotation file") from None
    with file:
        for line, row in enumerate(csv.reader(file), start=1):
            row = [cell.strip() for cell in row]
            if not any(row) or (line == 1 and _is_header(row)):
                continue
            if len(row) not in (2, 7, 8):
                raise ValueError(
                    f"{path}, line {line}: {len(row)} columns, expected video,seconds,x1,y1,x2,y2,action_id[,person_id]"
                )
            seconds = _number(path, line, "seconds", row[1])
            boxes = moments.setdefault(row[0], {}).setdefault(seconds, {})
            if len(row) == 2:
                continue
            person = (*row[2:6], *row[7:])
            if person not in boxes:
                _check_box(path, line, row[2:6], box_units)
                boxes[person] = set()
            if row[6]:
                boxes[person].add(_class_index(path, line, row[6], len(class_names)))
    return {
        video: tuple(
            Keyframe(seconds, *_box_arrays(boxes, len(class_names))) for seconds, boxes in sorted(times.items())
        )
        for video, times in moments.items()
    }


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
        read = read_ava_csv(self.annotations, self.class_names(), self.box_units)
        absent = sorted(name for name in read if video_name(name) not in files)
        if absent:
            raise FileNotFoundError(
                f"{self.annotations} names {len(absent)} videos of {len(read)} that are not under {self.folder}: "
                f"{', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}"
            )
        videos: dict[str, AnnotatedVideo] = {}
        for written, keyframes in sorted(read.items()):
            name = video_name(written)
            if name in videos:
                raise ValueError(f"{self.annotations} names the video {name} in two ways, one of them {written!r}")
            path = _only(files[name])
            scale = self._box_scale(path)
            videos[name] = AnnotatedVideo(
                name,
                path,
                tuple(
                    Keyframe(keyframe.timestamp - self.start_seconds, keyframe.boxes / scale, keyframe.labels)
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
        train, val = _named(self.train, everything), _named(self.val, everything)
        if train is None and val is None:
            # By digest: the choice looks random, and is the same on every machine.
            order = sorted(everything, key=lambda name: hashlib.sha256(name.encode()).digest())
            val = set(order[: round(self.val_fraction * len(order))])
        if train is None:
            return everything.keys() - val, val
        if val is None:
            return train, everything.keys() - train
        if train & val:
            raise ValueError(f"videos in both train and val: {', '.join(sorted(train & val)[:5])}")
        return train, val


def video_name(written: str) -> str:
    """The name of a video without folders and ending.

    >>> video_name("Basketball/v_Basketball_g07_c04.avi"), video_name("labels/Biking/v_Biking_g01_c01/00012.txt")
    ('v_Basketball_g07_c04', 'v_Biking_g01_c01')
    """
    path = PurePosixPath(written.strip())
    if path.stem.isdigit() and path.suffix.lower() in {".txt", ".jpg", ".png"}:
        return path.parent.name  # a frame
    return path.stem if path.suffix.lower() in VIDEO_ENDINGS else path.name


def _named(given: list[str] | str | Path | None, everything: dict[str, AnnotatedVideo]) -> set[str] | None:
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
    known = names & everything.keys()
    if not known:
        raise ValueError(
            f"{origin} names no annotated video; it has {', '.join(sorted(names)[:3]) or 'no lines'}, "
            f"the data has {', '.join(list(everything)[:3])}"
        )
    return known


def _only(paths: Sequence[Path]) -> Path:
    if len(paths) > 1:
        raise ValueError(f"several videos are called {paths[0].stem}: {', '.join(map(str, paths))}")
    return paths[0]


def _is_header(row: Sequence[str]) -> bool:
    try:
        float(row[1])
    except (ValueError, IndexError):
        return True
    return False


def _number(path: Path, line: int, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{path}, line {line}: {column} must be a number, got {text!r}")
    return value


def _check_box(path: Path, line: int, corners: Sequence[str], box_units: BoxUnits) -> None:
    x1, y1, x2, y2 = (
        _number(path, line, name, text) for name, text in zip(("x1", "y1", "x2", "y2"), corners, strict=True)
    )
    if x2 <= x1 or y2 <= y1:
        raise ValueError(
            f"{path}, line {line}: box {','.join(corners)} is empty; corners are x1,y1,x2,y2 with x1<x2, y1<y2"
        )
    if box_units == "relative" and max(x2, y2) > LARGEST_FRACTION:
        raise ValueError(
            f"{path}, line {line}: box {','.join(corners)} looks like pixels; set box_units to absolute if the file "
            "holds pixels, or divide by the frame's width and height"
        )


def _class_index(path: Path, line: int, text: str, num_classes: int) -> int:
    action = _number(path, line, "action_id", text)
    if action != int(action) or not 1 <= action <= num_classes:
        hint = "; ids count from 1, these seem to count from 0" if action == 0 else ""
        raise ValueError(
            f"{path}, line {line}: action id {text} is not one of 1..{num_classes}, the {num_classes} classes{hint}"
        )
    return int(action) - 1


def _box_arrays(people: dict[tuple[str, ...], set[int]], num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(M, 4) float32 boxes and (M, K) uint8 labels of one moment."""
    boxes = np.asarray([[float(corner) for corner in person[:4]] for person in people], np.float32).reshape(-1, 4)
    labels = np.zeros((len(people), num_classes), np.uint8)
    for row, actions in enumerate(people.values()):
        labels[row, list(actions)] = 1
    return boxes, labels
