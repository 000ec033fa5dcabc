"""Tracks written as "CVAT for video 1.1", so that CVAT imports them to be corrected.

A track is one person. Its boxes lie on the predicted frames. CVAT takes only those marked as keyframes and interpolates
linearly between them. So the fewest are marked from which the lines come within a tolerance of every box: who corrects
a track has little to move. Actions are check boxes that may change from keyframe to keyframe. A box with ``outside``
set ends a track, and every part of it after which the person is lost for a while.
"""

from __future__ import annotations

import json
import re
import zipfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO, NamedTuple
from xml.sax.saxutils import XMLGenerator

import numpy as np

from datamodules.annotations.cvat.predicted import PredictedBox, Predictions
from datamodules.errors import UserError
from datamodules.files import whole_file, write_whole
from datamodules.text_files import check_one_line

NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class VideoFacts(NamedTuple):
    """Facts of a video in CVAT's file."""

    file_name: str
    num_frames: int
    height: int
    width: int


class Written(NamedTuple):
    """Counts of what was written."""

    boxes: int
    keyframes: int
    """Boxes that are keyframes, without those that end a track."""


def write_cvat(
    path: str | Path,
    predictions: Predictions,
    video: VideoFacts,
    label: str,
    actions: Sequence[str],
    tolerance_pixels: float = 2.0,
) -> Written:
    """Write tracks as xml, or as the zip that CVAT wraps it in, by the ending of the path.

    Args:
        path: the file, whole or not there.
        predictions: the tracks.
        video: the video that they are of.
        label: of every track.
        actions: all check boxes of the label; those of the predictions among them.
        tolerance_pixels: how far a corner may be from the line between two keyframes.
    """
    for name in (label, video.file_name, *actions):
        check_one_line(name, "a name", path)
        if NOT_IN_XML.search(name):
            raise UserError(f"xml cannot hold the name {name!r}", path, "rename it")
    boxes = keyframes = 0
    with _opened(Path(path)) as file:
        xml = _Xml(file)
        with xml.element("annotations"):
            xml.text("version", "1.1")
            _write_meta(xml, video, label, actions)
            for number, track in sorted(predictions.tracks.items()):
                marked = [
                    keyframe for run in runs(track, predictions.frames) for keyframe in _marks(run, tolerance_pixels)
                ]
                with xml.element("track", id=str(number), label=label, source="file"):
                    _write_track(xml, track, marked, predictions.frames, video.num_frames)
                boxes, keyframes = boxes + len(track), keyframes + sum(marked)
    return Written(boxes, keyframes)


def write_labels(path: str | Path, label: str, actions: Sequence[str]) -> None:
    """Write the label with its check boxes, as the "Raw" constructor of a CVAT task takes it."""
    attributes = [
        {"name": name, "mutable": True, "input_type": "checkbox", "default_value": "false", "values": ["false"]}
        for name in actions
    ]
    write_whole(path, json.dumps([{"name": label, "attributes": attributes}], indent=2, ensure_ascii=False) + "\n")


def runs(track: Sequence[PredictedBox], frames: Sequence[int]) -> list[list[PredictedBox]]:
    """Cut a track where a frame that was looked at does not show the person."""
    place = {frame: index for index, frame in enumerate(frames)}
    found: list[list[PredictedBox]] = []
    for box in track:
        if found and place[box.frame] == place[found[-1][-1].frame] + 1:
            found[-1].append(box)
        else:
            found.append([box])
    return found


