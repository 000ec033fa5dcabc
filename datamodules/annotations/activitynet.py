"""ActivityNet 1.3, and any data set annotated in its json form."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from datamodules.annotations.features import FeatureFolder
from datamodules.annotations.segment_source import (
    AnnotatedSegments,
    RawSegments,
    SegmentSource,
    annotated,
    check_places,
    find_media,
)
from datamodules.annotations.source import Split
from datamodules.errors import UserError
from datamodules.text_files import read_class_list, read_json, read_text

SUBSETS = {"training": "train", "train": "train", "validation": "val", "val": "val", "testing": "test", "test": "test"}


class ActivityNet(SegmentSource):
    """Untrimmed videos with segments of one or many classes, in one json file or one per split.

    Entries that name a subset belong to it; in a file without subsets (mmaction2's ``anet_anno_train.json``) all belong
    to the split the file is given for. There is no annotated third split: ``test`` is ``val``. Videos may be missing:
    they are named once, and the rest is used.

    Args:
        train: json of the training videos, see ``read_segment_json``.
        val: json of the videos to evaluate on; None means it is the same file.
        videos: folder with a file ``v_<id>.mp4`` (or ``<id>.mkv``, ...) or a folder of pictures for each video, at any
            depth.
        features: folder of feature arrays, instead of videos.
        classes: text file with one class name per line; None takes the labels of both files in alphabetical order.
        blocked_videos: ids that are not to be used, or a json or text file of them: the challenge's list of videos that
            are gone.
        picture_rate: pictures per second of folders of pictures; None takes the annotation's frame rate.
    """

    def __init__(
        self,
        train: str | Path,
        val: str | Path | None = None,
        videos: str | Path | None = None,
        features: FeatureFolder | None = None,
        classes: str | Path | None = None,
        blocked_videos: list[str] | str | Path | None = None,
        picture_rate: float | None = None,
    ) -> None:
        check_places(videos, features)
        self.files = {"train": Path(train), "val": Path(train if val is None else val)}
        self.folder = videos
        self.features = features
        self.classes = classes
        self.blocked_videos = blocked_videos
        self.picture_rate = picture_rate
        self._raw: dict[str, dict[str, RawSegments]] = {}
        self._videos: dict[str, tuple[AnnotatedSegments, ...]] = {}

    def prepare(self) -> None:
        """Read the annotation once, so that mistakes are reported before anything else happens."""
        self.class_names()

    def class_names(self) -> tuple[str, ...]:
        if self.classes is not None:
            return read_class_list(self.classes)
        entries = [entry for split in self.files for entry in self._split(split).values()]
        return tuple(sorted({label for entry in entries for *_, label in entry.annotations}))

    def videos(self, split: Split) -> tuple[AnnotatedSegments, ...]:
        split = "train" if split == "train" else "val"
        if split not in self._videos:
            raw = self._split(split)
            media = find_media(self.folder, self.features, raw, self.picture_rate)
            self._videos[split] = annotated(self.files[split], raw, self.class_names(), media, self.mistakes)
        return self._videos[split]

    def evaluated_on(self) -> str:
        found, listed = len(self.videos("val")), len(self._split("val"))
        return f"{self.files['val'].stem}, {found if found == listed else f'{found} of {listed}'} videos"

    def _split(self, split: str) -> dict[str, RawSegments]:
        """The annotated videos of a split, blocked ones left out."""
        if split not in self._raw:
            file = self.files[split]
            everything = read_segment_json(file)
            unknown = {entry.subset for entry in everything.values()} - SUBSETS.keys() - {None}
            if unknown:
                raise UserError(f"has the subset {min(unknown)!r}; known are {', '.join(SUBSETS)}", file)
            subsets = {SUBSETS[entry.subset] for entry in everything.values() if entry.subset is not None}
            # A form of two subsets may call the second one test.
            wanted = "test" if split == "val" and "val" not in subsets and "test" in subsets else split
            blocked = self._blocked()
            self._raw[split] = {
                name: entry
                for name, entry in everything.items()
                if name not in blocked and (entry.subset is None or SUBSETS[entry.subset] == wanted)
            }
            if not self._raw[split]:
                raise UserError(f"has no video for {split}; its subsets are {', '.join(sorted(subsets))}", file)
        return self._raw[split]

    def _blocked(self) -> frozenset[str]:
        if self.blocked_videos is None:
            return frozenset()
        if isinstance(self.blocked_videos, list):
            names = self.blocked_videos
        else:
            file, what = Path(self.blocked_videos), "list of blocked videos"
            names = read_json(file, what) if file.suffix.lower() == ".json" else read_text(file, what).split()
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise UserError('must be a list of names, ["v_...", ...]', file)
        return frozenset(name.removeprefix("v_") for name in names)


def read_segment_json(path: str | Path) -> dict[str, RawSegments]:
    """The videos of a json annotation by name, whichever of the common forms it has.

    ``{"database": {video: {subset, duration, annotations: [{label, segment: [start, end]}]}}}`` is ActivityNet's form,
    also that of ActionFormer and OpenTAD (with ``fps``) and of G-TAD and AFSD (no duration, numbers as text);
    ``{"v_<video>": {duration_second, annotations: ...}}`` is mmaction2's. Names lose their ``v_`` if all have it.
    Segments labelled ``Ambiguous`` become ambiguous spans.
    """
    path = Path(path)
    record = read_json(path, "annotation file")
    videos = record.get("database", record) if isinstance(record, dict) else None
    if not isinstance(videos, dict) or not all(isinstance(v, dict) and "annotations" in v for v in videos.values()):
        keys = ", ".join(list(record)[:4]) if isinstance(record, dict) else f"a {type(record).__name__}"
        raise UserError(f'is no annotation: neither "database" nor {{video: {{"annotations"}}}}, but {keys}', path)
    prefix = "v_" if all(name.startswith("v_") for name in videos) else ""
    return {name.removeprefix(prefix): _entry(path, name, entry) for name, entry in videos.items()}


def _entry(path: Path, name: str, entry: dict[str, Any]) -> RawSegments:
    try:
        rows = [(float(row["segment"][0]), float(row["segment"][1]), str(row["label"])) for row in entry["annotations"]]
        subset = entry.get("subset")
        duration = entry.get("duration", entry.get("duration_second"))
        rate, frames = entry.get("fps"), entry.get("frame", entry.get("duration_frame"))
        duration = None if duration is None else float(duration)
        if rate is None and frames and duration:
            rate = float(frames) / duration
        rate = None if rate is None else float(rate)
        if not all(known is None or (math.isfinite(known) and known >= 0) for known in (duration, rate)):
            raise ValueError(f"duration {duration}, {rate} frames a second")
        return RawSegments(
            annotations=[row for row in rows if row[2] != "Ambiguous"],
            subset=None if subset is None else str(subset).lower(),
            duration=duration,
            frame_rate=rate or None,
            ambiguous=tuple(row[:2] for row in rows if row[2] == "Ambiguous"),
        )
    except (TypeError, KeyError, ValueError, IndexError, OverflowError) as error:
        raise UserError(f"the entry {name} is not as expected ({error!r})", path) from None
