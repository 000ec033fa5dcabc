"""Videos decoded once into memory-mapped uint8 frames at the network's size.

Decoding a clip takes about 30 ms of a core, copying it out of a memory map well under one: with the cache a small
network is not starved. Each video has a folder of its own, written whole or not at all::

    data/cache/<name>-<digest of path and scale>/frames.npy    (N, H, W, 3) uint8
                                                 facts.json    times, sizes, and the state of the file it came from
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from datamodules.frames import FrameFacts, FrameScale, FrameStore
from datamodules.picture_folder import PictureFolder, Video
from datamodules.video import list_video, open_video
from datamodules.video_listing import VideoError

CHUNK_FRAMES = 64
"""How many frames are decoded at a time, so that memory does not grow with the length of a video."""
OPEN_MAPS = 128
"""Memory maps at a time: Python keeps a file open for each, and many systems allow a process 1,024."""
PARALLEL_FROM = 16
"""Videos worth starting processes for: each of them imports for a second or more first."""


class FrameCache(FrameStore):
    """Decoded frames on disk.

    Args:
        folder: where the frames go.
        scale: the size of the frames.
        max_gib: the videos of one ``build`` may take this much at most.
    """

    def __init__(self, folder: str | Path, scale: FrameScale, max_gib: float = 64.0) -> None:
        self.folder = Path(folder)
        self.scale = scale
        self.max_gib = max_gib
        self._facts: dict[Video, FrameFacts] = {}
        self._maps: OrderedDict[Video, np.memmap] = OrderedDict()
        self._broken: dict[Video, str] = {}

    def build(self, videos: Sequence[Video], workers: int | None = None, skip_broken: bool = False) -> None:
        """Decode what is missing, with all cores if there is much of it.

        Args:
            videos: files; repeated ones count once.
            workers: number of processes; 1 decodes in this one. By default as many as cores once there are enough
                videos to repay their start.
            skip_broken: go on behind videos that cannot be decoded. They are not tried again: who asks for one is told
                the reason at once.
        """
        from tqdm import tqdm

        videos = list(dict.fromkeys(videos))
        missing = []
        for video in videos:
            try:
                if video not in self._broken and self._load_facts(video) is None:
                    list_video(video)
                    missing.append(video)
            except VideoError as error:
                if not skip_broken:
                    raise
                self._broken[video] = str(error)
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
        write = self._write_or_say if skip_broken else self._write
        with ExitStack() as stack:
            if workers == 1:
                written = map(write, missing)
            else:
                # Spawned, since a forked copy of a process that has decoded or computed may hang.
                context = multiprocessing.get_context("spawn")
                pool = stack.enter_context(
                    ProcessPoolExecutor(min(workers, len(missing)), context, initializer=_say_no_missing_pictures)
                )
                written = pool.map(write, missing)
            for video, reason in zip(missing, tqdm(written, **progress), strict=True):
                if reason is not None:
                    self._broken[video] = reason

    def facts(self, video: Video) -> FrameFacts:
        if video in self._broken:
            raise VideoError(self._broken[video])
        if video not in self._facts:
            facts = self._load_facts(video)
            if facts is None:
                self.build([video], workers=1)
                facts = self._load_facts(video)
            if facts is None:
                raise FileNotFoundError(f"{video} changed while it was being decoded into {self.folder}")
            self._facts[video] = facts
        return self._facts[video]

    def frames(self, video: Video) -> np.memmap:
        """All frames of a video, (N, H, W, 3) uint8, read from disk as they are touched; decoded if need be."""
        if video in self._maps:
            self._maps.move_to_end(video)
        else:
            self.facts(video)
            while len(self._maps) >= OPEN_MAPS:
                self._maps.popitem(last=False)
            self._maps[video] = np.load(self._entry(video) / "frames.npy", mmap_mode="r")
        return self._maps[video]

    def get(self, video: Video, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        return np.asarray(self.frames(video)[np.asarray(indices)])

    def _entry(self, video: Video) -> Path:
        path, short_side = _path(video), self.scale.short_side
        name = f"{path.resolve()}|{short_side}"
        if self.scale != FrameScale(short_side):  # what came later is only named where it is used: old entries stay
            name += f"|{self.scale.max_long_side}|{self.scale.interpolation}"
        if isinstance(video, PictureFolder):
            name += f"|{video.frame_rate}"
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        return self.folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', path.stem)[:60]}-{digest}"

    def _load_facts(self, video: Video) -> FrameFacts | None:
        """What the cache knows of a video; None where it has nothing or the file has changed since."""
        try:
            record = json.loads((self._entry(video) / "facts.json").read_text())
        except FileNotFoundError:
            return None
        if record["source"] != _file_state(video):
            return None
        return FrameFacts(np.asarray(record["times"]), tuple(record["original_size"]), tuple(record["size"]))

    def _write_or_say(self, video: Video) -> str | None:
        """Decode a video into its entry; the reason where that cannot be done."""
        try:
            self._write(video)
        except VideoError as error:
            return str(error)
        return None

    def _write(self, video: Video) -> None:
        entry = self._entry(video)
        partial = entry.with_name(f".{entry.name}.{os.getpid()}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        try:
            source = _file_state(video)
            with open_video(video) as reader:
                size = self.scale.size(reader.height, reader.width)
                frames = np.lib.format.open_memmap(
                    partial / "frames.npy", "w+", dtype=np.uint8, shape=(reader.num_frames, *size, 3)
                )
                for start in range(0, reader.num_frames, CHUNK_FRAMES):
                    stop = min(start + CHUNK_FRAMES, reader.num_frames)
                    frames[start:stop] = self.scale(reader.get(range(start, stop)))
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

    def _check_size(self, videos: Sequence[Video], missing: Sequence[Video]) -> None:
        """Refuse to fill the disk. Lists the frames of the missing videos, but decodes none."""
        to_write = 0
        for video in missing:
            listing = list_video(video)
            height, width = self.scale.size(listing.height, listing.width)
            to_write += len(listing.times) * height * width * 3
        kept = set(videos) - set(missing) - self._broken.keys()
        known = [facts for video in kept if (facts := self._load_facts(video)) is not None]
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


def _say_no_missing_pictures() -> None:
    """They have been named where the videos were listed first."""
    warnings.filterwarnings("ignore", message=".* pictures are missing")


def _path(video: Video) -> Path:
    return video.path if isinstance(video, PictureFolder) else video


def _file_state(video: Video) -> dict[str, int]:
    try:
        facts = _path(video).stat()
    except FileNotFoundError:
        raise VideoError(f"{video}: no such video") from None
    return {"bytes": facts.st_size, "mtime_ns": facts.st_mtime_ns}
