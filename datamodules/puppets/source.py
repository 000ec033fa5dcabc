"""The Puppets data set: made on first use, then read like any other."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Literal, NamedTuple, get_args

from datamodules.annotations.source import AnnotatedVideo, DetectionSource, Split
from datamodules.errors import UserError
from datamodules.files import sweep, write_whole
from datamodules.puppets.actions import CLASS_NAMES, FRAMES_PER_SECOND
from datamodules.puppets.appearance import FRAME_SIZE
from datamodules.puppets.files import write_mp4
from datamodules.puppets.labels import PersonRecord, VideoRecord, write_annotations
from datamodules.puppets.scene import draw_scene, render

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
        recipe = {"generator_version": GENERATOR_VERSION, "size": self.size, "seed": self.seed}
        complete, begun = self.folder / "complete.json", self.folder / "begun.json"
        folders = self.folder, *(self.folder / "videos" / split for split in EXTENTS[self.size].num_videos)
        for folder in filter(Path.is_dir, folders):
            sweep(folder, older_names=True)
        self._check_recipe(recipe, (complete, begun))
        num_videos, num_frames = EXTENTS[self.size]
        paths = {split: self._video_paths(split) for split in num_videos}
        if complete.exists() and all(path.exists() for split in paths for path in paths[split]):
            return
        write_whole(begun, json.dumps(recipe))
        jobs = [
            (self.seed, split, index, num_frames, path) for split in paths for index, path in enumerate(paths[split])
        ]
        records = _make_videos(jobs, title=f"puppets/{self.size}")
        for split, first in (("train", 0), ("val", num_videos["train"])):
            write_annotations(self.folder, split, records[first : first + num_videos[split]])
        write_whole(self.folder / "classes.txt", "".join(f"{name}\n" for name in CLASS_NAMES))
        write_whole(complete, json.dumps(recipe))
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

    def _check_recipe(self, recipe: dict, markers: Iterable[Path]) -> None:
        found = next((marker for marker in markers if marker.exists()), None)
        if found is not None and (present := json.loads(found.read_text())) != recipe:
            raise UserError(
                f"was made as {present}, wanted is {recipe}",
                self.folder,
                f"delete {self.folder} or choose another root",
            )
        if found is None and self.folder.exists() and any(self.folder.iterdir()):
            raise UserError("holds files that Puppets did not make", self.folder, "choose another root")


def make_video(seed: int, split: str, index: int, num_frames: int, path: Path) -> VideoRecord:
    """Render one video unless its file is there already; its annotation is computed either way."""
    scene = draw_scene(seed, split, index, num_frames)
    if not path.exists():
        write_mp4(path, render(scene), FRAME_SIZE, FRAMES_PER_SECOND, scene.crf, scene.preset)
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
