"""AVA (v2.1, v2.2), as its annotators publish it; a part of its videos is enough."""

from __future__ import annotations

import math
import re
from itertools import compress
from pathlib import Path

import numpy as np

from datamodules.annotations.ava_csv import read_ava_csv
from datamodules.annotations.mistakes import AbsentVideo, Mistake, keep
from datamodules.annotations.places import only_video, require_folder, videos_in
from datamodules.annotations.source import AnnotatedVideo, DetectionSource, Split, report_left_out
from datamodules.errors import UserError
from datamodules.text_files import read_rows, read_text
from datamodules.video.listing import VideoError
from datamodules.video.picture_folder import PictureListing, Video
from datamodules.video.readers import list_video, nearest_frame

NUM_ACTIONS = 80
KEYFRAME_TOLERANCE = 0.5
"""Seconds. Annotated moments are a second apart; one whose nearest frame is further away than half of that has none."""
LAST_SECOND = 1798


class Ava(DetectionSource):
    """Films with boxes of people in every second from 902 to 1798, of up to 80 actions each, 60 of which are scored.

    Frames are found by their time, so neither the number of pictures nor the frame rate of a file matters. Videos may
    be missing: they are named once, and the rest is used.

    Args:
        videos: folder that holds every video under its name. A video is a folder of pictures counted from 1
            (``<name>/<name>_000001.jpg`` as for PySlowFast, ``<name>/img_00001.jpg`` as for mmaction2) or a file
            (``<name>.mp4``, ``.mkv``, ``.webm``, ...).
        label_map: the actions that are scored, as the challenge publishes them: names with ids from 1, holes allowed.
        train: csv of the training boxes, see ``read_ava_csv``.
        val: csv of the boxes to evaluate on.
        excluded: csv of the moments (video,seconds) that are not scored. It is for ``val``; nothing is left out of
            training, as in EVAD.
        action_names: all 80 actions in the form of ``label_map``, for the names of those that are not scored.
        frame_rate: pictures per second.
        frame_rates: of single videos that differ, by name.
        start_seconds: time in the csv at which pictures and files begin: 900 for films cut to their annotated 15
            minutes, 0 for whole films.
    """

    def __init__(
        self,
        videos: str | Path,
        label_map: str | Path,
        train: str | Path | None = None,
        val: str | Path | None = None,
        excluded: str | Path | None = None,
        action_names: str | Path | None = None,
        frame_rate: float = 30.0,
        frame_rates: dict[str, float] | None = None,
        start_seconds: float = 900.0,
    ) -> None:
        self.frame_rates = frame_rates or {}
        if min([frame_rate, *self.frame_rates.values()]) <= 0:
            raise UserError(f"frame rates must be positive, got {frame_rate} and {self.frame_rates}")
        self.folder = Path(videos)
        self.label_map = Path(label_map)
        self.boxes = {"train": train, "val": val}
        self.excluded = excluded
        self.action_names = action_names
        self.frame_rate = frame_rate
        self.start_seconds = start_seconds
        self._scored: dict[int, str] = {}
        self._videos: dict[str, tuple[AnnotatedVideo, ...]] = {}

    def prepare(self) -> None:
        """Look for every file before anything else happens."""
        require_folder(self.folder)
        files = [self.label_map, *self.boxes.values(), self.excluded, self.action_names]
        for file in (Path(file) for file in files if file is not None):
            if not file.is_file():
                raise UserError("no such file", file, "AVA's annotations are at research.google.com/ava")

    def class_names(self) -> tuple[str, ...]:
        names = {} if self.action_names is None else read_label_map(self.action_names)
        names |= self._scored_actions()
        listed = [names.get(action, f"action {action}") for action in range(1, NUM_ACTIONS + 1)]
        # Results are kept by name; in a mapping the ids distinguish actions.
        return tuple(
            f"{name} ({action})" if listed.count(name) > 1 else name for action, name in enumerate(listed, start=1)
        )

    def evaluated_classes(self) -> tuple[int, ...]:
        return tuple(action - 1 for action in sorted(self._scored_actions()))

    def videos(self, split: Split) -> tuple[AnnotatedVideo, ...]:
        split = "train" if split == "train" else "val"
        if split not in self._videos:
            self._videos[split] = self._read(split)
        return self._videos[split]

    def _scored_actions(self) -> dict[int, str]:
        if not self._scored:
            self._scored = read_label_map(self.label_map)
        return self._scored

    def _read(self, split: str) -> tuple[AnnotatedVideo, ...]:
        from tqdm import tqdm

        file = self.boxes[split]
        if file is None:
            raise UserError(
                f"Ava has no {split} boxes", remedy=f"set data.init_args.source.init_args.{split} to their csv"
            )
        read = read_ava_csv(file, self.class_names(), skip_empty_boxes=True, mistakes=self.mistakes)
        excluded = read_moments(self.excluded) if split == "val" and self.excluded is not None else frozenset()
        places = self._places()
        present = sorted(read.keys() & places.keys())
        if not present:
            name = min(read, default="")
            raise UserError(
                f"holds none of the {len(read)} videos of {file}, neither a folder {name} of pictures nor a file "
                f"{name}.mp4, for instance",
                self.folder,
            )
        videos, unreadable, uncovered = [], [], []
        for name in tqdm(present, desc=f"{split} videos", unit="video", leave=False, disable=len(present) == 1):
            try:
                place = only_video(name, places[name])
                times = self._times_of_frames(place)
            except VideoError as error:
                unreadable.append(str(error))
                continue
            except Mistake as mistake:
                keep(mistake, self.mistakes)
                continue
            keyframes = [
                keyframe._replace(timestamp=keyframe.timestamp - self.start_seconds)
                for keyframe in read[name]
                if (name, keyframe.timestamp) not in excluded
            ]
            moments = np.asarray([keyframe.timestamp for keyframe in keyframes])
            shown = np.abs(times[nearest_frame(times, moments)] - moments) <= KEYFRAME_TOLERANCE
            if not shown.all():
                uncovered.append(f"{name} ({(~shown).sum()} of {len(shown)}, has frames until {times[-1]:.0f} s)")
            if shown.any():
                videos.append(AnnotatedVideo(name, place, tuple(compress(keyframes, shown))))
        what = f"of {len(read)} videos are not in {self.folder} and are left out"
        report_left_out(file, {what: sorted(read.keys() - places.keys())}, self.mistakes, AbsentVideo)
        report_left_out(
            file,
            {
                "videos cannot be read and are left out": unreadable,
                "videos have annotated seconds without a frame, which are left out (for pictures at another rate than "
                "the rest there is frame_rates)": uncovered,
            },
            self.mistakes,
        )
        if not videos:
            raise UserError(
                "none of the annotated seconds has a frame",
                file,
                f"start_seconds={self.start_seconds:g} must be the time in the csv at which the videos begin",
            )
        return tuple(videos)

    def _times_of_frames(self, video: Video) -> np.ndarray:
        """Return the times of frames, those missing from a folder of pictures left out."""
        listing = list_video(video)
        if self.start_seconds > 0 and listing.times[-1] > LAST_SECOND:
            raise UserError(
                f"is {listing.times[-1]:.0f} s long, as only a whole film is",
                video,
                "set start_seconds to 0 for films that are not cut to their annotated part",
            )
        return listing.times[listing.present] if isinstance(listing, PictureListing) else listing.times

    def _places(self) -> dict[str, list[Video]]:
        """Find what there is of each video, by name."""
        require_folder(self.folder)
        return videos_in(self.folder, lambda name: self.frame_rates.get(name, self.frame_rate))


