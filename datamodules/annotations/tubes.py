"""Common parts of data sets that annotate every frame of short videos: UCF101-24 and JHMDB.

Their videos lie in a folder a class. Frame n of the annotation is frame n of the video. A box has the time at which
that frame is shown, at any frame rate.

Boxes follow the field's evaluators. Corners are pixels counted from 0; x2 is the last column inside the box (``x2 = x1
+ width - 1``, nothing is added). Corners are divided by the size at which the data set was annotated, which makes them
fractions of frames of any other size.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.annotations.mistakes import AbsentVideo, Mistake, keep
from datamodules.annotations.places import only_video, require_folder, videos_in
from datamodules.annotations.source import AnnotatedVideo, DetectionSource, Keyframe, Split, report_left_out
from datamodules.errors import UserError
from datamodules.text_files import check_names
from datamodules.video.listing import VideoError
from datamodules.video.picture_folder import PictureListing, Video
from datamodules.video.readers import list_video


class TubeBoxes(NamedTuple):
    """The n boxes of one video, in order of frames."""

    frames: np.ndarray
    """(n,) int64, counted from 0."""
    boxes: np.ndarray
    """(n, 4) float32, xyxy as fractions of the frame."""
    labels: np.ndarray
    """(n,) int64 class ids."""
    tracks: np.ndarray | None
    """(n,) int64, which tube a box belongs to; None where the annotation does not say."""
    num_frames: int | None
    """Number of annotated frames of the video; None means all."""

    @classmethod
    def from_tubes(cls, tubes: list[tuple[int, np.ndarray, np.ndarray]], num_frames: int) -> TubeBoxes:
        """Build from (class id, (n,) frames, (n, 4) boxes) of each tube."""
        counts = [len(frames) for _, frames, _ in tubes]
        frames = np.concatenate([np.empty(0, np.int64), *(frames.astype(np.int64) for _, frames, _ in tubes)])
        boxes = np.concatenate([np.empty((0, 4), np.float32), *(boxes.astype(np.float32) for _, _, boxes in tubes)])
        labels = np.repeat(np.asarray([label for label, _, _ in tubes], np.int64), counts)
        tracks = np.repeat(np.arange(len(tubes)), counts)
        order = np.argsort(frames, kind="stable")
        return cls(frames[order], boxes[order], labels[order], tracks[order], num_frames)

    def only(self, kept: np.ndarray) -> TubeBoxes:
        """The boxes for which ``kept`` (n,) is true."""
        tracks = None if self.tracks is None else self.tracks[kept]
        return TubeBoxes(self.frames[kept], self.boxes[kept], self.labels[kept], tracks, self.num_frames)


class TubeFile:
    """One file format of tubes. Videos are named ``<class>/<video>``."""

    path: Path
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    """Every annotated video."""
    splits: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()
    """Names for training and for evaluation, for each of the splits that the file defines."""

    def read(self, name: str) -> TubeBoxes:
        raise NotImplementedError


class GroundTruthPickle(TubeFile):
    """``UCF101v2-GT.pkl``, ``JHMDB-GT.pkl``: the form of the ACT detector, which MOC and mmaction2 read too.

    ``gttubes[video][class id]`` lists arrays (n, 5): frame (counted from 1), x1, y1, x2, y2 in pixels of
    ``resolution[video]`` (height, width). The rest is in ``nframes``, ``labels``, ``train_videos`` and ``test_videos``.
    """

    KEYS = ("labels", "gttubes", "nframes", "resolution", "train_videos", "test_videos")

    def __init__(self, path: Path, contents: object) -> None:
        absent = [key for key in self.KEYS if not isinstance(contents, dict) or key not in contents]
        if absent:
            raise UserError(f"is no ground truth of tubes: it lacks {', '.join(absent)}", path)
        labels, train, test = (contents[key] for key in ("labels", "train_videos", "test_videos"))
        by_name = [contents[key] for key in ("gttubes", "nframes", "resolution")]
        lists = [labels, *train, *test] if isinstance(train, LISTS) and isinstance(test, LISTS) else [None]
        names = [list(part) if isinstance(part, dict) else None for part in by_name]
        if not all(map(_is_list_of_names, lists + names)):
            raise UserError("is no ground truth of tubes: names are not where they should be", path)
        if len(train) != len(test):
            raise UserError(f"has {len(train)} lists of training videos and {len(test)} of test videos", path)
        check_names(labels, path, "class")
        self.path = path
        self.class_names = tuple(labels)
        self.names = tuple(sorted(contents["nframes"]))
        self.splits = tuple((tuple(train), tuple(test)) for train, test in zip(train, test, strict=True))
        self._contents = contents

    def read(self, name: str) -> TubeBoxes:
        of_classes = self._contents["gttubes"].get(name, {})
        length, resolution = (self._contents[key].get(name) for key in ("nframes", "resolution"))
        size = numbers([resolution], 2)
        if size is None or not len(size) or (size <= 0).any():
            raise unreadable(self.path, name, "no height and width")
        if not is_count(length) or not isinstance(of_classes, dict):
            raise unreadable(self.path, name, "no number of frames, or no tubes")
        (height, width), tubes = size[0], []
        if not all(is_count(label) and isinstance(of_class, LISTS) for label, of_class in of_classes.items()):
            raise unreadable(self.path, name, "no list of tubes for each class id")
        for label, of_class in sorted(of_classes.items()):
            for tube in of_class:
                rows = numbers(tube, 5)
                if rows is None or (np.abs(rows[:, 0]) > LAST_FRAME).any():
                    raise unreadable(self.path, name, "a tube is not (n, 5) numbers")
                tubes.append((int(label), rows[:, 0] - 1, rows[:, 1:] / [width, height, width, height]))
        return TubeBoxes.from_tubes(tubes, int(length))


LISTS = (list, tuple)
LAST_FRAME = 2**31
"""Numbers of frames are smaller."""


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, LISTS) and all(isinstance(name, str) for name in value)


def is_count(value: object) -> bool:
    """Return whether a value of a file is a whole number such as a class id or a number of frames."""
    return isinstance(value, int | float | np.integer | np.floating) and 0 <= value < LAST_FRAME and value % 1 == 0


def numbers(value: object, columns: int) -> np.ndarray | None:
    """Return (n, columns) float64 of what a file holds; None where it is not so many finite numbers a row."""
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biufO":
        return None
    try:
        rows = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    if rows.size == 0:
        return np.empty((0, columns))
    return rows if rows.ndim == 2 and rows.shape[1] == columns and np.isfinite(rows).all() else None


def unreadable(path: Path, name: str, seen: str) -> Mistake:
    return Mistake("tubes that cannot be read", f"{path}, {name}", seen)


class TubeSource(DetectionSource):
    """Base of the data sets of tubes. Videos may be missing: they are named once, and the rest is used.

    Args:
        videos: folder of videos, each below its class: ``<class>/<video>``. A video is a folder of pictures counted
            from 1 (``00001.jpg``) or a file (``.avi``, ``.mp4``, ...). Folders of classes may be left out.
        annotations: the file or folder of boxes.
        every_frame: also annotate the frames outside all tubes, as empty: a detection there is a false positive, as in
            the evaluations of ACT and MOC. Otherwise only frames with a box are annotated, as YOWO evaluates.
        frame_rate: pictures per second, for folders of pictures. It makes the time stamps of predictions; which picture
            a box belongs to does not depend on it.
    """

    def __init__(self, videos: str | Path, annotations: str | Path, every_frame: bool, frame_rate: float) -> None:
        if frame_rate <= 0:
            raise UserError(f"frame_rate must be positive, got {frame_rate}")
        self.folder = Path(videos)
        self.annotations = Path(annotations)
        self.every_frame = every_frame
        self.frame_rate = frame_rate
        self._file: TubeFile | None = None
        self._videos: dict[str, tuple[AnnotatedVideo, ...]] = {}

    def prepare(self) -> None:
        """Look for folder and annotation before anything else happens."""
        require_folder(self.folder)
        if not self.annotations.exists():
            raise UserError("no such annotation", self.annotations)

    def class_names(self) -> tuple[str, ...]:
        return self._opened().class_names

    def videos(self, split: Split) -> tuple[AnnotatedVideo, ...]:
        split = "train" if split == "train" else "val"
        if split not in self._videos:
            self._videos[split] = self._read(split)
        return self._videos[split]

    def _open(self) -> TubeFile:
        raise NotImplementedError

    def _split(self, split: str) -> set[str]:
        """Names of the videos for ``train`` or ``val``, as the opened file has them."""
        raise NotImplementedError

    def _opened(self) -> TubeFile:
        if self._file is None:
            file = self._open()
            if len({_short(name) for name in file.names}) < len(file.names):
                raise UserError("two classes have a video of the same name", file.path, "rename one of them")
            self._file = file
        return self._file

    def _read(self, split: str) -> tuple[AnnotatedVideo, ...]:
        from tqdm import tqdm

        self.prepare()
        file, names = self._opened(), sorted(self._split(split))
        places = self._places({name.rpartition("/")[0] for name in names})
        found = {name: places.get(name) or places.get(_short(name)) for name in names}
        absent = [name for name in names if found[name] is None]
        if len(absent) == len(names):
            raise UserError(
                f"holds none of the {len(names)} {split} videos of {file.path}, neither a folder "
                f"{min(names, default='')} of pictures nor a file {min(names, default='')}.avi, for instance",
                self.folder,
            )
        videos, broken, uncovered, flat = [], [], [], []
        for name in tqdm(sorted(found.keys() - set(absent)), desc=f"{split} annotations", unit="video", leave=False):
            short = _short(name)
            try:
                place = only_video(short, found[name])
                listing = list_video(place)
                boxes = file.read(name)
                _check_labels(file, name, boxes)
            except VideoError as error:
                broken.append(str(error))
                continue
            except Mistake as mistake:
                keep(mistake, self.mistakes)
                continue
            shown = listing.present if isinstance(listing, PictureListing) else np.full(len(listing.times), True)
            shown = shown[: boxes.num_frames]
            has_frame = (boxes.frames >= 0) & (boxes.frames < len(shown))
            has_frame[has_frame] = shown[boxes.frames[has_frame]]
            if not has_frame.all():
                uncovered.append(f"{short} ({(~has_frame).sum()} of {len(has_frame)})")
            has_area = (boxes.boxes[:, 2:] > boxes.boxes[:, :2]).all(axis=1)
            if not has_area.all():
                flat.append(f"{short} ({(~has_area).sum()} of {len(has_area)})")
            keyframes = self._keyframes(boxes.only(has_frame & has_area), listing.times, shown)
            if keyframes:
                videos.append(AnnotatedVideo(short, place, keyframes))
        what = f"of {len(names)} {split} videos are not in {self.folder} and are left out"
        report_left_out(file.path, {what: absent}, self.mistakes, AbsentVideo)
        report_left_out(
            file.path,
            {
                "videos cannot be read and are left out": broken,
                "videos have boxes on frames that are not there, which are left out": uncovered,
                "videos have boxes without area, which are left out": flat,
            },
            self.mistakes,
        )
        return tuple(videos)

    def _keyframes(self, boxes: TubeBoxes, times: np.ndarray, shown: np.ndarray) -> tuple[Keyframe, ...]:
        """The annotation of each frame that is there."""
        labels = np.eye(len(self.class_names()), dtype=np.uint8)[boxes.labels]
        starts = np.searchsorted(boxes.frames, np.arange(len(shown) + 1))
        keyframes = []
        for frame in np.flatnonzero(shown).tolist():
            rows = slice(starts[frame], starts[frame + 1])
            if self.every_frame or rows.start < rows.stop:
                tracks = None if boxes.tracks is None else boxes.tracks[rows]
                keyframes.append(Keyframe(float(times[frame]), boxes.boxes[rows], labels[rows], tracks))
        return tuple(keyframes)

    def _places(self, classes: set[str]) -> dict[str, list[Video]]:
        """Find what there is of each video: by name in the folder itself, by ``class/name`` in those of classes."""
        places: dict[str, list[Video]] = dict(videos_in(self.folder, self._rate, not_videos=classes))
        for group in sorted(classes - {""}):
            if (self.folder / group).is_dir():
                of_group = videos_in(self.folder / group, self._rate)
                places |= {f"{group}/{name}": videos for name, videos in of_group.items()}
        return places

    def _rate(self, name: str) -> float:
        return self.frame_rate


def _short(name: str) -> str:
    """The name of a video without its class."""
    return name.rpartition("/")[2]


def _check_labels(file: TubeFile, name: str, boxes: TubeBoxes) -> None:
    """A video lies in the folder of its class: labels that count from another number than they should show here."""
    names, folder = file.class_names, name.rpartition("/")[0]
    wrong = [label for label in np.unique(boxes.labels).tolist() if not 0 <= label < len(names)]
    if wrong:
        raise Mistake(
            "labels without a class", f"{file.path}, {name}", f"label {wrong[0]}, but there are {len(names)}, from 0"
        )
    if folder in names and (boxes.labels != names.index(folder)).any():
        other = names[boxes.labels[boxes.labels != names.index(folder)][0]]
        raise Mistake(
            "videos labelled as another class than their folder's",
            f"{file.path}, {name}",
            f"labelled {other}",
            "label ids count from another number than expected, or the classes are in another order",
        )
