"""Analysis of tubes: its summary, and its costliest errors as pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from datamodules.batches import TrueTubes

from ..metrics.tubes import Tube
from ..metrics.video_ap import TubeRows, VideoProtocol, tube_rows
from .costs import SingleError
from .error_pictures import ERROR, FOUND, TRUE, DrawnBox, Shown, draw_strip
from .kinds import TUBE_KINDS
from .matched import Matched, match_tubes
from .of_boxes import FrameAt
from .pages import Picture
from .properties import Property, thirds
from .summary import Step, Summary, summarise
from .tubes import find_tube_errors


class TrueVideos(NamedTuple):
    """The ground truth of tubes."""

    tubes: Mapping[str, TrueTubes]
    """True tubes of each video."""
    class_names: Sequence[str]
    sizes: Mapping[str, tuple[int, int]]
    """Height and width of each video, of whose pixels boxes are; one that has no keyframe may be missing."""
    seconds_of: Callable[[str, int], float]
    """Function from a video and a sampled frame to its time, as ``frame_at`` counts."""
    frame_at: FrameAt


def analyse_tubes(
    name: str,
    videos: Sequence[Sequence[Tube]],
    truth: TrueVideos,
    threshold: float,
    protocol: VideoProtocol,
    linker: str,
    num_pictures: int,
    step: Step,
) -> tuple[Summary, list[Picture]]:
    """Return the summary of a file, and pictures of its costliest errors.

    Args:
        name: what the file is called. linker: who linked its tubes.
        videos: its tubes, of each video of ``truth``.
        threshold: overlap from which on a tube is a hit.
        step: called with what has been done.
    """
    preds = _rows([[(tube["label"], tube["score"], tube["frames"], tube["boxes"]) for tube in of] for of in videos])
    true = [[(tube.label, 1.0, tube.frames, tube.boxes) for tube in of.tubes] for of in truth.tubes.values()]
    targets = _rows(true)
    people = _people(targets, truth.tubes)
    matched, kept = match_tubes(preds, targets, len(truth.class_names), threshold, protocol)
    step("matching")
    errors = find_tube_errors(matched, kept, targets, people)
    step("kinds")
    said = f"{protocol} video mAP@{threshold:g}, {linker} linker"
    summary = summarise(name, said, matched, errors, TUBE_KINDS, tube_properties(targets), num_pictures, step)
    drawing = _Drawing(matched, kept, targets, truth)
    pictures = [
        Picture(f"error_{number:02}", drawing.picture(error), f"{number}. {drawing.caption(error)}")
        for number, error in enumerate(summary.costliest, start=1)
    ]
    step("pictures")
    return summary, pictures


def _rows(videos: Sequence[Sequence[tuple[int, float, np.ndarray, np.ndarray]]]) -> TubeRows:
    flat = [(video, *tube) for video, of_video in enumerate(videos) for tube in of_video]
    boxes = [np.asarray(tube[4], np.float64) for tube in flat]
    return tube_rows(
        np.asarray([tube[0] for tube in flat], np.int64),
        np.asarray([tube[1] for tube in flat], np.int64),
        np.asarray([float(tube[2]) for tube in flat], np.float64),
        np.asarray([int(tube[3][0]) for tube in flat], np.int64),
        np.asarray([len(tube[3]) for tube in flat], np.int64),
        np.concatenate([np.empty((0, 4)), *boxes]),
    )


def _people(targets: TubeRows, videos: Mapping[str, TrueTubes]) -> np.ndarray:
    """(N,) whose each true tube is; ``targets`` keep where the boxes of a tube were put, in the order of ``videos``."""
    flat = [tube for of_video in videos.values() for tube in of_video.tubes]
    offsets = np.cumsum([0, *(len(tube.frames) for tube in flat)])[:-1]
    people = np.asarray([tube.person for tube in flat], np.int64)
    return people[np.searchsorted(offsets, targets.offsets)]


def tube_properties(targets: TubeRows) -> list[Property]:
    """Return the properties of true tubes: length, size, and how many their video has."""
    sides = (targets.boxes[:, 2:] - targets.boxes[:, :2]).clip(0)
    middle = targets.offsets + targets.lengths // 2
    sizes = np.sqrt(sides[middle].prod(axis=1)) if len(middle) else np.zeros(0)
    counts = np.bincount(targets.videos)[targets.videos] if len(targets.videos) else np.zeros(0)
    return [
        thirds("length of the tube", targets.lengths.astype(float), "frames"),
        thirds("size of the person", sizes, "pixels"),
        thirds("tubes in the video", counts.astype(float)),
    ]


class _Drawing:
    """Drawer of single errors of one file."""

    def __init__(self, matched: Matched, preds: TubeRows, targets: TubeRows, truth: TrueVideos) -> None:
        self.matched, self.truth = matched, truth
        self.preds, self.targets, self.videos = preds, targets, list(truth.tubes)

    def caption(self, error: SingleError) -> str:
        """Return what is wrong, and what it costs."""
        names, cost = self.truth.class_names, f"costs {100 * error.cost:.3f} points"
        true = names[self.matched.true_classes[error.true_row]] if error.true_row >= 0 else None
        tubes, tube = self._tube(error)
        where = f"{self.videos[tubes.videos[tube]]}, sampled frames {tubes.starts[tube]} to {tubes.ends[tube]}"
        if error.row < 0:
            return f"{error.kind.words}: {true}; {where}; {cost}"
        found = f"{names[self.matched.classes[error.row]]} {self.matched.scores[error.row]:.2f}"
        if true:
            about = f", {true} is from {self.targets.starts[error.true_row]} to {self.targets.ends[error.true_row]}"
        return f"{error.kind.words}: {found}{about if true else ''}; {where}; {cost}"

    def _tube(self, error: SingleError) -> tuple[TubeRows, int]:
        """The tube that is wrong, or the true one that was missed."""
        return (self.preds, error.row) if error.row >= 0 else (self.targets, error.true_row)

    def picture(self, error: SingleError) -> bytes:
        """The first, the middle and the last frame of the tube."""
        tubes, tube = self._tube(error)
        start, end = int(tubes.starts[tube]), int(tubes.ends[tube])
        return draw_strip([self._shown(error, slot) for slot in sorted({start, (start + end) // 2, end})])

    def _shown(self, error: SingleError, slot: int) -> Shown:
        tubes, tube = self._tube(error)
        video = self.videos[tubes.videos[tube]]
        seconds = self.truth.seconds_of(video, slot)
        picture = self.truth.frame_at(video, seconds)
        size = self.truth.sizes.get(video) or (picture.shape[:2] if picture is not None else (1, 1))
        scale = 1 / np.tile(size[::-1], 2)
        boxes = []
        for true in self._at(self.targets, tubes.videos[tube], slot):
            colour = ERROR if error.row < 0 and true == error.true_row else TRUE
            text = self.truth.class_names[self.matched.true_classes[true]]
            boxes.append(DrawnBox(_box(self.targets, true, slot) * scale, text, colour))
        for found in self._at(self.preds, tubes.videos[tube], slot):
            if found == error.row or (error.true_row >= 0 and self.matched.taken[found] == error.true_row):
                text = f"{self.truth.class_names[self.matched.classes[found]]} {self.matched.scores[found]:.2f}"
                colour = ERROR if found == error.row else FOUND
                boxes.append(DrawnBox(_box(self.preds, found, slot) * scale, text, colour))
        return Shown(f"{seconds:.2f} s, sampled frame {slot}", picture, boxes)

    @staticmethod
    def _at(tubes: TubeRows, video: int, slot: int) -> list[int]:
        """The tubes of a video that have a frame."""
        return np.flatnonzero((tubes.videos == video) & (tubes.starts <= slot) & (slot <= tubes.ends)).tolist()


def _box(tubes: TubeRows, tube: int, slot: int) -> np.ndarray:
    return tubes.boxes[tubes.offsets[tube] + slot - tubes.starts[tube]]
