"""Turn annotations made with CVAT into the csv that ``OwnVideos`` reads.

    python -m datamodules.annotations.cvat task.xml --video kitchen_07 --video-file videos/kitchen_07.mp4 \\
        --output boxes.csv --classes classes.txt

It reads a task exported as "CVAT for video 1.1" (the xml, or the zip around it). Its boxes are added to ``boxes.csv``
and its actions to ``classes.txt``, one video per call. Boxes that are there already are replaced, so a corrected task
can be read again; action ids that were given once stay. Jobs exported one by one are joined: each replaces its own
frames. People have other numbers in each job, so the export of a whole task is the better one.

The action of a box is its label. Where the label is something else ("person"), ``--attribute NAME`` names the attribute
that holds the action. Several are separated by commas; a check box stands for an action of its own name. ``none``,
``__undefined__`` and an empty value make a box of a person without action. ``--attribute`` may be given more than once,
and so may ``--leave-out LABEL``, for labels that are no action ("ball"). ``--check-boxes`` reads every check box as an
action, as tracks made of predictions have them ( ``--from-predictions --help``).
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.annotations.ava_csv import COLUMNS, WIDTHS
from datamodules.annotations.cvat import from_predictions
from datamodules.annotations.cvat.export import read_cvat
from datamodules.annotations.cvat.tracks import CvatTask
from datamodules.errors import UserError, printable
from datamodules.files import whole_file, write_whole
from datamodules.program_help import ProgramParser
from datamodules.text_files import check_one_line, read_class_list, read_rows, read_text
from datamodules.video.listing import VideoError
from datamodules.video.readers import list_video


class Added(NamedTuple):
    """Settings that change a task on its way to a csv."""

    new: tuple[str, ...]
    """Actions that the list of classes did not have."""
    replaced: int
    """Rows of the same frames that are gone."""
    kept: int
    """Rows of the same video on other frames."""


def add_to_csv(task: CvatTask, video: str, times: np.ndarray, output: str | Path, classes: str | Path) -> Added:
    """Add a task to a csv in AVA's column order and its actions to a file of class names.

    Rows that the csv has of the same frames of the same video are replaced. Where others of the video stay, people
    who would share their number with one of them get another.

    Args:
        task: what was annotated.
        video: name of the video, its file name without ending.
        times: (N,) seconds at which the frames of the video are shown.
        output: the csv; made if it is not there.
        classes: text file with a name per line, line n is action id n; made if it is not there, new actions are added.
    """
    output, classes = Path(output), Path(classes)
    check_one_line(video, "--video", video)
    last = max((box.frame for box in task.boxes), default=-1)
    if last >= len(times):
        raise UserError(f"frame {last} of {video} is annotated, but it has {len(times)} frames; is this the video?")
    known = read_class_list(classes) if classes.is_file() and read_text(classes).strip() else ()
    new = tuple(dict.fromkeys(action for box in task.boxes for action in box.actions if action not in known))
    ids = {action: number for number, action in enumerate([*known, *new], start=1)}
    others, kept, replaced = _rows_of(output, video, _span(task.frames, times))
    shift = _shift({row[7] for row in kept if len(row) == 8}, {box.track for box in task.boxes})
    rows = others + kept
    for box in task.boxes:
        place = [video, f"{times[box.frame]:.6f}", *(f"{corner:.6f}" for corner in box.corners)]
        rows += [[*place, ids[action] if action else "", box.track + shift] for action in box.actions or ("",)]
    # Names first: a csv with ids that have no name could not be read.
    if new:
        write_whole(classes, "".join(f"{action}\n" for action in (*known, *new)))
    with whole_file(output, newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    return Added(new, replaced, len(kept))


def _span(frames: tuple[int, int] | None, times: np.ndarray) -> tuple[float, float]:
    """Return the seconds that belong to a range of frames, up to half-way to those before and after it."""
    if frames is None:
        return -np.inf, np.inf
    first, last = frames
    low = (times[first - 1] + times[first]) / 2 if 0 < first < len(times) else -np.inf
    high = (times[last] + times[last + 1]) / 2 if last + 1 < len(times) else np.inf
    return low, high


def _rows_of(output: Path, video: str, span: tuple[float, float]) -> tuple[list[list[str]], list[list[str]], int]:
    """Return the rows of other videos, those of this one that lie outside the span, and how many lie inside."""
    others: list[list[str]] = []
    kept: list[list[str]] = []
    replaced = 0
    if not output.is_file():
        return others, kept, replaced
    for line, row in read_rows(output, "csv", COLUMNS, WIDTHS):
        if row[0] != video:
            others.append(row)
            continue
        try:
            seconds = float(row[1])
        except (ValueError, IndexError):
            raise UserError(f"line {line}: expected {COLUMNS}", output) from None
        if span[0] <= seconds < span[1]:
            replaced += 1
        else:
            kept.append(row)
    return others, kept, replaced


def _shift(taken: set[str], tracks: set[int]) -> int:
    """Return what to add to the numbers of people, so that none of them is taken."""
    if taken.isdisjoint(map(str, tracks)):
        return 0
    return 1 + max(int(number) for number in taken if number.isdecimal())


def _frame_size(text: str) -> tuple[int, int]:
    """Read 640x480."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT in pixels, such as 640x480, got {text!r}")
    return int(width), int(height)


