"""Videos decoded once into memory-mapped uint8 frames at the network's size.

Decoding a clip takes about 30 ms of a core, copying it out of a memory map well under one: with the cache a small
network is not starved. Each video has a folder of its own, written whole or not at all::

    data/cache/<name>-<digest of path and short side>/frames.npy    (N, H, W, 3) uint8
                                                      facts.json    times, sizes, and the state of the file it came from
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from datamodules.frames import FrameFacts, FrameStore, resize, scaled_size
from datamodules.video import open_video
from datamodules.video_listing import list_frames

CHUNK_FRAMES = 64
"""How many frames are decoded at a time, so that memory does not grow with the length of a video."""
OPEN_MAPS = 1024
PARALLEL_FROM = 16
"""Videos worth starting processes for: each of them imports for a second or more first."""


class FrameCache(FrameStore):
    """Decoded frames on disk.

    Args:
        folder: where the frames go.
        short_side: length of the frames' short side in pixels; None keeps the video's size.
        max_gib: the videos of one ``build`` may take this much at most.
    """

    def __init__(self, folder: str | Path, short_side: int | None, max_gib: float = 64.0) -> None:
        self.folder = Path(folder)
        self.short_side = short_side
        self.max_gib = max_gib
        self._facts: dict[Path, FrameFacts] = {}
        self._maps: OrderedDict[Path, np.memmap] = OrderedDict()

    def build(self, videos: Sequence[Path], workers: int | None = None) -> None:
        """Decode what is missing, with all cores if there is much of it.

        Args:
            videos: files; repeated ones count once.
            workers: number of processes; 1 decodes in this one. By default as many as cores once there are enough
                videos to repay their start.
        """
        from tqdm import tqdm

        videos = list(dict.fromkeys(videos))
        missing = [video for video in videos if self._load_facts(video) is None]
        if not missing:
            return
        self._check_size(videos, missing)
        self.folder.mkdir(parents=True, exist_ok=True)
        if workers is None:
            workers = len(os.sched_getaffinity(0)) if len(missing) >= PARALLEL_FROM else 1
        progress = {
            "total": len(missing),
            "desc": f"decoding into {self.folder}",
            "unit": "video",
            "leave": False,
            "disable": len(missing) == 1,
        }
        if workers == 1:
            for video in tqdm(missing, **progress):
                self._write(video)
            return
        # Spawned, since a forked copy of a process that has decoded or computed may hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(missing)), mp_context=context) as pool:
            for _ in tqdm(pool.map(self._write, missing), **progress):
                pass

    def facts(self, video: Path) -> FrameFacts:
        if video not in self._facts:
            facts = self._load_facts(video)
            if facts is None:
                self.build([video], workers=1)
                facts = self._load_facts(video)
            if facts is None:
                raise FileNotFoundError(f"{video} changed while it was being decoded into {self.folder}")
            self._facts[video] = facts
        return self._facts[video]

    def frames(self, video: Path) -> np.memmap:
        """All frames of a video, (N, H, W, 3) uint8, read from disk as they are touched; decoded if need be."""
        if video in self._maps:
            self._maps.move_to_end(video)
        else:
            self.facts(video)
            while len(self._maps) >= OPEN_MAPS:
                self._maps.popitem(last=False)
            self._maps[video] = np.load(self._entry(video) / "frames.npy", mmap_mode="r")
        return self._maps[video]

    def get(self, video: Path, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        return np.asarray(self.frames(video)[np.asarray(indices)])

    def _entry(self, video: Path) -> Path:
        digest = hashlib.sha256(f"{video.resolve()}|{self.short_side}".encode()).hexdigest()[:16]
        return self.folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', video.stem)[:60]}-{digest}"

    def _load_facts(self, video: Path) -> FrameFacts | None:
        """What the cache knows of a video; None where it has nothing or the file has changed since."""
        try:
            record = json.loads((self._entry(video) / "facts.json").read_text())
        except FileNotFoundError:
            return None
        if record["source"] != _file_state(video):
            return None
        return FrameFacts(np.asarray(record["times"]), tuple(record["original_size"]), tuple(record["size"]))

    def _write(self, video: Path) -> None:
        entry = self._entry(video)
        partial = entry.with_name(f".{entry.name}.{os.getpid()}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        try:
            source = _file_state(video)
            with open_video(video) as reader:
                size = scaled_size(reader.height, reader.width, self.short_side)
                frames = np.lib.format.open_memmap(
                    partial / "frames.npy", "w+", dtype=np.uint8, shape=(reader.num_frames, *size, 3)
                )
                for start in range(0, reader.num_frames, CHUNK_FRAMES):
                    stop = min(start + CHUNK_FRAMES, reader.num_frames)
                    frames[start:stop] = resize(reader.get(range(start, stop)), size)
                frames.flush()
                record = {
                    "source": source,
                    "original_size": [reader.height, reader.width],
                    "size": size,
                    "times": reader.times.tolist(),
                }
            (partial / "facts.json").write_text(json.dumps(record))
            if self._load_facts(video) is None:
                shutil.rmtree(entry, ignore_errors=True)  # frames of an older state of the file
                try:
                    partial.rename(entry)
                except OSError:  # another process was faster
                    if self._load_facts(video) is None:
                        raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _check_size(self, videos: Sequence[Path], missing: Sequence[Path]) -> None:
        """Refuse to fill the disk. Reads the packets of the missing videos, but decodes none."""
        to_write = 0
        for video in missing:
            listing = list_frames(video)
            height, width = scaled_size(listing.height, listing.width, self.short_side)
            to_write += len(listing.times) * height * width * 3
        known = [facts for video in set(videos) - set(missing) if (facts := self._load_facts(video)) is not None]
        total = to_write + sum(len(facts.times) * facts.size[0] * facts.size[1] * 3 for facts in known)
        advice = "turn the cache off (cache: null), which decodes every clip anew, or choose a smaller short_side"
        if total > self.max_gib * 2**30:
            raise ValueError(
                f"the decoded frames of {len(videos)} videos take {total / 2**30:.1f} GiB, more than the "
                f"{self.max_gib:g} GiB allowed: {advice}, or raise cache_max_gib"
            )
        existing = next(folder for folder in (self.folder, *self.folder.absolute().parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        if to_write > free:
            need = f"needs {to_write / 2**30:.1f} GiB for decoded frames, {free / 2**30:.1f} GiB are free"
            raise ValueError(f"{self.folder} {need}: {advice}")

    def __getstate__(self) -> dict[str, object]:
        # A pickled memory map would carry its pixels along.
        return {**self.__dict__, "_maps": OrderedDict()}


def _file_state(video: Path) -> dict[str, int]:
    facts = video.stat()
    return {"bytes": facts.st_size, "mtime_ns": facts.st_mtime_ns}
