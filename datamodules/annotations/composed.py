"""Composed streams: trimmed clips of JHMDB-21 cut together, where no untrimmed video of the kind is at hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from datamodules.annotations.jhmdb import JHMDB
from datamodules.annotations.segment_source import AnnotatedSegments, SegmentSource
from datamodules.annotations.source import AnnotatedVideo, Split
from datamodules.errors import UserError
from datamodules.files import make_once, sweep, write_whole
from datamodules.text_files import check_names, read_json
from datamodules.video.picture_folder import Video
from datamodules.video.readers import list_video, open_video
from datamodules.video.written import write_mp4

GENERATOR_VERSION = 1
"""Raised whenever the same seed would give other streams."""
FRAMES_PER_SECOND = 30
DECLARATION = "Composed: each stream is whole clips of JHMDB-21, one after another. Nobody filmed it in one go."
SPLITS = ("train", "val")


class Clip(NamedTuple):
    """One trimmed video on its way into a stream."""

    video_id: str
    media: Video
    label: str


class ComposedJHMDB(SegmentSource):
    """Streams of JHMDB-21's clips, for temporal detection. They are composed: no camera saw such a stream.

    ``prepare`` deals the clips of either part of the official split out to streams, in random order, and writes the
    streams to ``<root>/split_<n>``. Every clip is in one stream, whole. A segment begins with the first frame of its
    clip and ends where its last frame ends. Optical flow is masked at the cuts (``AnnotatedSegments.cuts``).

    Interrupted, it begins anew. Videos may be missing: they are named once, and the rest is used.

    Args:
        videos, annotations, split: as of ``JHMDB``.
        root: folder of the streams.
        background: names of classes that are no action here: their clips are in the streams, without a segment.
        clips: fewest and most clips of a stream.
        seed: of the order of the clips.
    """

    def __init__(
        self,
        videos: str | Path,
        annotations: str | Path,
        root: str | Path = "data/jhmdb_composed",
        split: Literal[1, 2, 3] = 1,
        background: Sequence[str] = ("run", "sit", "stand", "walk"),
        clips: tuple[int, int] = (6, 12),
        seed: int = 0,
    ) -> None:
        if not 1 <= clips[0] <= clips[1]:
            raise UserError(f"clips are the fewest and the most of a stream, got {list(clips)}", remedy="set [6, 12]")
        if seed < 0:
            raise UserError(f"seed must not be negative, got {seed}")
        check_names(list(background), "background", "class")
        self.jhmdb = JHMDB(videos, annotations, split)
        self.folder = Path(root) / f"split_{split}"
        self.background = tuple(background)
        self.clips = (clips[0], clips[1])
        self.seed = seed

    def class_names(self) -> tuple[str, ...]:
        known = self.jhmdb.class_names()
        unknown = sorted(set(self.background) - set(known))
        if unknown:
            raise UserError(
                f"has no class {unknown[0]!r} to be background",
                self.jhmdb.annotations,
                f"choose among {', '.join(known)}",
            )
        names = tuple(name for name in known if name not in self.background)
        if not names:
            raise UserError("all classes are background", "background", "leave some out")
        return names

    def prepare(self) -> None:
        self.class_names()
        make_once(self.folder, self._is_complete, self._make)

    def videos(self, split: Split) -> tuple[AnnotatedSegments, ...]:
        part = "train" if split == "train" else "val"
        numbers = {name: number for number, name in enumerate(self.class_names())}
        return tuple(
            _annotated(name, self._path(part, name), clips, numbers) for name, clips in self._streams()[part].items()
        )

    def evaluated_on(self) -> str:
        streams = self._streams()["val"]
        clips = sum(map(len, streams.values()))
        return f"JHMDB split {self.jhmdb.split}, {len(streams)} streams composed of {clips} test clips"

    # Files ---------------------------------------------------------------------------------------------------------

    @property
    def _record(self) -> Path:
        return self.folder / "composed.json"

    @property
    def _recipe(self) -> dict[str, Any]:
        return {"generator_version": GENERATOR_VERSION, "clips": list(self.clips), "seed": self.seed}

    def _path(self, part: str, name: str) -> Path:
        return self.folder / part / f"{name}.mp4"

    def _streams(self) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """Clips of each stream, by part and name: ``video``, ``label``, frames ``start`` to ``stop``."""
        if not self._record.exists():
            raise UserError("holds no composed streams yet", self.folder, "call prepare() first, as every command does")
        return read_json(self._record, "record of composed streams")["streams"]

    def _is_complete(self) -> bool:
        """Whether all streams are there; those of another recipe are refused."""
        begun = self.folder / "recipe.json"
        if begun.exists() and (present := read_json(begun, "recipe of composed streams")) != self._recipe:
            raise UserError(
                f"was made as {present}, wanted is {self._recipe}",
                self.folder,
                f"delete {self.folder} or choose another root",
            )
        complete = self._record.exists() and all(
            self._path(part, name).exists() for part, streams in self._streams().items() for name in streams
        )
        if complete:
            self._refuse_other_clips()
        return complete

    def _refuse_other_clips(self) -> None:
        """Refuse streams of other clips than there are now; where the clips have been taken away, streams stay."""
        if not self.jhmdb.folder.is_dir():
            return
        for part, streams in self._streams().items():
            used = {clip["video"] for clips in streams.values() for clip in clips}
            there = {video.video_id for video in self.jhmdb.videos("train" if part == "train" else "val")}
            if used != there:
                raise UserError(
                    f"was made of {len(used)} {part} clips, and {len(there)} are there, {len(used & there)} of them "
                    "the same",
                    self.folder,
                    f"delete {self.folder} or choose another root",
                )

    def _make(self) -> None:
        from tqdm import tqdm

        begun = self.folder / "recipe.json"
        if not begun.exists() and self.folder.exists() and any(self.folder.iterdir()):
            raise UserError("holds files that are no composed streams", self.folder, "choose another root")
        # Names before pixels: what cannot be composed is refused before anything is written.
        plans = {part: self._plan(part) for part in SPLITS}
        self._record.unlink(missing_ok=True)
        write_whole(begun, json.dumps(self._recipe))
        record: dict[str, Any] = {"about": DECLARATION, "frames_per_second": FRAMES_PER_SECOND, "streams": {}}
        for part, plan in plans.items():
            if (self.folder / part).is_dir():
                sweep(self.folder / part)
            streams = record["streams"][part] = {}
            for number, clips in enumerate(tqdm(plan, desc=f"{self.folder} {part}", unit="stream", leave=False)):
                name = f"composed_{part}_{number:04d}"
                _write(self._path(part, name), clips)
                streams[name] = _boundaries(clips)
        write_whole(self._record, json.dumps(record, indent=1))

    def _plan(self, part: str) -> list[list[Clip]]:
        """Draw which clips make a stream."""
        names = self.jhmdb.class_names()
        clips = [_clip(video, names) for video in self.jhmdb.videos("train" if part == "train" else "val")]
        rng = np.random.default_rng([self.seed, SPLITS.index(part)])
        ends = np.cumsum(draw_sizes(rng, len(clips), *self.clips, what=f"{part} clips"))
        shuffled = [clips[index] for index in rng.permutation(len(clips))]
        return [shuffled[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def draw_sizes(rng: np.random.Generator, count: int, least: int, most: int, what: str = "clips") -> list[int]:
    """Divide ``count`` into random sizes from ``least`` to ``most``.

    Args:
        rng: draws them.
        count, least, most: whole numbers.
        what: is divided, for the message.
    """
    fewest, largest = -(-count // most), count // least
    if count == 0 or fewest > largest:
        raise UserError(
            f"{count} {what} cannot be cut together into streams of {least} to {most}",
            remedy="set other clips, such as [1, 12], or bring more videos",
        )
    number = min(max(round(2 * count / (least + most)), fewest), largest)
    sizes = rng.integers(least, most + 1, number)
    while sizes.sum() != count:
        change = np.sign(count - sizes.sum())
        may_change = np.flatnonzero(sizes < most if change > 0 else sizes > least)
        sizes[rng.choice(may_change)] += change
    return sizes.tolist()


def _clip(video: AnnotatedVideo, class_names: Sequence[str]) -> Clip:
    """A clip with the one class that it shows."""
    shown = np.max([keyframe.labels.any(axis=0) for keyframe in video.keyframes], axis=0, initial=False)
    if shown.sum() != 1:
        raise UserError(f"shows {shown.sum()} actions", video.path, "compose clips that show one action each")
    return Clip(video.video_id, video.path, class_names[int(shown.argmax())])


def _boundaries(clips: Sequence[Clip]) -> list[dict[str, Any]]:
    """Return what the record says of a stream: the frames of each clip."""
    ends = np.cumsum([len(list_video(clip.media).times) for clip in clips]).tolist()
    return [
        {"video": clip.video_id, "label": clip.label, "start": start, "stop": stop}
        for clip, start, stop in zip(clips, [0, *ends[:-1]], ends, strict=True)
    ]


def _write(path: Path, clips: Sequence[Clip]) -> None:
    sizes = {clip.media: (listing.height, listing.width) for clip in clips for listing in [list_video(clip.media)]}
    (height, width), other = sizes[clips[0].media], [clip for clip in sizes if sizes[clip] != sizes[clips[0].media]]
    if other:
        raise UserError(
            f"is of {sizes[other[0]][1]}x{sizes[other[0]][0]} pixels, {clips[0].media} of {width}x{height}",
            other[0],
            "bring all videos at one size",
        )
    size = height - height % 2, width - width % 2

    def frames() -> Iterator[np.ndarray]:
        for clip in clips:
            with open_video(clip.media) as reader:
                yield from np.ascontiguousarray(reader.get(np.arange(reader.num_frames))[:, : size[0], : size[1]])

    write_mp4(path, frames(), size, FRAMES_PER_SECOND, crf=18, preset="veryfast")


def _annotated(name: str, path: Path, clips: list[dict[str, Any]], numbers: dict[str, int]) -> AnnotatedSegments:
    """The segments of a stream: those of its clips that are no background."""
    actions = [clip for clip in clips if clip["label"] in numbers]
    spans = [[clip["start"], clip["stop"]] for clip in actions]
    return AnnotatedSegments(
        video_id=name,
        media=path,
        duration=clips[-1]["stop"] / FRAMES_PER_SECOND,
        segments=np.asarray(spans, np.float64).reshape(-1, 2) / FRAMES_PER_SECOND,
        labels=np.asarray([numbers[clip["label"]] for clip in actions], np.int64),
        cuts=np.asarray([clip["start"] for clip in clips[1:]], np.int64),
    )
