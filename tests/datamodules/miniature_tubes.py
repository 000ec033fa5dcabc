"""Data sets of tubes in miniature: numbered videos in a folder a class, and their boxes in every form there is."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.datamodules.miniature import numbered_frames
from tests.datamodules.written_videos import write_video

TUBES = {
    # Name, number of frames, tubes (class id, first frame from 0, boxes x y width height counted from 1, in 8 bits).
    "Basketball/one": (6, [(0, 1, [[200, 101, 100, 50], [201, 101, 100, 50]]), (0, 2, [[1, 1, 30, 240]])]),
    "Biking/two": (5, [(2, 0, [[11, 21, 30, 40]] * 5)]),
    "WalkingWithDog/three": (4, [(23, 3, [[161, 121, 160, 120]])]),
}
CORNERS = {
    # Video, frame from 0: what all forms say, in pixels from 0, inclusive, worked out by hand.
    ("one", 1): [[199, 100, 298, 149]],
    ("one", 2): [[200, 100, 299, 149], [0, 0, 29, 239]],
    **{("two", frame): [[10, 20, 39, 59]] for frame in range(5)},
    ("three", 3): [[160, 120, 319, 239]],
}
LENGTHS = {"one": 6, "two": 5, "three": 4}
TEST = ["Biking/two"]


def write_videos(root: Path, size: tuple[int, int] = (48, 64)) -> Path:
    """The videos as files ``<class>/<video>.avi``."""
    for name, (length, _) in TUBES.items():
        write_video(root / f"{name}.mp4", numbered_frames(length, *size), fps=25)
        (root / f"{name}.mp4").rename(root / f"{name}.avi")
    return root


def write_pyannot(path: Path) -> Path:
    contents = {
        name: {
            "numf": np.uint8(length),
            "label": tubes[0][0],
            "annotations": [
                {"label": label, "sf": start, "ef": start + len(boxes), "boxes": np.asarray(boxes, np.uint8)}
                for label, start, boxes in tubes
            ],
        }
        for name, (length, tubes) in TUBES.items()
    }
    path.write_bytes(pickle.dumps(contents, protocol=2))
    return path


def write_ground_truth(path: Path, classes: Sequence[str], splits: int = 1) -> Path:
    gttubes = {
        name: {
            tubes[0][0]: [
                np.asarray(
                    [(start + at + 1, x - 1, y - 1, x + w - 2, y + h - 2) for at, (x, y, w, h) in enumerate(boxes)],
                    np.float32,
                )
                for _, start, boxes in tubes
            ]
        }
        for name, (_, tubes) in TUBES.items()
    }
    names = list(TUBES)
    # Split n tests on the n-th video after the first, in a circle.
    tests = [[names[(number + 1) % len(names)]] for number in range(splits)]
    contents = {
        "labels": list(classes),
        "gttubes": gttubes,
        "nframes": {name: length for name, (length, _) in TUBES.items()},
        "resolution": dict.fromkeys(names, (240, 320)),
        "train_videos": [[name for name in names if name not in test] for test in tests],
        "test_videos": tests,
    }
    path.write_bytes(pickle.dumps(contents, protocol=0))
    return path


def write_labels(folder: Path) -> Path:
    for name, (length, tubes) in TUBES.items():
        (folder / name).mkdir(parents=True)
        for frame in range(length):
            lines = [
                f"{label + 1} {x} {y} {x + w} {y + h}"
                for label, start, boxes in tubes
                for at, (x, y, w, h) in enumerate(boxes)
                if start + at == frame
            ]
            if lines or frame == 0:  # a frame without a box has no file, or an empty one
                (folder / name / f"{frame + 1:05d}.txt").write_text("\n".join(lines))
    return folder
