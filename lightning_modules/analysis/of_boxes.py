"""Analysis of boxes on keyframes: its summary, and its costliest errors as pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from datamodules.batches import TrueKeyframe

from ..metrics.frame_ap import FrameMapSettings, FrameRows
from ..metrics.tubes import box_iou
from .costs import SingleError
from .error_pictures import ERROR, FOUND, TRUE, DrawnBox, Shown, draw_strip
from .kinds import BOX_KINDS, find_errors
from .matched import Matched, match_boxes
from .pages import Picture
from .properties import Property
from .summary import Step, Summary, summarise

FrameAt = Callable[[str, float], np.ndarray | None]
"""Gives the frame (H, W, 3) uint8 of a video at some seconds, None where there is none."""
LEAST_IOU = 0.1
"""Least overlap of a box drawn in the frame before or after with the box of the frame itself."""


class TrueBoxes(NamedTuple):
    """The ground truth of boxes."""

    keyframes: Sequence[TrueKeyframe]
    rows: FrameRows
    """M rows, as they are scored."""
    properties: Sequence[Property]
    """Properties of the M rows."""
    class_names: Sequence[str]
    """Names of the K classes that are scored."""
    frame_at: FrameAt


def analyse_boxes(
    name: str,
    preds: FrameRows,
    truth: TrueBoxes,
    settings: FrameMapSettings,
    protocol: str,
    num_pictures: int,
    step: Step,
) -> tuple[Summary, list[Picture]]:
    """Return the summary of a file, and pictures of its costliest errors.

    Args:
        name: what the file is called. protocol: what the scores are.
        preds: its detections, in pixels of the original videos. settings: the protocol.
        step: called with what has been done.
    """
    matched, kept = match_boxes(preds, truth.rows, len(truth.keyframes), len(truth.class_names), settings)
    step("matching")
    errors = find_errors(matched)
    step("kinds")
    _, scenes = np.unique([keyframe.video_id for keyframe in truth.keyframes], return_inverse=True)
    summary = summarise(name, protocol, matched, errors, BOX_KINDS, truth.properties, num_pictures, step, scenes)
    drawing = _Drawing(matched, kept, truth)
    pictures = [
        Picture(f"error_{number:02}", drawing.picture(error), f"{number}. {drawing.caption(error)}")
        for number, error in enumerate(summary.costliest, start=1)
    ]
    step("pictures")
    return summary, pictures


class _Drawing:
    """Drawer of single errors of one file."""

    def __init__(self, matched: Matched, preds: FrameRows, truth: TrueBoxes) -> None:
        self.matched, self.preds, self.truth = matched, preds, truth
        times = [(keyframe.video_id, keyframe.timestamp) for keyframe in truth.keyframes]
        self.order = sorted(range(len(times)), key=times.__getitem__)
        self.place = {frame: place for place, frame in enumerate(self.order)}
        self.bounds = matched.bounds

    def caption(self, error: SingleError) -> str:
        """Return what is wrong, and what it costs."""
        keyframe = self.truth.keyframes[self._frame(error)]
        where = f"{keyframe.video_id} at {keyframe.timestamp:.2f} s"
        names, cost = self.truth.class_names, f"costs {100 * error.cost:.3f} points"
        true = names[self.matched.true_classes[error.true_row]] if error.true_row >= 0 else None
        if error.row < 0:
            return f"{error.kind.words}: {true}; {where}; {cost}"
        found = f"{names[self.matched.classes[error.row]]} {self.matched.scores[error.row]:.2f}"
        about = f", there is {true}" if true and true != names[self.matched.classes[error.row]] else ""
        return f"{error.kind.words}: {found}{about}; {where}; {cost}"

    def picture(self, error: SingleError) -> bytes:
        """The frame before, the frame, the frame after: those that are keyframes of the video."""
        frame = self._frame(error)
        place, video = self.place[frame], self.truth.keyframes[frame].video_id
        around = [self.order[at] for at in (place - 1, place, place + 1) if 0 <= at < len(self.order)]
        shown = [at for at in around if self.truth.keyframes[at].video_id == video]
        return draw_strip([self._shown(error, at, is_middle=at == frame) for at in shown])

    def _frame(self, error: SingleError) -> int:
        if error.row >= 0:
            return int(self.matched.groups[self.matched.items[error.row]])
        return int(self.matched.object_groups[self.matched.true_objects[error.true_row]])

    def _shown(self, error: SingleError, frame: int, *, is_middle: bool) -> Shown:
        keyframe = self.truth.keyframes[frame]
        scale = 1 / np.tile(keyframe.original_size[::-1], 2)
        boxes = []
        of_frame = np.flatnonzero(self.matched.object_groups[self.matched.true_objects] == frame)
        for person in np.unique(self.matched.true_objects[of_frame]):
            does = of_frame[self.matched.true_objects[of_frame] == person]
            text = ", ".join(self.truth.class_names[index] for index in self.matched.true_classes[does])
            is_missed = is_middle and error.row < 0 and person == self.matched.true_objects[error.true_row]
            colour = ERROR if is_missed else TRUE
            boxes.append(DrawnBox(self.truth.rows.boxes[person] * scale, text, colour))
        for row, colour in self._rows(error, frame, is_middle=is_middle):
            text = f"{self.truth.class_names[self.matched.classes[row]]} {self.matched.scores[row]:.2f}"
            boxes.append(DrawnBox(self.preds.boxes[self.matched.items[row]] * scale, text, colour))
        picture = self.truth.frame_at(keyframe.video_id, keyframe.timestamp)
        return Shown(f"{keyframe.timestamp:.2f} s", picture, boxes)

    def _rows(self, error: SingleError, frame: int, *, is_middle: bool) -> list[tuple[int, str]]:
        """The detections to draw: the error's own, the one that took its true row, and the other predictions there."""
        matched = self.matched
        if is_middle and error.row >= 0:
            others = np.flatnonzero(matched.taken == error.true_row).tolist() if error.true_row >= 0 else []
            return [*((row, FOUND) for row in others), (error.row, ERROR)]
        if error.row >= 0:
            index, box = int(matched.classes[error.row]), self.preds.boxes[matched.items[error.row]]
        else:
            index = int(matched.true_classes[error.true_row])
            box = self.truth.rows.boxes[matched.true_objects[error.true_row]]
        rows = matched.of_class(index, self.bounds)
        there = np.flatnonzero(matched.groups[matched.items[rows]] == frame) + rows.start
        iou = box_iou(self.preds.boxes[matched.items[there]], box[None])
        return [(int(there[iou.argmax()]), FOUND)] if len(there) and iou.max() >= LEAST_IOU else []
