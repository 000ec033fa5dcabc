"""The annotation files of a split, all written from the same records."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.files import write_whole
from datamodules.puppets.actions import CLASS_NAMES, FRAMES_PER_SECOND, Span
from datamodules.puppets.appearance import FRAME_SIZE

ANNOTATED_EVERY = 2
"""The csv describes frames 0, 2, 4, ...; tubes and segments are exact to the frame."""


class PersonRecord(NamedTuple):
    """Labels of one puppet in a video of T frames."""

    spans: tuple[Span, ...]
    boxes: np.ndarray
    """(T, 4) float64, xyxy in pixels."""


class VideoRecord(NamedTuple):
    video_id: str
    num_frames: int
    persons: tuple[PersonRecord, ...]
    """Person n of the annotation files is entry n - 1."""


def write_annotations(folder: Path, split: str, records: Sequence[VideoRecord]) -> None:
    """Write ``<split>.csv``, ``<split>_tubes.json`` and ``<split>_segments.json``."""
    rows = io.StringIO()
    csv.writer(rows, lineterminator="\n").writerows(row for record in records for row in ava_rows(record))
    write_whole(folder / f"{split}.csv", rows.getvalue())
    write_whole(folder / f"{split}_tubes.json", json.dumps({record.video_id: tubes(record) for record in records}))
    database = {record.video_id: segments(record, split) for record in records}
    write_whole(folder / f"{split}_segments.json", json.dumps({"database": database}))


def ava_rows(record: VideoRecord) -> list[tuple]:
    """Rows in AVA's column order: video, seconds, x1, y1, x2, y2, action id (from 1; empty where idle), person id."""
    rows = []
    for frame in range(0, record.num_frames, ANNOTATED_EVERY):
        for person, (spans, boxes) in enumerate(record.persons, start=1):
            box = [f"{coordinate:.4f}" for coordinate in boxes[frame] / FRAME_SIZE]
            active = sorted(CLASS_NAMES.index(span.action) + 1 for span in spans if span.start <= frame < span.stop)
            for action in active or [""]:
                rows.append((record.video_id, f"{frame / FRAMES_PER_SECOND:.4f}", *box, action, person))
    return rows


def tubes(record: VideoRecord) -> dict:
    """Return every action of every person with a box (pixels) per frame, from ``start_frame`` on."""
    persons = {
        str(person): [
            {
                "label": span.action,
                "start_frame": span.start,
                "boxes": np.round(boxes[span.start : span.stop], 2).tolist(),
            }
            for span in spans
        ]
        for person, (spans, boxes) in enumerate(record.persons, start=1)
    }
    return {"num_frames": record.num_frames, "width": FRAME_SIZE, "height": FRAME_SIZE, "persons": persons}


def segments(record: VideoRecord, split: str) -> dict:
    """Return the actions in the video in ActivityNet's form; a segment ends where its last frame ends.

    Two people who do the same at the same time make one segment: nothing in the form could hold them apart.
    """
    annotations = []
    for label in CLASS_NAMES:
        active = np.zeros(record.num_frames + 2, dtype=np.int8)
        for person in record.persons:
            for span in person.spans:
                if span.action == label:
                    active[span.start + 1 : span.stop + 1] = 1
        starts, stops = np.flatnonzero(np.diff(active) == 1), np.flatnonzero(np.diff(active) == -1)
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            annotations.append({"label": label, "segment": [start / FRAMES_PER_SECOND, stop / FRAMES_PER_SECOND]})
    annotations.sort(key=lambda annotation: annotation["segment"])
    return {"subset": split, "duration": record.num_frames / FRAMES_PER_SECOND, "annotations": annotations}
