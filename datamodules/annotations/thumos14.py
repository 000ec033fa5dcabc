"""THUMOS14's 20 classes of temporal detection, in any of the forms its annotation is passed around in."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from datamodules.annotations.activitynet import read_segment_json
from datamodules.annotations.features import DAMAGED, FeatureFolder
from datamodules.annotations.pickles.safe_pickle import load_pickle
from datamodules.annotations.segment_source import (
    AnnotatedSegments,
    RawSegments,
    SegmentSource,
    annotated,
    check_places,
    find_media,
)
from datamodules.annotations.source import Split, report_left_out
from datamodules.annotations.tubes import numbers
from datamodules.errors import UserError
from datamodules.text_files import check_names, check_separator, open_text, read_lines

CLASS_NAMES = (
    "BaseballPitch",
    "BasketballDunk",
    "Billiards",
    "CleanAndJerk",
    "CliffDiving",
    "CricketBowling",
    "CricketShot",
    "Diving",
    "FrisbeeCatch",
    "GolfSwing",
    "HammerThrow",
    "HighJump",
    "JavelinThrow",
    "LongJump",
    "PoleVault",
    "Shotput",
    "SoccerPenalty",
    "TennisSwing",
    "ThrowDiscus",
    "VolleyballSpiking",
)
TRAIN, TEST = "video_validation_", "video_test_"
"""Prefixes of video names. The field trains on the validation videos; files differ in how they call that subset."""

TestList = Literal[213, 212, 211, 210]
NOT_TESTED: dict[int, tuple[str, ...]] = {
    213: (),
    212: ("video_test_0001292",),
    211: ("video_test_0001292", "video_test_0000270"),
    210: ("video_test_0001292", "video_test_0000270", "video_test_0001496"),
}
"""The test videos that each list goes without. 0001292 has ambiguous spans alone; 22 of the 29 segments of 0000270 lie
beyond its end. 213 is everything annotated, 212 ActionFormer and BasicTAD, 211 OpenTAD, 210 G-TAD and AFSD."""

CHUNK_SECONDS = 6 / 30
"""Per-frame annotation has a row for every six frames at 30 frames per second."""
BACKGROUND, AMBIGUOUS = 0, 21
"""Columns of the per-frame annotation; those between are the classes."""


class Thumos14(SegmentSource):
    """413 untrimmed videos, 200 for training and up to 213 for testing. Which they are tells their name.

    Videos may be missing: they are named once, and the rest is used. ``CliffDiving`` is a kind of ``Diving`` and
    annotated as both; where a file has left the second out it is put back.

    Args:
        annotations: a json in the form of ActionFormer, OpenTAD, G-TAD or AFSD (``read_segment_json``); the folder of
            the original text files (``read_class_texts``); or OadTR's labels of six frames each (``read_per_frame``).
        videos: folder with a file or a folder of pictures for each video, at any depth.
        features: folder of feature arrays, instead of videos.
        test_list: number of test videos, which distinguishes the lists in use.
        metadata: csv files with the columns ``filename``, ``video-duration``, ``fps`` (TSP's
            ``thumos14_{test,valid}_metadata.csv``), for annotations that lack one or the other.
        picture_rate: pictures per second of folders of pictures; None takes the annotation's frame rate.
    """

    def __init__(
        self,
        annotations: str | Path,
        videos: str | Path | None = None,
        features: FeatureFolder | None = None,
        test_list: TestList = 212,
        metadata: list[str | Path] | None = None,
        picture_rate: float | None = None,
    ) -> None:
        check_places(videos, features)
        if test_list not in NOT_TESTED:
            raise UserError(f"test_list must be one of {', '.join(map(str, NOT_TESTED))}, got {test_list!r}")
        self.annotations = Path(annotations)
        self.folder = videos
        self.features = features
        self.test_list = test_list
        self.metadata = metadata or []
        self.picture_rate = picture_rate
        self._raw: dict[str, RawSegments] = {}
        self._videos: dict[str, tuple[AnnotatedSegments, ...]] = {}

    def prepare(self) -> None:
        """Read the annotation once, so that mistakes are reported before anything else happens."""
        self._annotation()

    def class_names(self) -> tuple[str, ...]:
        return CLASS_NAMES

    def videos(self, split: Split) -> tuple[AnnotatedSegments, ...]:
        split = "train" if split == "train" else "test"
        if split not in self._videos:
            raw = self._split(split)
            media = find_media(self.folder, self.features, raw, self.picture_rate)
            self._videos[split] = annotated(self.annotations, raw, CLASS_NAMES, media, self.mistakes)
        return self._videos[split]

    def evaluated_on(self) -> str:
        found = len(self.videos("test"))
        return f"THUMOS14 test list {self.test_list}" + (f", {found} of its videos" if found != self.test_list else "")

    def _split(self, split: str) -> dict[str, RawSegments]:
        everything = self._annotation()
        if split == "train":
            chosen = {name: entry for name, entry in everything.items() if name.startswith(TRAIN)}
        else:
            without = NOT_TESTED[self.test_list]
            chosen = {name: e for name, e in everything.items() if name.startswith(TEST) and name not in without}
            if self.test_list == 213:  # annotations of segments do not name a video that has none
                chosen.setdefault(*NOT_TESTED[212], RawSegments([]))
        if not chosen:
            prefix = TRAIN if split == "train" else TEST
            raise UserError(f"has no video whose name begins with {prefix}", self.annotations)
        return chosen

    def _annotation(self) -> dict[str, RawSegments]:
        if not self._raw:
            raw = read_thumos14(self.annotations)
            facts = {name: known for file in self.metadata for name, known in read_metadata(file).items()}
            for name in raw.keys() & facts.keys():
                duration, rate = facts[name]
                entry = raw[name]
                raw[name] = entry._replace(
                    duration=duration if entry.duration is None else entry.duration,
                    frame_rate=rate if entry.frame_rate is None else entry.frame_rate,
                )
            self._raw = self._with_diving(raw)
        return self._raw

    def _with_diving(self, raw: Mapping[str, RawSegments]) -> dict[str, RawSegments]:
        """Label every ``CliffDiving`` as ``Diving`` too."""
        completed, added = {}, []
        for name, entry in raw.items():
            there = set(entry.annotations)
            cliffs = [(start, end, "Diving") for start, end, label in entry.annotations if label == "CliffDiving"]
            missing = [segment for segment in cliffs if segment not in there]
            added += [f"{name} at {start:g} s" for start, *_ in missing]
            completed[name] = entry._replace(annotations=[*entry.annotations, *missing])
        report_left_out(self.annotations, {"segments of CliffDiving lacked Diving, which they are too": added})
        return completed


def read_thumos14(path: str | Path) -> dict[str, RawSegments]:
    """The videos of an annotation by name; the form is recognised from the file."""
    path = Path(path)
    if path.is_dir():
        return read_class_texts(path)
    if path.suffix in (".npz", ".pkl", ".pickle"):
        return read_per_frame(path)
    return read_segment_json(path)


def read_class_texts(folder: Path) -> dict[str, RawSegments]:
    """The original form, at any depth: ``<Class>_{val,test}.txt`` with lines ``video_test_0000324  10.4 13.4``.

    ``Ambiguous_{val,test}.txt`` holds the ambiguous spans.
    """
    files = [file for split in ("val", "test") for file in sorted(folder.rglob(f"*_{split}.txt"))]
    if not files:
        raise UserError("holds none of THUMOS14's files such as Diving_test.txt", folder)
    annotations: dict[str, list[tuple[float, float, str]]] = {}
    ambiguous: dict[str, list[tuple[float, float]]] = {}
    for file in files:
        label = file.stem.rsplit("_", 1)[0]
        for number, line in enumerate(read_lines(file), start=1):
            if not line.strip():
                continue
            try:
                name, start, end = line.split()
                span = float(start), float(end)
            except ValueError:
                raise UserError(f"line {number}: expected a video, start and end, got {line!r}", file) from None
            annotations.setdefault(name, [])
            if label == "Ambiguous":
                ambiguous.setdefault(name, []).append(span)
            else:
                annotations[name].append((*span, label))
    return {
        name: RawSegments(segments, ambiguous=tuple(ambiguous.get(name, ()))) for name, segments in annotations.items()
    }


def read_per_frame(path: str | Path) -> dict[str, RawSegments]:
    """OadTR's form, npz or pickle: for each video (T, 22) one-hot rows, or ``{"anno": those}``, one row for six frames.

    Neighbouring rows of one class become a segment. Its ends are exact to two rows (0.4 s), the distance of published
    rows from the texts, and two segments that touch are one. So it is fit for scoring frames, not for scoring segments.
    """
    path = Path(path)
    if path.suffix == ".npz":
        rows_of = _arrays(path)
    else:
        contents = load_pickle(path)
        if not isinstance(contents, dict) or not all(isinstance(name, str) for name in contents):
            raise UserError("is no annotation of frames: it holds no arrays by name of video", path)
        rows_of = {name: entry.get("anno") if isinstance(entry, dict) else entry for name, entry in contents.items()}
    videos = {}
    for name, entry in rows_of.items():
        rows = numbers(entry, AMBIGUOUS + 1)
        if rows is None:
            raise UserError(f"{name} must be (T, {AMBIGUOUS + 1}) one-hot rows", path)
        spans = {column: _runs(rows[:, column] > 0) * CHUNK_SECONDS for column in range(1, AMBIGUOUS + 1)}
        videos[name] = RawSegments(
            [(start, end, CLASS_NAMES[c - 1]) for c in range(1, AMBIGUOUS) for start, end in spans[c].tolist()],
            duration=len(rows) * CHUNK_SECONDS,
            ambiguous=tuple(map(tuple, spans[AMBIGUOUS].tolist())),
        )
    return videos


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an npz by name."""
    if not path.is_file():
        raise UserError("no such annotation file", path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            check_names(arrays.files, path, "array")
            return {name: arrays[name] for name in arrays.files}
    except UserError:
        raise
    except (*DAMAGED, MemoryError) as error:
        raise UserError(f"is not a readable npz ({error})", path) from error


def _runs(flags: np.ndarray) -> np.ndarray:
    """Starts and stops of the runs of True: (n, 2). ``[0, 1, 1, 0, 1]`` has [1, 3] and [4, 5]."""
    edges = np.diff(np.r_[0, flags.astype(np.int8), 0])
    return np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)], axis=1)


def read_metadata(path: str | Path) -> dict[str, tuple[float, float]]:
    """Duration in seconds and frame rate of each video of a csv."""
    columns = ("filename", "video-duration", "fps")
    with open_text(path, "csv of durations and frame rates") as file:
        lines = list(file)
    check_separator(path, lines[:1], ",".join(columns), range(len(columns), len(lines[0]) if lines else 0))
    try:
        rows = [
            (Path(row["filename"]).stem, (float(row["video-duration"]), float(row["fps"])))
            for row in csv.DictReader(lines)
        ]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"needs the columns {', '.join(columns)} ({error!r})", path) from None
    check_names([name for name, _ in rows], path, "video")
    return dict(rows)
