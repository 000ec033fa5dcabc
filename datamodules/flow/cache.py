"""Optical flow computed once and kept, compressed, on disk.

DIS takes a millisecond or two a frame, reading what it found a fifth of that. Each video has its own npz file, written
whole or not at all. ``numpy.load`` opens it and reads only what is asked for. It carries checksums, which every read
compares::

    data/cache/flow/<name>-<digest of path, size, steps, method and grid>.npz
        source       JSON, the state of the file it came from: bytes, time of the last change (ns), SHA-256
        precision    pixels that 1 stands for
        steps_0      (32, 2, H, W) int8 or int16, steps 0 to 31
        steps_32     ...
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import re
import struct
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile

import numpy as np

from datamodules.errors import printable
from datamodules.files import sweep, whole_path
from datamodules.flow.store import FlowSettings, FlowStore
from datamodules.frames.cache_entries import DamagedEntry, check_space, clear_damaged, damage, read_or_make
from datamodules.frames.store import FrameStore
from datamodules.video.listing import VideoError
from datamodules.video.picture_folder import Video, path_of
from datamodules.video.states import VideoState

CHUNK_STEPS = 32
"""Steps that are computed and compressed at a time: what a window reads beyond its ends is less than that."""
BYTES_A_COMPONENT = 0.3
"""Share of a component left after compression at a precision of 1/16 pixel: 0.2 to 0.29 on Puppets and UCF101."""
PARALLEL_FROM = 30_000_000
"""Pixels times steps worth starting processes for, about seven seconds of DIS: a process imports for seconds first."""
UNREADABLE = (
    BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    KeyError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)
"""Errors of ``zipfile`` at a damaged archive; RuntimeError where a flag says that it is encrypted."""


class SteppedFrames(NamedTuple):
    """Source of the flow."""

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
            workers: number of processes; 1 computes in this one. By default one per core, once there is enough work to
                repay their start; 1 for a method that does not run on the CPU.
        """
        from tqdm import tqdm

        if self.folder.is_dir():
            sweep(self.folder, older_names=True)
        entries = {self._entry(*video): video for video in videos}
        missing = {entry: video for entry, video in entries.items() if not self._holds(entry, video.video)}
        if not missing:
            return
        self.method.prepare()
        self._check_size(entries, missing)
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
        entry, steps_to_make = self._entry(video, steps), [SteppedFrames(video, steps)]

        def read() -> np.ndarray | None:
            return self._read(entry, video, len(steps), start, stop)

        def make() -> None:
            self.build(steps_to_make, workers=1)

        flow = read_or_make(read, make)
        if flow is None:
            make()
            flow = read()
        if flow is None:
            folder = printable(str(self.folder))
            raise VideoError(f"changed while its flow was being computed into {folder}", video)
        return flow

    def _read(self, entry: Path, video: Video, length: int, start: int, stop: int) -> np.ndarray | None:
        """Steps ``start`` to ``stop`` of ``length`` from an entry; None where it is not that of the video as it is now.

        Raises:
            DamagedEntry: it does not hold what was written.
        """
        size = self.frames.facts(video).size
        flow = np.empty((stop - start, 2, *size), np.float32)
        with ExitStack() as stack:
            archive = self._open(entry, video)
            if archive is None:
                return None
            stack.enter_context(archive)
            for first in range(start // CHUNK_STEPS * CHUNK_STEPS, stop, CHUNK_STEPS):
                chunk = _member(archive, entry, f"steps_{first}")
                shape = (min(CHUNK_STEPS, length - first), 2, *size)
                if (chunk.shape, chunk.dtype) != (shape, self.grid.dtype):
                    raise damage(entry, f"steps_{first} is {chunk.dtype} {chunk.shape}, not {shape}")
                chunk = chunk[max(start - first, 0) : stop - first]
                place = max(first - start, 0)
                self.grid.to_pixels(chunk, out=flow[place : place + len(chunk)])
        return flow

    def _entry(self, video: Video, steps: np.ndarray) -> Path:
        path = path_of(video)
        digest = hashlib.sha256(np.asarray(steps, np.int64).tobytes())
        # The steps say at which frame rate; all of the scale, since it decides what the frames look like.
        settings = (path.resolve(), *self.frames.scale, self.method.identity(), self.grid.identity())
        digest.update(os.fsencode("|".join(map(str, settings))))
        return self.folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', path.stem)[:60]}-{digest.hexdigest()[:16]}.npz"

    def _open(self, entry: Path, video: Video) -> ZipFile | None:
        """The flow of the video as it is now, if there is one.

        Raises:
            DamagedEntry: there is something that cannot be opened.
        """
        state = VideoState.of(video)
        try:
            archive = ZipFile(entry)
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            raise damage(entry, error) from error
        try:
            current = state.is_recorded(_source(archive, entry))
        except DamagedEntry:
            archive.close()
            raise
        if current:
            return archive
        archive.close()
        return None

    def _holds(self, entry: Path, video: Video) -> bool:
        """Return whether there is a usable entry, as far as opening it shows; a damaged one is removed."""
        try:
            archive = self._open(entry, video)
        except DamagedEntry as found:
            clear_damaged(found)
            return False
        if archive is not None:
            archive.close()
        return archive is not None

    def _write(self, job: SteppedFrames) -> None:
        video, steps = job
        source, before = VideoState.of(video).record(), None
        with whole_path(self._entry(video, steps)) as unfinished, ZipFile(unfinished, "w", ZIP_DEFLATED) as archive:
            for start in range(0, len(steps), CHUNK_STEPS):
                # The last frame is kept: to go back for it, a decoder would begin again at the last key frame.
                frames = self.frames.get(video, steps[start : start + CHUNK_STEPS])
                _add(archive, f"steps_{start}", self.grid.to_integers(self.method.of_steps(frames, before)))
                before = frames[-1].copy()
            _add(archive, "source", np.asarray(json.dumps(source)))
            _add(archive, "precision", np.asarray(self.grid.precision))

    def _num_pixels(self, video: SteppedFrames) -> int:
        return len(video.steps) * int(np.prod(self.frames.facts(video.video).size))

    def _check_size(self, entries: dict[Path, SteppedFrames], missing: dict[Path, SteppedFrames]) -> None:
        """Refuse to fill the disk."""
        # An unusually fine precision leaves more; none leaves more than the integers themselves.
        each = min(BYTES_A_COMPONENT * max(1, 1 / 16 / self.grid.precision), self.grid.dtype.itemsize)
        to_write = sum(2 * self._num_pixels(video) * each for video in missing.values())
        total = to_write + sum(entry.stat().st_size for entry in entries.keys() - missing.keys())
        advice = "choose a smaller short_side or a lower frame_rate, or compute it anew each time (flow.cache: null)"
        what = f"by estimate, the optical flow of {len(entries)} videos"
        check_space(self.folder, what, total, to_write, self.max_gib, "flow.cache_max_gib", advice)


_cache: FlowCache
"""Cache of a computing process, sent to it once: the frame store may know the times of many long videos."""


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


def _member(archive: ZipFile, entry: Path, name: str) -> np.ndarray:
    """An array of an entry.

    Its bytes are read to the end, where the checksum is compared, before anything is made of them.
    """
    try:
        content = archive.read(f"{name}.npy")
    except UNREADABLE as error:
        raise damage(entry, error) from error
    return np.load(io.BytesIO(content), allow_pickle=False)


def _source(archive: ZipFile, entry: Path) -> dict[str, Any]:
    """State of the video that an entry was computed of; older entries hold two numbers."""
    source = _member(archive, entry, "source")
    if source.dtype.kind == "i":
        return dict(zip(("bytes", "mtime_ns"), source.tolist(), strict=True))
    try:
        return json.loads(str(source))
    except ValueError as error:
        raise damage(entry, error) from error
