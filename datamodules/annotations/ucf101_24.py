"""UCF101-24: boxes on 24 classes of UCF101 (Singh et al., ICCV 2017), in each of the forms in which they are kept."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np

from datamodules.annotations.mistakes import Mistake
from datamodules.annotations.own_videos import named_videos
from datamodules.annotations.pickles.safe_pickle import load_pickle
from datamodules.annotations.tubes import (
    GroundTruthPickle,
    TubeBoxes,
    TubeFile,
    TubeSource,
    is_count,
    numbers,
    unreadable,
)
from datamodules.errors import UserError
from datamodules.text_files import read_lines

CLASSES = (
    "Basketball", "BasketballDunk", "Biking", "CliffDiving", "CricketBowling", "Diving", "Fencing", "FloorGymnastics",
    "GolfSwing", "HorseRiding", "IceDancing", "LongJump", "PoleVault", "RopeClimbing", "SalsaSpin", "SkateBoarding",
    "Skiing", "Skijet", "SoccerJuggling", "Surfing", "TennisSwing", "TrampolineJumping", "VolleyballSpiking",
    "WalkingWithDog",
)  # fmt: skip
SIZE = np.asarray([320, 240, 320, 240], np.float64)
"""Width and height of the videos when they were annotated, for both corners."""


class UCF101_24(TubeSource):
    """Untrimmed sports videos, 24 classes, one class a video, several people; frames are annotated one by one.

    Args:
        videos: see ``TubeSource``: ``UCF101/<class>/<video>.avi`` or ``rgb-images/<class>/<video>/00001.jpg``, of any
            frame size.
        annotations: ``pyannot.pkl``, ``UCF101v2-GT.pkl`` (ACT, MOC, mmaction2), or the folder ``labels`` (YOWO); all
            give the same boxes. Which it is shows in the file.
        train: names of training videos, or a text file with one per line: ``trainlist01.txt`` (folders, endings and
            class numbers around a name are ignored) or YOWO's ``trainlist.txt``, which lists frames.
        val: the same for evaluation ( ``testlist01.txt``, ``testlist.txt``). Where only one of the two is given, the
            other takes the rest. Neither is needed with ``UCF101v2-GT.pkl``, which has the official first split.
        every_frame: see ``TubeSource``.
        frame_rate: see ``TubeSource``.
    """

    def __init__(
        self,
        videos: str | Path,
        annotations: str | Path,
        train: list[str] | str | Path | None = None,
        val: list[str] | str | Path | None = None,
        every_frame: bool = True,
        frame_rate: float = 25.0,
    ) -> None:
        super().__init__(videos, annotations, every_frame, frame_rate)
        self.train, self.val = train, val

    def prepare(self) -> None:
        super().prepare()
        for given in (self.train, self.val):
            if isinstance(given, str | Path) and not Path(given).is_file():
                raise UserError("no such list of videos", given)

    def _open(self) -> TubeFile:
        if self.annotations.is_dir():
            return LabelFolder(self.annotations)
        if self.annotations.suffix.lower() == ".csv":
            raise UserError("boxes in AVA's column order are read by the source OwnVideos", self.annotations)
        contents = load_pickle(self.annotations)
        if isinstance(contents, dict) and "gttubes" in contents:
            return GroundTruthPickle(self.annotations, contents)
        return Pyannot(self.annotations, contents)

    def _split(self, split: str) -> set[str]:
        file = self._opened()
        by_short_name = {name.rpartition("/")[2]: name for name in file.names}
        train, val = named_videos(self.train, by_short_name), named_videos(self.val, by_short_name)
        if train is None and val is None:
            if not file.splits:
                raise UserError(
                    "does not say which videos are for training",
                    file.path,
                    "set data.init_args.source.init_args.val to the list of test videos (testlist01.txt)",
                )
            return set(file.splits[0][0 if split == "train" else 1])
        if train is not None and val is not None and train & val:
            raise UserError(f"videos in both train and val: {', '.join(sorted(train & val)[:5])}")
        own, other = (train, val) if split == "train" else (val, train)
        return {by_short_name[name] for name in (by_short_name.keys() - other if own is None else own)}


class Pyannot(TubeFile):
    """``pyannot.pkl`` of corrected-UCF101-Annots: ``{video: {numf, label, annotations: [{label, sf, ef, boxes}]}}``.

    A tube's boxes x, y, width, height belong to frames sf (counted from 0) to ef (not included); x and y count from 1.
    """

    class_names = CLASSES

    def __init__(self, path: Path, contents: object) -> None:
        if not isinstance(contents, dict) or not all(
            isinstance(name, str) and isinstance(video, dict) and {"numf", "annotations"} <= video.keys()
            for name, video in contents.items()
        ):
            raise UserError(
                "is neither pyannot.pkl (videos with numf and annotations) nor a ground truth of tubes (with gttubes)",
                path,
            )
        self.path = path
        self.names = tuple(sorted(contents))
        self._contents = contents

    def read(self, name: str) -> TubeBoxes:
        video, tubes = self._contents[name], []
        if not is_count(video["numf"]) or not isinstance(video["annotations"], list | tuple):
            raise unreadable(self.path, name, "no number of frames, or no list of tubes")
        for tube in video["annotations"]:
            label, start, end = (
                (tube.get(key) for key in ("label", "sf", "ef")) if isinstance(tube, dict) else [None] * 3
            )
            # They are kept in 8 bits: a sum of two would overflow.
            boxes = numbers(tube.get("boxes"), 4) if isinstance(tube, dict) else None
            if boxes is None or not all(map(is_count, (label, start, end))):
                raise unreadable(self.path, name, "a tube lacks its label, first and last frame, or (n, 4) boxes")
            if int(end) - int(start) != len(boxes):
                seen = f"a tube has {len(boxes)} boxes for {int(end) - int(start)} frames"
                raise unreadable(self.path, name, seen)
            x, y, width, height = boxes.T
            corners = np.stack([x - 1, y - 1, x + width - 2, y + height - 2], axis=1)
            tubes.append((int(label), np.arange(int(start), int(end)), corners / SIZE))
        return TubeBoxes.from_tubes(tubes, int(video["numf"]))


class LabelFolder(TubeFile):
    """``labels`` of YOWO: ``<class>/<video>/00012.txt`` holds the boxes of frame 12, which is the 12th.

    A line is class (counted from 1) and x1, y1, x2, y2 with x1 and y1 counted from 1 and x2 = x1 + width. A frame
    without a file has no box. Who is whose successor is not said.
    """

    class_names = CLASSES

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = tuple(f"{group}/{video}" for group in _folders(path) for video in _folders(path / group))
        if not self.names:
            raise UserError("holds no folders <class>/<video> of label texts", path)

    def read(self, name: str) -> TubeBoxes:
        with os.scandir(self.path / name) as entries:
            texts = [entry.path for entry in entries if re.fullmatch(r"\d+\.txt", entry.name)]
        rows = sorted((row for text in texts for row in _rows(text)), key=lambda row: row[0])
        frames, classes, *corners = np.asarray(rows, np.float64).reshape(-1, 6).T
        boxes = (np.stack(corners, axis=1) - [1, 1, 2, 2]) / SIZE
        return TubeBoxes(
            frames.astype(np.int64) - 1, boxes.astype(np.float32), classes.astype(np.int64) - 1, None, None
        )


def _rows(text: str) -> list[tuple[float, ...]]:
    """The lines of one frame's text with the number of the frame before them."""
    number = float(Path(text).stem)
    try:
        rows = [(number, *map(float, line.split())) for line in read_lines(text) if line.strip()]
    except (UserError, ValueError):
        rows = [()]
    if any(len(row) != 6 or not np.isfinite(row).all() for row in rows):
        raise Mistake("label texts that cannot be read", text, "a line must be class x1 y1 x2 y2")
    return rows


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