def read_label_map(path: str | Path) -> dict[int, str]:
    """Return the names of actions by their id, from 1, of a text-format protocol buffer.

    Takes both forms that AVA publishes: ``item { name: "sit" id: 11 }`` (the 60 scored actions) and
    ``label { name: "sit" label_id: 11 label_type: PERSON_MOVEMENT }`` (all 80).
    """
    actions: dict[int, str] = {}
    for entry in re.findall(r"\{(.*?)\}", read_text(path, "label map"), re.DOTALL):
        name, action = re.search(r'name:\s*"([^"]*)"', entry), re.search(r"id:\s*(\d+)", entry)
        if name is None or action is None:
            raise UserError(f"an entry lacks its name or its id: {' '.join(entry.split())}", path)
        number = int(action[1])
        if not 1 <= number <= NUM_ACTIONS or number in actions:
            reason = "is there twice" if number in actions else f"is not one of 1..{NUM_ACTIONS}"
            raise UserError(f"action id {number} ({name[1]}) {reason}", path)
        actions[number] = name[1]
    if not actions:
        raise UserError('holds no action; expected entries such as item { name: "sit" id: 11 }', path)
    return actions


def read_moments(path: str | Path) -> frozenset[tuple[str, float]]:
    """Return the rows (video, seconds) of a csv."""
    moments = set()
    for line, row in read_rows(path, "list of moments", "video,seconds", (2,)):
        try:
            video, seconds = row[0], float(row[1]) if len(row) == 2 else math.nan
        except ValueError:
            seconds = math.nan
        if not math.isfinite(seconds):
            raise UserError(f"line {line}: rows must be video,seconds", path)
        moments.add((video, seconds))
    return frozenset(moments)