def _times(given: argparse.Namespace, task: CvatTask) -> np.ndarray:
    """Return when each frame is shown, by the video or by the frame rate."""
    if given.video_file is None:
        last = max([box.frame for box in task.boxes] + ([task.frames[1]] if task.frames else []), default=-1)
        return np.arange(last + 2) / given.frame_rate  # one more, to know where the last frame ends
    times = list_video(given.video_file).times
    if task.num_pictures not in (None, len(times)):
        raise UserError(
            f"is a task of {task.num_pictures} pictures, but {given.video_file} has {len(times)} frames",
            given.task,
            "give by --frame-rate how many of them show one second",
        )
    return times


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; tracks made of predictions have one of their own."""
    args = sys.argv[1:] if args is None else args
    if any(arg.partition("=")[0] == "--from-predictions" for arg in args):
        from_predictions.main(args)
        return
    parser = ProgramParser(__doc__, "python -m datamodules.annotations.cvat")
    parser.add_argument("task", type=Path, help='xml, or zip, of a task or a job exported as "CVAT for video 1.1"')
    parser.add_argument("--video", required=True, help="name of the video: its file name without ending")
    timing = parser.add_mutually_exclusive_group(required=True)
    timing.add_argument("--video-file", type=Path, help="the video, which tells when each frame is shown")
    timing.add_argument("--frame-rate", type=float, help="frames per second, where the video is not at hand")
    parser.add_argument("--output", type=Path, required=True, help="csv to add to")
    parser.add_argument("--classes", type=Path, required=True, help="file of class names to add to")
    parser.add_argument("--attribute", action="append", default=[], help="attribute that holds the action")
    parser.add_argument("--check-boxes", action="store_true", help="every check box stands for an action of its name")
    parser.add_argument("--leave-out", action="append", default=[], metavar="LABEL", help="label that is not read")
    parser.add_argument(
        "--size", type=_frame_size, metavar="WIDTHxHEIGHT", help="of the frames, for tasks made of pictures"
    )
    given = parser.parse_args(args)
    if given.frame_rate is not None and not 0 < given.frame_rate < np.inf:
        parser.error(f"--frame-rate must be positive, got {given.frame_rate:g}")
    try:
        leave_out = [label.strip() for label in given.leave_out]
        task = read_cvat(given.task, given.attribute, given.size, leave_out, check_boxes=given.check_boxes)
        times = _times(given, task)
        added = add_to_csv(task, given.video.strip(), times, given.output, given.classes)
    except (UserError, VideoError) as error:
        parser.exit(1, f"error: {error}\n")
    whole = task.frames in (None, (0, len(times) - 1))
    of_frames = "" if whole else f", frames {task.frames[0]} to {task.frames[1]}"
    print(_report(f"{given.video}{of_frames}", given.output, task, added))


def _report(video: str, output: Path, task: CvatTask, added: Added) -> str:
    people, counts = {box.track for box in task.boxes}, Counter(action for box in task.boxes for action in box.actions)
    lines = [f"{output}: {len(task.boxes)} boxes of {len(people)} people in {video}"]
    lines += [f"  {action}: {count}{' (new)' if action in added.new else ''}" for action, count in counts.most_common()]
    if added.replaced:
        lines.append(f"  replaced: {added.replaced} rows of these frames")
    if added.kept:
        lines.append(f"  joined with {added.kept} rows of other frames, whose people have other numbers")
    left_out = {
        "shapes that are no boxes": task.other_shapes,
        "boxes without area": task.empty_boxes,
        "shapes of labels that are not wanted": task.left_out,
    }
    lines += [f"  left out: {count} {what}" for what, count in left_out.items() if count]
    return "\n".join(map(printable, lines))