def _marks(run: Sequence[PredictedBox], tolerance: float) -> list[bool]:
    """Say which boxes of a run are keyframes: its ends, changes of action, and what is off the line between them."""
    frames = np.asarray([box.frame for box in run], np.float64)
    corners = np.asarray([box.corners for box in run])
    marked = np.zeros(len(run), bool)
    marked[[0, -1]] = True
    for place, (before, box) in enumerate(pairwise(run), start=1):
        marked[place] |= box.actions != before.actions
    fixed = np.flatnonzero(marked).tolist()
    waiting = list(pairwise(fixed))
    while waiting:  # Douglas and Peucker: the box that is furthest off the line becomes a keyframe
        first, last = waiting.pop()
        if last - first < 2:
            continue
        inner = slice(first + 1, last)
        share = ((frames[inner] - frames[first]) / (frames[last] - frames[first]))[:, None]
        off = np.abs(corners[first] + share * (corners[last] - corners[first]) - corners[inner]).max(axis=1)
        if off.max() > tolerance:
            furthest = first + 1 + int(off.argmax())
            marked[furthest] = True
            waiting += [(first, furthest), (furthest, last)]
    return marked.tolist()


def _write_track(
    xml: _Xml, track: Sequence[PredictedBox], marked: Sequence[bool], frames: Sequence[int], num_frames: int
) -> None:
    """Write the boxes, and one that is outside where the next frame that was looked at does not show the person."""
    actions = sorted(frozenset().union(*(box.actions for box in track)))
    following = [*track[1:], None]
    step = min(np.diff(frames).tolist(), default=1)
    for box, is_keyframe, after in zip(track, marked, following, strict=True):
        _write_box(xml, box, actions, is_keyframe=is_keyframe, is_outside=False)
        index = bisect_right(frames, box.frame)
        next_frame = frames[index] if index < len(frames) else frames[-1] + step
        if next_frame < num_frames and (after is None or after.frame != next_frame):
            _write_box(xml, box._replace(frame=next_frame), actions, is_keyframe=True, is_outside=True)


def _write_box(xml: _Xml, box: PredictedBox, actions: Sequence[str], *, is_keyframe: bool, is_outside: bool) -> None:
    sides = dict(zip(("xtl", "ytl", "xbr", "ybr"), (f"{side:.2f}" for side in box.corners), strict=True))
    flags = {"keyframe": str(int(is_keyframe)), "outside": str(int(is_outside)), "occluded": "0"}
    with xml.element("box", frame=str(box.frame), **flags, **sides, z_order="0"):
        for name in actions:
            xml.text("attribute", "true" if name in box.actions else "false", name=name)


def _write_meta(xml: _Xml, video: VideoFacts, label: str, actions: Sequence[str]) -> None:
    with xml.element("meta"), xml.element("task"):
        xml.text("name", Path(video.file_name).stem)
        xml.text("size", str(video.num_frames))
        xml.text("mode", "interpolation")
        xml.text("start_frame", "0")
        xml.text("stop_frame", str(video.num_frames - 1))
        with xml.element("labels"), xml.element("label"):
            xml.text("name", label)
            with xml.element("attributes"):
                for action in actions:
                    with xml.element("attribute"):
                        xml.text("name", action)
                        xml.text("mutable", "True")
                        xml.text("input_type", "checkbox")
                        xml.text("default_value", "false")
                        xml.text("values", "false")
        with xml.element("original_size"):
            xml.text("width", str(video.width))
            xml.text("height", str(video.height))
        xml.text("source", video.file_name)


class _Xml:
    """Writer of elements as they come, so that a long track takes no memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self.generator = XMLGenerator(file, encoding="utf-8", short_empty_elements=True)
        self.generator.startDocument()

    @contextmanager
    def element(self, tag: str, **attributes: str) -> Iterator[None]:
        self.generator.startElement(tag, attributes)
        yield
        self.generator.endElement(tag)
        self.generator.characters("\n")

    def text(self, tag: str, text: str, **attributes: str) -> None:
        with self.element(tag, **attributes):
            self.generator.characters(text)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    if path.suffix.lower() not in (".xml", ".zip"):
        raise UserError("must end in .xml or .zip", path, "name one of the two")
    with whole_file(path, "wb") as file:
        if path.suffix.lower() == ".xml":
            yield file
            return
        with (
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("annotations.xml", "w", force_zip64=True) as inside,
        ):
            yield inside
