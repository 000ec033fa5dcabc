"""Optical flow computed once and kept, compressed, on disk.

DIS takes a millisecond or two a frame, reading what it found a fifth of that. Each video has an npz file of its own,
written whole or not at all, which ``numpy.load`` opens without reading more of it than is asked for::

    data/cache/flow/<name>-<digest of path, size, steps, method and grid>.npz
        source       bytes and time of the last change (ns) of the file it came from
        precision    pixels that 1 stands for
        steps_0      (32, 2, H, W) int8 or int16, steps 0 to 31
        steps_32     ...
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import NamedTuple
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile

import numpy as np
from numpy.lib.npyio import NpzFile

from datamodules.flow_store import FlowSettings, FlowStore
from datamodules.frames import FrameStore
from datamodules.picture_folder import Video

CHUNK_STEPS = 32
"""Steps that are computed and compressed at a time: what a window reads beyond its ends is less than that."""
BYTES_A_COMPONENT = 0.3
"""What is left of a component after compression at a precision of 1/16 pixel: 0.2 to 0.29 on Puppets and UCF101."""
PARALLEL_FROM = 30_000_000
"""Pixels times steps worth starting processes for, about seven seconds of DIS: a process imports for seconds first."""


class SteppedFrames(NamedTuple):
    """What flow is computed of."""

    video: Video
    steps: np.ndarray
    """(N,) the frame that is shown at each step."""


class FlowCache(FlowStore):
    """Computed flow on disk.

    Args:
        frames: the frames that it is computed of.
        settings: with a cache.
    """

    def __init__(self, frames: FrameStore, settings: FlowSettings) -> None:
        super().__init__(frames, settings)
        self.folder = Path(settings.cache)
        self.max_gib = settings.cache_max_gib

    def build(self, videos: Sequence[SteppedFrames], workers: int | None = None) -> None:
        """Compute what is missing, with all cores if there is much of it.

        Args:
            videos: repeated ones count once.
            workers: number of processes; 1 computes in this one. By default as many as cores once there is enough to
                repay their start, and 1 for a method that does not run on the CPU.
        """
        from tqdm import tqdm

        entries = {self._entry(*video): video for video in videos}
        missing = {entry: video for entry, video in entries.items() if not self._holds(entry, video.video)}
        if not missing:
            return
        self.method.prepare()
        self._check_size(entries, missing)
        self.folder.mkdir(parents=True, exist_ok=True)
        # The longest first: one that came last would keep a single core busy while the others wait.
        jobs = sorted(missing.values(), key=lambda video: -len(video.steps))
        if workers is None:
            enough = sum(map(self._num_pixels, jobs)) >= PARALLEL_FROM and self.method.device == "cpu"
            workers = len(os.sched_getaffinity(0)) if enough else 1
        workers = min(workers, len(jobs))
        with ExitStack() as stack:
            if workers == 1:
                written = map(self._write, jobs)
            else:
                # Spawned, since a forked copy of a process that has decoded or computed may hang.
                context = multiprocessing.get_context("spawn")
                pool = ProcessPoolExecutor(workers, context, initializer=_begin_process, initargs=(self,))
                written = stack.enter_context(pool).map(_write, jobs)
            progress = {"total": len(jobs), "unit": "video", "leave": False, "disable": len(jobs) == 1}
            for _ in tqdm(written, desc=f"{self.method.name} flow into {self.folder}", **progress):
                pass

    def get(self, video: Video, steps: np.ndarray, start: int, stop: int) -> np.ndarray:
        entry = self._entry(video, steps)
        archive = self._open(entry, video)
        if archive is None:
            self.build([SteppedFrames(video, steps)], workers=1)
            archive = self._open(entry, video)
        if archive is None:
            raise FileNotFoundError(f"{video} changed while its flow was being computed into {self.folder}")
        flow = np.empty((stop - start, 2, *self.frames.facts(video).size), np.float32)
        with archive:
            for first in range(start // CHUNK_STEPS * CHUNK_STEPS, stop, CHUNK_STEPS):
                chunk = archive[f"steps_{first}"][max(start - first, 0) : stop - first]
                place = max(first - start, 0)
                self.grid.to_pixels(chunk, out=flow[place : place + len(chunk)])
        return flow

    def _entry(self, video: Video, steps: np.ndarray) -> Path:
        path = _path(video)
        digest = hashlib.sha256(np.asarray(steps, np.int64).tobytes())
        # The steps say at which frame rate; all of the scale, since it decides what the frames look like.
        settings = (path.resolve(), *self.frames.scale, self.method.identity(), self.grid.identity())
        digest.update("|".join(map(str, settings)).encode())
        return self.folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', path.stem)[:60]}-{digest.hexdigest()[:16]}.npz"

    def _open(self, entry: Path, video: Video) -> NpzFile | None:
        """The flow of the video as it is now, if there is one."""
        try:
            archive = np.load(entry)
        except (FileNotFoundError, BadZipFile):
            return None
        if archive["source"].tolist() == _state(video):
            return archive
        archive.close()
        return None

    def _holds(self, entry: Path, video: Video) -> bool:
        with self._open(entry, video) or nullcontext() as archive:
            return archive is not None

    def _write(self, job: SteppedFrames) -> None:
        video, steps = job
        entry = self._entry(video, steps)
        partial = entry.with_name(f".{entry.name}.{os.getpid()}.partial")
        try:
            state, before = _state(video), None
            with ZipFile(partial, "w", ZIP_DEFLATED) as archive:
                for start in range(0, len(steps), CHUNK_STEPS):
                    # The last frame is kept: to go back for it, a decoder would begin again at the last key frame.
                    frames = self.frames.get(video, steps[start : start + CHUNK_STEPS])
                    _add(archive, f"steps_{start}", self.grid.to_integers(self.method.of_steps(frames, before)))
                    before = frames[-1].copy()
                _add(archive, "source", np.asarray(state, np.int64))
                _add(archive, "precision", np.asarray(self.grid.precision))
            partial.replace(entry)
        finally:
            partial.unlink(missing_ok=True)

    def _num_pixels(self, video: SteppedFrames) -> int:
        return len(video.steps) * int(np.prod(self.frames.facts(video.video).size))

    def _check_size(self, entries: dict[Path, SteppedFrames], missing: dict[Path, SteppedFrames]) -> None:
        """Refuse to fill the disk."""
        # An unusually fine precision leaves more; none leaves more than the integers themselves.
        each = min(BYTES_A_COMPONENT * max(1, 1 / 16 / self.grid.precision), self.grid.dtype.itemsize)
        to_write = sum(2 * self._num_pixels(video) * each for video in missing.values())
        total = to_write + sum(entry.stat().st_size for entry in entries.keys() - missing.keys())
        advice = "choose a smaller short_side or a lower frame_rate, or compute it anew each time (flow.cache: null)"
        if total > self.max_gib * 2**30:
            raise ValueError(
                f"the optical flow of {len(entries)} videos takes about {total / 2**30:.1f} GiB, more than the "
                f"{self.max_gib:g} GiB allowed: {advice}, or raise flow.cache_max_gib"
            )
        existing = next(folder for folder in (self.folder, *self.folder.absolute().parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        if to_write > free:
            need = f"needs about {to_write / 2**30:.1f} GiB for optical flow, {free / 2**30:.1f} GiB are free"
            raise ValueError(f"{self.folder} {need}: {advice}")


_cache: FlowCache
"""Of a process that computes: sent to it once, since the frame store may know the times of many long videos."""


def _begin_process(cache: FlowCache) -> None:
    global _cache
    _cache = cache
    cache.method.use_one_thread()
    # They have been named where the videos were listed first.
    warnings.filterwarnings("ignore", message=".* pictures are missing")


def _write(job: SteppedFrames) -> None:
    _cache._write(job)


def _add(archive: ZipFile, name: str, values: np.ndarray) -> None:
    """Add an array as ``numpy.savez_compressed`` does, which would need all of them at once."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, values, allow_pickle=False)


def _path(video: Video) -> Path:
    return Path(str(video))


def _state(video: Video) -> list[int]:
    facts = _path(video).stat()
    return [facts.st_size, facts.st_mtime_ns]
