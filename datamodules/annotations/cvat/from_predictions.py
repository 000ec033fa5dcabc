"""Predictions turned into tracks that CVAT imports, so that footage becomes corrected labels.

::

    python main.py predict --weights results/weights/dsta.pt --source videos/kitchen_07.mp4
    python -m datamodules.annotations.cvat --from-predictions runs/predictions/kitchen_07.jsonl \\
        --video videos/kitchen_07.mp4 --output kitchen_07.zip --labels kitchen_07.labels.json

``--labels`` writes what the "Raw" constructor of a new CVAT task takes: a label with a check box for each action.
Upload the zip to the task as "CVAT 1.1". Once it is corrected, export it as "CVAT for video 1.1" and read it with
``--check-boxes``.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from datamodules.annotations.cvat.predicted import Predictions, Thresholds, read_predictions
from datamodules.annotations.cvat.written import VideoFacts, Written, write_cvat, write_labels
from datamodules.errors import UserError, printable, shown_in_one_line
from datamodules.text_files import read_class_list
from datamodules.video.listing import FrameListing
from datamodules.video.readers import list_video


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.annotations.cvat",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--from-predictions", type=Path, required=True, help="jsonl of predict, of one video")
    parser.add_argument("--video", type=Path, required=True, help="the video that was predicted on")
    parser.add_argument("--output", type=Path, required=True, help="xml or zip to write")
    parser.add_argument("--labels", type=Path, help="json to write: the label of a new CVAT task")
    parser.add_argument("--classes", type=Path, help="file of class names, if all shall be check boxes")
    parser.add_argument("--label", default="person", help="of every track")
    parser.add_argument("--score", type=float, default=0.0, help="least score of an action")
    parser.add_argument("--person-score", type=float, default=0.0, help="least score of a person")
    parser.add_argument("--shortest-track", type=int, default=1, help="boxes that a track must have")
    parser.add_argument(
        "--tolerance", type=float, default=2.0, help="pixels between a box and the line from keyframe to keyframe"
    )
    given = parser.parse_args(args)
    if not given.tolerance >= 0:
        parser.error(f"--tolerance must be at least 0, got {given.tolerance:g}")
    with shown_in_one_line():
        thresholds = Thresholds(given.score, given.person_score, given.shortest_track)
        listing = list_video(given.video)
        predictions = read_predictions(given.from_predictions, thresholds)
        _check_video(given.from_predictions, predictions, given.video, listing)
        actions = _actions(predictions, given.classes)
        video = VideoFacts(given.video.name, len(listing.times), listing.height, listing.width)
        written = write_cvat(given.output, predictions, video, given.label, actions, given.tolerance)
        if given.labels is not None:
            write_labels(given.labels, given.label, actions)
    print(_report(given.output, predictions, written))


def _check_video(file: Path, predictions: Predictions, video: Path, listing: FrameListing) -> None:
    """Refuse predictions of another video."""
    remedy = "give the video that was predicted on"
    if PurePosixPath(predictions.video).name not in (video.stem, video.name):
        raise UserError(f"is about {predictions.video!r}, not about {video}", file, remedy)
    if predictions.frames[-1] >= len(listing.times):
        problem = f"has a frame {predictions.frames[-1]}, but {video} has {len(listing.times)} frames"
        raise UserError(problem, file, remedy)


def _actions(predictions: Predictions, classes: Path | None) -> tuple[str, ...]:
    if classes is None:
        return predictions.actions
    known = read_class_list(classes)
    unknown = [name for name in predictions.actions if name not in known]
    if unknown:
        raise UserError(f"lacks the action {unknown[0]!r} of the predictions", classes, "give the detector's classes")
    return known


def _report(output: Path, predictions: Predictions, written: Written) -> str:
    counts = Counter(name for boxes in predictions.tracks.values() for box in boxes for name in box.actions)
    lines = [
        f"{output}: {len(predictions.tracks)} tracks of {predictions.video}, {written.boxes} boxes, "
        f"{written.keyframes} of them keyframes",
        *(f"  {action}: {count}" for action, count in counts.most_common()),
    ]
    return "\n".join(map(printable, lines))
