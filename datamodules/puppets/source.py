"""The Puppets data set: made on first use, then read like any other."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_args

from datamodules.annotations.source import AnnotatedVideo, DetectionSource, Split
from datamodules.errors import UserError
from datamodules.files import make_once, sweep, write_whole
from datamodules.puppets.actions import CLASS_NAMES, FRAMES_PER_SECOND
from datamodules.puppets.appearance import FRAME_SIZE
from datamodules.puppets.labels import PersonRecord, VideoRecord, write_annotations
from datamodules.puppets.scene import draw_scene, render
from datamodules.video.written import write_mp4

GENERATOR_VERSION = 1
"""Raised whenever the same seed would give other videos or labels."""

Size = Literal["tiny", "small", "full"]


class Extent(NamedTuple):
    num_videos: dict[str, int]
    """Videos a split."""
    num_frames: int
    """Frames a video."""


EXTENTS: dict[str, Extent] = {
    "tiny": Extent({"train": 4, "val": 2}, 48),
    "small": Extent({"train": 96, "val": 24}, 128),
    "full": Extent({"train": 480, "val": 96}, 128),
}


class Puppets(DetectionSource):
    """Articulated figures in real mp4 files, in pairs of classes that one frame cannot tell apart; see README.md here.

    ``prepare`` writes ``<root>/<size>`` with all cores. Interrupted, it goes on where it stopped. There is no third
    split: ``test`` is ``val``.
    """

    def __init__(self, root: str | Path = "data/puppets", size: Size = "small", seed: int = 0) -> None:
        if size not in get_args(Size):
            raise UserError(f"size must be one of {', '.join(get_args(Size))}, got {size!r}")
        if seed < 0:
            raise UserError(f"seed must not be negative, got {seed}")
        self.root = Path(root)
        self.size = size
        self.seed = seed

    @property
    def folder(self) -> Path:
        return self.root / self.size

    def class_names(self) -> tuple[str, ...]:
        return CLASS_NAMES

    def prepare(self) -> None:
        make_once(self.folder, self._is_complete, self._make)

    def _is_complete(self) -> bool:
        """Return whether all videos are there; files of another recipe are refused."""
        self._check_recipe()
        num_videos, _ = EXTENTS[self.size]
        paths = (path for split in num_videos for path in self._video_paths(split))
        return (self.folder / "complete.json").exists() and all(path.exists() for path in paths)

    def _make(self) -> None:
        num_videos, num_frames = EXTENTS[self.size]
        folders = self.folder, *(self.folder / "videos" / split for split in num_videos)
        for folder in filter(Path.is_dir, folders):
            sweep(folder, older_names=True)
        if not self._check_recipe() and self.folder.exists() and any(self.folder.iterdir()):
            raise UserError("holds files that Puppets did not make", self.folder, "choose another root")
        begun = self.folder / "begun.json"
        write_whole(begun, json.dumps(self._recipe))
        jobs = [
            (self.seed, split, index, num_frames, path)
            for split in num_videos
            for index, path in enumerate(self._video_paths(split))
        ]
        records = _make_videos(jobs, title=f"puppets/{self.size}")
        for split, first in (("train", 0), ("val", num_videos["train"])):
            write_annotations(self.folder, split, records[first : first + num_videos[split]])
        write_whole(self.folder / "classes.txt", "".join(f"{name}\n" for name in CLASS_NAMES))
        write_whole(self.folder / "complete.json", json.dumps(self._recipe))
        begun.unlink(missing_ok=True)

    def videos(self, split: Split) -> tuple[AnnotatedVideo, ...]:
        from datamodules.annotations.ava_csv import read_ava_csv  # processes that only render have no use for it

        if split not in get_args(Split):
            raise ValueError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}")
        split = "val" if split == "test" else split
        if not (self.folder / "complete.json").exists():
            raise UserError(
                "holds no complete Puppets data",
                self.folder,
                "call prepare() first, or run "
                f"python -m datamodules.puppets --size {self.size} --root {self.root} --seed {self.seed}",
            )
        keyframes = read_ava_csv(self.folder / f"{split}.csv", CLASS_NAMES)
        return tuple(AnnotatedVideo(path.stem, path, keyframes[path.stem]) for path in self._video_paths(split))

    def _video_paths(self, split: str) -> list[Path]:
        folder = self.folder / "videos" / split
        return [folder / f"{split}_{index:04d}.mp4" for index in range(EXTENTS[self.size].num_videos[split])]

    @property
    def _recipe(self) -> dict[str, Any]:
        return {"generator_version": GENERATOR_VERSION, "size": self.size, "seed": self.seed}

    def _check_recipe(self) -> bool:
        """Return whether a folder has been begun; one of another recipe is refused."""
        markers = (self.folder / name for name in ("complete.json", "begun.json"))
        found = next((marker for marker in markers if marker.exists()), None)
        if found is not None and (present := json.loads(found.read_text())) != self._recipe:
            raise UserError(
                f"was made as {present}, wanted is {self._recipe}",
                self.folder,
                f"delete {self.folder} or choose another root",
            )
        return found is not None


def make_video(seed: int, split: str, index: int, num_frames: int, path: Path) -> VideoRecord:
    """Render one video unless its file is there already; its annotation is computed either way."""
    scene = draw_scene(seed, split, index, num_frames)
    if not path.exists():
        write_mp4(path, render(scene), (FRAME_SIZE,) * 2, FRAMES_PER_SECOND, scene.crf, scene.preset)
    return VideoRecord(path.stem, num_frames, tuple(PersonRecord(actor.spans, actor.boxes) for actor in scene.actors))


def _make_videos(jobs: list[tuple], title: str) -> list[VideoRecord]:
    """Run ``make_video`` over all jobs with all cores; results in the order of the jobs."""
    from tqdm import tqdm

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    executor = ProcessPoolExecutor(min(cores, len(jobs)), mp_context=get_context("spawn"), initializer=_one_thread)
    try:
        with _light_main():
            futures = [executor.submit(make_video, *job) for job in jobs]
        for future in tqdm(as_completed(futures), desc=title, total=len(jobs), unit="video", leave=False):
            future.result()  # the first failure ends the loop
    finally:
        executor.shutdown(cancel_futures=True)
    return [future.result() for future in futures]


def _one_thread() -> None:
    """Run in each worker: as many processes as cores need one thread each."""
    import cv2

    cv2.setNumThreads(1)


@contextmanager
def _light_main() -> Iterator[None]:
    """Start workers without the program's main module, which a spawned process would import, torch and all."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
