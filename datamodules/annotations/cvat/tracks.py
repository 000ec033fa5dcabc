"""Tracks of CVAT's "CVAT for video 1.1", taken from the xml one by one as it is parsed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from datamodules.errors import UserError
from datamodules.text_files import check_one_line

NO_ACTION = frozenset({"", "none", "__undefined__"})
DEEPEST = 32
"""Elements within elements."""


class CvatBox(NamedTuple):
    """One box on one frame."""

    frame: int
    """Number of the frame in the video, from 0."""
    corners: tuple[float, float, float, float]
    """x1, y1, x2, y2 as fractions of the frame."""
    actions: tuple[str, ...]
    track: int
    """Whose box it is."""


class CvatTask(NamedTuple):
    """The boxes of one video or of a part of it, and what could not be read as one."""

    boxes: tuple[CvatBox, ...]
    other_shapes: int
    """Polygons, points and the like."""
    empty_boxes: int
    """Boxes without area inside the frame."""
    left_out: int
    """Shapes of labels that were not wanted."""
    frames: tuple[int, int] | None
    """First and last annotated frame; None for the whole video."""
    num_pictures: int | None
    """Number of pictures of the task; None for a video."""


class _RawBox(NamedTuple):
    frame: int
    corners: tuple[float, float, float, float]
    """Corners in pixels, not clipped to the frame."""
    actions: tuple[str, ...]
    track: int


class Export:
    """Target of the parser: keeps the boxes and the facts about the task, and drops all else at once."""

    def __init__(self, path: Path, attributes: Sequence[str], leave_out: Sequence[str], check_boxes: bool) -> None:
        self.path, self.attributes, self.leave_out = path, attributes, frozenset(leave_out)
        self.check_boxes = check_boxes
        self.depth = 0
        self.builder: ElementTree.TreeBuilder | None = None
        """Builder of the element that is being kept: ``meta``, or one shape of a track."""
        self.meta = ElementTree.Element("meta")
        self.track: Mapping[str, str] = {}
        self.boxes: list[_RawBox] = []
        self.other_shapes = self.left_out = 0
        self.labels: dict[str, None] = {}
        self.track_ids: set[str] = set()

    # What the parser calls.

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise UserError("it declares a document type, which CVAT never writes", self.path)

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise UserError(f"has elements more than {DEEPEST} deep, which CVAT never writes", self.path)
        if (self.depth == 1 and tag != "annotations") or (self.depth == 2 and tag == "image"):
            raise UserError("is no task of a video", self.path, 'export it from CVAT as "CVAT for video 1.1"')
        if self.depth == 2:
            self.track = {}
            if tag == "track":
                self._start_track(attributes)
            elif tag == "meta":
                self.builder = ElementTree.TreeBuilder()
        elif self.depth == 3 and self.track:
            self.builder = ElementTree.TreeBuilder()
        if self.builder is not None:
            self.builder.start(tag, dict(attributes))

    def data(self, text: str) -> None:
        if self.builder is not None:
            self.builder.data(text)

    def end(self, tag: str) -> None:
        if self.builder is not None:
            self.builder.end(tag)
            if self.depth == (3 if self.track else 2):
                element, self.builder = self.builder.close(), None
                if self.track:
                    self._add_shape(element)
                else:
                    self.meta = element
        self.depth -= 1

    def close(self) -> None:
        """Nothing is left to do; what was read is in the attributes."""

    def _start_track(self, attributes: Mapping[str, str]) -> None:
        number, label = attributes.get("id"), attributes.get("label")
        if number is None or label is None:
            raise UserError(f"track {number} has no {'id' if number is None else 'label'}", self.path)
        if number in self.track_ids:
            raise UserError(f"two tracks have the id {number}", self.path, "export the task from CVAT once more")
        self.track_ids.add(number)
        check_one_line(label.strip(), "a label", self.path)
        self.labels[label.strip()] = None
        self.track = {"id": number, "label": label.strip()}

    def _add_shape(self, shape: ElementTree.Element) -> None:
        if shape.get("outside") == "1":
            return
        if self.track["label"] in self.leave_out:
            self.left_out += 1
            return
        if shape.tag != "box":
            self.other_shapes += 1
            return
        try:
            frame, number = int(shape.attrib["frame"]), int(self.track["id"])
            if frame < 0:
                raise ValueError("frames count from 0")
            corners = _corners(shape)
        except (KeyError, ValueError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else error
            place = f"box of track {self.track['id']} on frame {shape.get('frame')}"
            raise UserError(f"{place}: {reason}", self.path) from None
        self.boxes.append(_RawBox(frame, corners, self._actions(shape), number))

    def _actions(self, box: ElementTree.Element) -> tuple[str, ...]:
        label = self.track["label"]
        if not self.attributes and not self.check_boxes:
            return (label,)
        values = {attribute.get("name"): (attribute.text or "").strip() for attribute in box.iter("attribute")}
        absent = [name for name in self.attributes if name not in values]
        if self.attributes and len(absent) == len(self.attributes):
            raise UserError(
                f"track {self.track['id']} ({label}) has no attribute {', '.join(absent)} on frame {box.get('frame')}; "
                f"it has {', '.join(map(str, values)) or 'none'}",
                self.path,
                f'name the attribute that holds the action, or leave the label out by --leave-out "{label}"',
            )
        actions: dict[str, None] = {}
        for name in self.attributes:
            value = values.get(name, "")
            if value.lower() in ("true", "false"):  # a check box
                value = name if value.lower() == "true" else ""
            check_one_line(value, f"the attribute {name} of track {self.track['id']}", self.path)
            actions |= dict.fromkeys(part.strip() for part in value.split(",") if part.strip().lower() not in NO_ACTION)
        if self.check_boxes:
            checked = [str(name) for name, value in values.items() if value.lower() == "true"]
            for name in checked:
                check_one_line(name, f"an attribute of track {self.track['id']}", self.path)
            actions |= dict.fromkeys(checked)
        return tuple(actions)

    # What comes out.

    def task(self, size: tuple[int, int] | None) -> CvatTask:
        """Return what was read, with boxes as fractions of the frame."""
        unknown = self.leave_out - self.labels.keys()
        if unknown:
            known = ", ".join(self.labels) or "none"
            raise UserError(f"has no label {min(unknown)!r} to leave out; it has {known}", self.path)
        job, tasks = self.meta.find("job"), self.meta.findall(".//task")
        if len(tasks) > 1:
            raise UserError("is a project of several tasks", self.path, "export them from CVAT one by one")
        about = job if job is not None else next(iter(tasks), self.meta)
        pictures = about.findtext("mode") == "annotation"
        width, height = self._size(pictures) if size is None else size
        frames = self._frames(about, is_job=job is not None)
        boxes = [box._replace(corners=_fractions(box.corners, width, height)) for box in self.boxes]
        seen = [CvatBox(*box) for box in boxes if box.corners[0] < box.corners[2] and box.corners[1] < box.corners[3]]
        seen.sort(key=lambda box: (box.frame, box.track))
        return CvatTask(
            tuple(seen),
            self.other_shapes,
            len(boxes) - len(seen),
            self.left_out,
            frames,
            _whole(about.findtext("size")) if pictures else None,
        )

    def _size(self, pictures: bool) -> tuple[float, float]:
        size = self.meta.find(".//original_size")
        if size is None:
            remedy = "give it by --size WIDTHxHEIGHT"
            if pictures:
                problem = "is a task made of pictures, whose size CVAT does not write"
                raise UserError(problem, self.path, f"{remedy}, and by --frame-rate how many of them show one second")
            raise UserError("does not say the size of the video (meta/task/original_size)", self.path, remedy)
        try:
            width, height = (float(size.findtext(side, "nan")) for side in ("width", "height"))
        except ValueError:
            width = height = math.nan
        if not (0 < width < math.inf and 0 < height < math.inf):
            raise UserError(f"the size of the video must be positive, got {width:g}x{height:g}", self.path)
        return width, height

    def _frames(self, about: ElementTree.Element, is_job: bool) -> tuple[int, int] | None:
        """Return the frames that the export is about: a job is a part of its task, a task may be a part of a video."""
        first, last = (_whole(about.findtext(name)) for name in ("start_frame", "stop_frame"))
        if first is None or last is None or last < first:
            if is_job:
                raise UserError("is a job that does not say its frames", self.path, "export the whole task from CVAT")
            return None
        outside = [box.frame for box in self.boxes if not first <= box.frame <= last]
        if outside:
            what, remedy = "job", "export the whole task from CVAT"
            if not is_job:
                what, remedy = "task", "delete start_frame and stop_frame from it if it is about the whole video"
            problem = f"is a {what} of the frames {first} to {last} with a box on frame {outside[0]}"
            raise UserError(problem, self.path, remedy)
        return first, last


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdecimal() and len(text) < 12 else None


def _corners(box: ElementTree.Element) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(box.attrib[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
    degrees = float(box.get("rotation", 0))
    if not all(map(math.isfinite, (x1, y1, x2, y2, degrees))):
        raise ValueError("corners and rotation must be finite numbers")
    turn = math.radians(degrees)
    if turn:
        sine, cosine = abs(math.sin(turn)), abs(math.cos(turn))
        half_width = ((x2 - x1) * cosine + (y2 - y1) * sine) / 2
        half_height = ((x2 - x1) * sine + (y2 - y1) * cosine) / 2
        centre_x, centre_y = (x1 + x2) / 2, (y1 + y2) / 2
        x1, x2, y1, y2 = centre_x - half_width, centre_x + half_width, centre_y - half_height, centre_y + half_height
    return x1, y1, x2, y2


def _fractions(corners: Sequence[float], width: float, height: float) -> tuple[float, ...]:
    sides = (width, height, width, height)
    return tuple(min(max(corner / side, 0.0), 1.0) for corner, side in zip(corners, sides, strict=True))
