"""Annotations made with CVAT, turned into the csv that ``OwnVideos`` reads.

::

    python -m datamodules.annotations.cvat task.xml --video kitchen_07 --video-file videos/kitchen_07.mp4 \\
        --output boxes.csv --classes classes.txt

reads a task exported as "CVAT for video 1.1" (the xml, or the zip that CVAT wraps it in) and adds its boxes to
``boxes.csv`` and its actions to ``classes.txt``, one video a call. A video that is there already is replaced, so a
corrected task can be read again; action ids that were given once stay.

The action of a box is its label. Where the label is something else ("person"), ``--attribute NAME`` names the attribute
that holds the action, or several with commas between them; a check box stands for an action of its own name. ``none``,
``__undefined__`` and nothing at all make a box of somebody without action. ``--attribute`` may be given more than once.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from datamodules.errors import shown_in_one_line
from datamodules.video import list_video

NO_ACTION = frozenset({"", "none", "__undefined__"})


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
    """The boxes of one video, and what could not be read as one."""

    boxes: tuple[CvatBox, ...]
    other_shapes: int
    """Polygons, points and the like."""
    empty_boxes: int
    """Boxes without area inside the frame."""


def read_cvat(path: str | Path, attributes: Sequence[str] = ()) -> CvatTask:
    """Read a task exported as "CVAT for video 1.1".

    CVAT writes the box of every frame, in between those that somebody drew too, and one with ``outside`` set where a
    person leaves; that one is no box. Boxes are cut off at the edges of the frame; of a rotated one its outer
    bounds are taken.

    Args:
        path: the xml or the zip.
        attributes: those that hold the actions; none for the label.

    Raises:
        ValueError: the file is another form of export, holds several tasks, lacks an attribute, or declares a document
            type, with which entities can be made that fill the memory.
    """
    path = Path(path)
    root = _parse(path)
    if root.tag != "annotations" or root.find("image") is not None:
        raise ValueError(f'{path} is no task of a video; export it from CVAT as "CVAT for video 1.1"')
    if len(root.findall("meta//task")) > 1:
        raise ValueError(f"{path} is a project of several tasks; export them from CVAT one by one")
    size = root.find("meta//original_size")
    if size is None:
        raise ValueError(f"{path} does not say the size of the video (meta/task/original_size); export the task again")
    width, height = (float(size.findtext(side, "nan")) for side in ("width", "height"))
    if not (width > 0 and height > 0):
        raise ValueError(f"{path}: the size of the video must be positive, got {width:g}x{height:g}")
    boxes, other_shapes, empty_boxes = [], 0, 0
    for track in root.findall("track"):
        for shape in track:
            if shape.get("outside") == "1":
                continue
            if shape.tag != "box":
                other_shapes += 1
                continue
            try:
                frame, number = int(shape.attrib["frame"]), int(track.attrib["id"])
                corners = _corners(shape, width, height)
            except (KeyError, ValueError) as error:
                reason = f"it lacks {error}" if isinstance(error, KeyError) else error
                place = f"track {track.get('id')} on frame {shape.get('frame')}"
                raise ValueError(f"{path}, box of {place}: {reason}") from None
            if corners[0] < corners[2] and corners[1] < corners[3]:
                actions = _actions(path, track, shape, attributes)
                boxes.append(CvatBox(frame, corners, actions, number))
            else:
                empty_boxes += 1
    boxes.sort(key=lambda box: (box.frame, box.track))
    return CvatTask(tuple(boxes), other_shapes, empty_boxes)


class _Builder(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it declares a document type, which CVAT never writes")


def _parse(path: Path) -> ElementTree.Element:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such export of CVAT")
    parser = ElementTree.XMLParser(target=_Builder())
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive, archive.open("annotations.xml") as file:
                return ElementTree.parse(file, parser).getroot()
        return ElementTree.parse(path, parser).getroot()
    except (ElementTree.ParseError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a readable export of CVAT: {error}") from None


def _corners(box: ElementTree.Element, width: float, height: float) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(box.attrib[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
    turn = math.radians(float(box.get("rotation", 0)))
    if turn:
        sine, cosine = abs(math.sin(turn)), abs(math.cos(turn))
        half_width = ((x2 - x1) * cosine + (y2 - y1) * sine) / 2
        half_height = ((x2 - x1) * sine + (y2 - y1) * cosine) / 2
        centre_x, centre_y = (x1 + x2) / 2, (y1 + y2) / 2
        x1, x2, y1, y2 = centre_x - half_width, centre_x + half_width, centre_y - half_height, centre_y + half_height
    return tuple(
        float(np.clip(corner / side, 0, 1)) for corner, side in ((x1, width), (y1, height), (x2, width), (y2, height))
    )


def _actions(
    path: Path, track: ElementTree.Element, box: ElementTree.Element, attributes: Sequence[str]
) -> tuple[str, ...]:
    if not attributes:
        return (track.attrib["label"].strip(),)
    values = {attribute.get("name"): (attribute.text or "").strip() for attribute in box.iter("attribute")}
    absent = [name for name in attributes if name not in values]
    if len(absent) == len(attributes):
        raise ValueError(
            f"{path}: track {track.get('id')} ({track.get('label')}) has no attribute {', '.join(absent)} on frame "
            f"{box.get('frame')}; it has {', '.join(map(str, values)) or 'none'}"
        )
    actions: dict[str, None] = {}
    for name in attributes:
        value = values.get(name, "")
        if value.lower() in ("true", "false"):  # a check box
            value = name if value.lower() == "true" else ""
        actions |= dict.fromkeys(part.strip() for part in value.split(",") if part.strip().lower() not in NO_ACTION)
    return tuple(actions)


def add_to_csv(
    task: CvatTask, video: str, times: np.ndarray, output: str | Path, classes: str | Path
) -> tuple[str, ...]:
    """Add a task to a csv in AVA's column order and its actions to a file of class names; returns the new ones.

    Rows that the csv has of the same video are replaced.

    Args:
        task: what was annotated.
        video: name of the video, its file name without ending.
        times: (N,) seconds at which the frames of the video are shown.
        output: the csv; made if it is not there.
        classes: text file with a name a line, line n is action id n; made if it is not there, new actions are added.
    """
    output, classes = Path(output), Path(classes)
    last = max((box.frame for box in task.boxes), default=-1)
    if last >= len(times):
        raise ValueError(f"frame {last} of {video} is annotated, but it has {len(times)} frames; is this the video?")
    text = classes.read_text(encoding="utf-8-sig") if classes.is_file() else ""
    known = [line.strip() for line in text.rstrip().splitlines()]
    new = tuple(dict.fromkeys(action for box in task.boxes for action in box.actions if action not in known))
    ids = {action: number for number, action in enumerate([*known, *new], start=1)}
    rows = []
    if output.is_file():
        with output.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row and row[0].strip() != video]
    for box in task.boxes:
        place = [video, f"{times[box.frame]:.6f}", *(f"{corner:.6f}" for corner in box.corners)]
        rows += [[*place, ids[action] if action else "", box.track] for action in box.actions or ("",)]
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    # Names first: a csv with ids that have no name could not be read.
    if new:
        classes.write_text("".join(f"{action}\n" for action in (*known, *new)), encoding="utf-8")
    partial.replace(output)
    return new


def main(args: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.annotations.cvat",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", type=Path, help='xml, or zip, of a task exported as "CVAT for video 1.1"')
    parser.add_argument("--video", required=True, help="name of the video: its file name without ending")
    timing = parser.add_mutually_exclusive_group(required=True)
    timing.add_argument("--video-file", type=Path, help="the video, which tells when each frame is shown")
    timing.add_argument("--frame-rate", type=float, help="frames a second, where the video is not at hand")
    parser.add_argument("--output", type=Path, required=True, help="csv to add to")
    parser.add_argument("--classes", type=Path, required=True, help="file of class names to add to")
    parser.add_argument("--attribute", action="append", default=[], help="attribute that holds the action")
    given = parser.parse_args(args)
    if given.frame_rate is not None and not given.frame_rate > 0:
        parser.error(f"--frame-rate must be positive, got {given.frame_rate:g}")
    try:
        task = read_cvat(given.task, given.attribute)
        if given.video_file is not None:
            times = list_video(given.video_file).times
        else:
            times = np.arange(max((box.frame for box in task.boxes), default=-1) + 1) / given.frame_rate
        new = add_to_csv(task, given.video, times, given.output, given.classes)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(1, f"error: {error}\n")
    people, counts = {box.track for box in task.boxes}, Counter(action for box in task.boxes for action in box.actions)
    print(f"{given.output}: {len(task.boxes)} boxes of {len(people)} people in {given.video}")
    for action, count in counts.most_common():
        print(f"  {action}: {count}{' (new)' if action in new else ''}")
    for count, what in ((task.other_shapes, "shapes that are no boxes"), (task.empty_boxes, "boxes without area")):
        if count:
            print(f"  left out: {count} {what}")


if __name__ == "__main__":
    with shown_in_one_line():
        main()
