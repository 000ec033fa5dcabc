"""Records of annotated videos, and the base class of the sources that read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from datamodules.annotations.mistakes import Mistake
from datamodules.errors import printable
from datamodules.video.picture_folder import PictureFolder, Video, path_of

Split = Literal["train", "val", "test"]
NAMES_SHOWN = 20


class Keyframe(NamedTuple):
    """The annotation of one moment of one video: M boxes, K classes."""

    timestamp: float
    """Seconds from the start of the video."""
    boxes: np.ndarray
    """(M, 4) float32, xyxy as fractions of the frame."""
    labels: np.ndarray
    """(M, K) uint8 multi-hot."""
    tracks: np.ndarray | None = None
    """(M,) int64, whose box it is: the same number is the same person all through the video; None where people are not
    identified."""


class AnnotatedVideo(NamedTuple):
    """One video and its keyframes in order of time; no keyframes where nothing is annotated (prediction)."""

    video_id: str
    path: Video
    keyframes: tuple[Keyframe, ...]


class DetectionSource:
    """A data set for spatio-temporal detection. Constructors touch no disk; ``prepare`` and ``videos`` do."""

    start_seconds: float = 0.0
    """Time that files of annotations and of detections give to the beginning of the videos."""
    mistakes: list[Mistake] | None = None
    """List that collects mistakes in the data, which are skipped; None raises the first."""

    def prepare(self) -> None:
        """Make, convert or check what ``videos`` will read; called once, on one process. Idempotent."""

    def class_names(self) -> tuple[str, ...]:
        """Names of the K classes; a class id is a position in this tuple."""
        raise NotImplementedError

    def evaluated_classes(self) -> tuple[int, ...] | None:
        """The class ids that are scored; None for all."""
        return None

    def videos(self, split: Split) -> tuple[AnnotatedVideo, ...]:
        """The videos of a split in a fixed order; ``test`` is ``val`` where a data set has no third split."""
        raise NotImplementedError


def shared_videos(train: Mapping[str, object], others: Mapping[str, object]) -> list[str]:
    """Return the names of ``others`` that are in ``train`` too, by name or by file; both are name -> file."""

    def place(file: object) -> str:
        return str(path_of(file).resolve() if isinstance(file, Path | PictureFolder) else file)

    places = set(map(place, train.values()))
    return [name for name, file in others.items() if name in train or place(file) in places]


def report_left_out(
    origin: str | Path,
    left_out: Mapping[str, Sequence[str]],
    mistakes: list[Mistake] | None = None,
    sort: type[Mistake] = Mistake,
) -> None:
    """Say once what is not used, with its names; kinds of which there are none are passed over.

    Where ``mistakes`` are collected nothing is said, and every name is put down as one of that sort.
    """
    from lightning.pytorch.utilities import rank_zero_warn

    for what, names in left_out.items():
        if mistakes is not None:
            mistakes.extend(sort(what, f"{origin}: {name}") for name in names)
        elif names:
            shown = ", ".join(names[:NAMES_SHOWN]) + (" ..." if len(names) > NAMES_SHOWN else "")
            rank_zero_warn(printable(f"{origin}: {len(names)} {what}: {shown}"))
