"""Videos decoded once into memory-mapped uint8 frames at the network's size.

Decoding a clip takes about 30 ms of a core, copying it out of a memory map well under 1 ms. So a small network need not
wait for data. Each video has its own folder, written whole or not at all::

    data/cache/<name>-<digest of path and scale>/frames.npy    (N, H, W, 3) uint8
                                                 facts.json    times, sizes, checksums, and the state of the source

Every frame is compared with its checksum the first time that a process reads it. That takes 16 us per frame of 128x171,
a hundredth of its decoding.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.errors import UserError, printable
from datamodules.files import sweep, whole_path
from datamodules.frames.cache_entries import (
    ATTEMPTS,
    CHANGED_MEANWHILE,
    DamagedEntry,
    check_space,
    clear_damaged,
    damage,
    read_or_make,
    remove,
)
from datamodules.frames.records import Record, read_record
from datamodules.frames.store import FrameFacts, FrameScale, FrameStore
from datamodules.video.listing import VideoError
from datamodules.video.picture_folder import PictureFolder, Video, path_of
from datamodules.video.readers import list_video, open_video
from datamodules.video.states import VideoState

CHUNK_FRAMES = 64
"""Frames decoded at a time, so that memory does not grow with the length of a video."""
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
        self._records: dict[Video, Record] = {}
        self._maps: OrderedDict[Video, np.memmap] = OrderedDict()
        self._broken: dict[Video, str] = {}

    def build(self, videos: Sequence[Video], workers: int | None = None, skip_broken: bool = False) -> None:
        """Decode what is missing, with all cores if there is much of it.

        Args:
            videos: files; repeated ones count once.
            workers: number of processes; 1 decodes in this one. By default as many as cores once there are enough
                videos to repay their start.
            skip_broken: go on behind videos that cannot be decoded. They are not tried again: reading one raises the
                stored reason at once.
        """
        from tqdm import tqdm

        if self.folder.is_dir():
            sweep(self.folder, older_names=True)
        missing, total, to_write = [], 0, 0
        for video in dict.fromkeys(videos):
            try:
                if video in self._broken:
                    continue
                record = self._kept(video)
                size = self._num_bytes(video, record)
            except VideoError as error:
                if not skip_broken:
                    raise
                self._broken[video] = str(error)
                continue
            total += size
            if record is None:
                missing.append(video)
                to_write += size
        if not missing:
            return
        what = f"the decoded frames of {len(set(videos))} videos"
        advice = "turn the cache off (cache: null), which decodes every clip anew, or choose a smaller short_side"
        check_space(self.folder, what, total, to_write, self.max_gib, "cache_max_gib", advice)
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
        return self._record(video).facts

    def get(self, video: Video, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        wanted = np.asarray(indices, dtype=np.int64)
        self.facts(video)

        def read() -> np.ndarray:
            try:
                return self._read(video, wanted)
            except DamagedEntry:
                self._records.pop(video, None)
                self._maps.pop(video, None)
                raise

        return read_or_make(read, partial(self.build, [video], workers=1))

    def _read(self, video: Video, indices: np.ndarray) -> np.ndarray:
        """Frames of an entry, each compared with its checksum when it is read first.

        Raises:
            DamagedEntry: a frame is not the one that was written.
        """
        record = self._record(video)
        frames = np.asarray(self._map(video, record)[indices])
        for frame, index in zip(frames, indices.tolist(), strict=True):
            if not record.checked[index]:
                if zlib.crc32(frame) != record.checksums[index]:
                    raise damage(self._entry(video), f"frame {index} is not what was written")
                record.checked[index] = True
        return frames

    def _map(self, video: Video, record: Record) -> np.memmap:
        """Return all frames of an entry, read from disk when they are accessed."""
        if video in self._maps:
            self._maps.move_to_end(video)
            return self._maps[video]
        while len(self._maps) >= OPEN_MAPS:
            self._maps.popitem(last=False)
        entry, shape = self._entry(video), (len(record.checksums), *record.facts.size, 3)
        try:
            # The header of the file is passed over: it may be damaged, and says nothing new.
            self._maps[video] = np.memmap(entry / "frames.npy", np.uint8, "r", record.offset, shape)
        except (OSError, ValueError) as error:
            raise damage(entry, error) from error
        return self._maps[video]

    def _record(self, video: Video) -> Record:
        """Record of a video's entry, which is made if need be."""
        if video not in self._records:
            make = partial(self.build, [video], workers=1)
            for _ in range(ATTEMPTS):
                record = read_or_make(partial(self._load, video), make)
                if record is not None:
                    break
                make()
            else:
                raise VideoError(f"changed while it was being decoded into {printable(str(self.folder))}", video)
            self._records[video] = record
        return self._records[video]

    def _entry(self, video: Video) -> Path:
        path, short_side = path_of(video), self.scale.short_side
        name = f"{path.resolve()}|{short_side}"
        if self.scale != FrameScale(short_side):  # what came later is only named where it is used: old entries stay
            name += f"|{self.scale.max_long_side}|{self.scale.interpolation}"
        if isinstance(video, PictureFolder):
            name += f"|{video.frame_rate}"
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
        return self.folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', path.stem)[:60]}-{digest}"

    def _kept(self, video: Video) -> Record | None:
        """``_load``; a damaged entry is cleared away."""
        try:
            return self._load(video)
        except DamagedEntry as found:
            clear_damaged(found)
            return None

    def _load(self, video: Video) -> Record | None:
        """Read the record of a video's entry; None where it has nothing, or the file has changed since.

        Raises:
            DamagedEntry: there is an entry that cannot be used.
        """
        state = VideoState.of(video)  # first: it names a video that is not there
        return read_record(self._entry(video), state)

    def _num_bytes(self, video: Video, record: Record | None) -> int:
        """Bytes that the frames of a video take; one without an entry is listed, and nothing is decoded."""
        if record is None:
            listing = list_video(video)
            length, size = len(listing.times), self.scale.size(listing.height, listing.width, video)
        else:
            length, size = len(record.facts.times), record.facts.size
        return length * size[0] * size[1] * 3

    def _write_or_say(self, video: Video) -> str | None:
        """Decode a video into its entry; the reason where that cannot be done."""
        try:
            self._write(video)
        except VideoError as error:
            return str(error)
        return None

    def _write(self, video: Video) -> None:
        entry = self._entry(video)
        for attempt in range(ATTEMPTS):
            try:
                with whole_path(entry) as unfinished:
                    unfinished.mkdir()
                    record = self._decode(video, unfinished / "frames.npy")
                    content = {"record": record, "checksum": zlib.crc32(json.dumps(record).encode())}
                    (unfinished / "facts.json").write_text(json.dumps(content))
                    if self._kept(video) is None:
                        remove(entry)  # frames of an older state of the file
                return
            except UserError as error:
                taken = isinstance(error.__cause__, OSError) and error.__cause__.errno in CHANGED_MEANWHILE
                if not taken or attempt == ATTEMPTS - 1:
                    raise
                if self._kept(video) is not None:
                    return  # another process was faster

    def _decode(self, video: Video, file: Path) -> dict[str, Any]:
        """Write the frames of a video, as ``numpy.save`` would; return the record of them."""
        source, checksums = VideoState.of(video).record(), []
        with open_video(video) as reader, file.open("wb") as output:
            size = self.scale.size(reader.height, reader.width, video)
            header = {"descr": "|u1", "fortran_order": False, "shape": (reader.num_frames, *size, 3)}
            np.lib.format.write_array_header_1_0(output, header)
            for start in range(0, reader.num_frames, CHUNK_FRAMES):
                stop = min(start + CHUNK_FRAMES, reader.num_frames)
                for frame in self.scale(reader.get(range(start, stop))):
                    checksums.append(zlib.crc32(frame))
                    output.write(frame)
            return {
                "source": source,
                "original_size": [reader.height, reader.width],
                "size": size,
                "times": reader.times.tolist(),
                "checksums": checksums,
                "bytes": output.tell(),
            }

    def __getstate__(self) -> dict[str, object]:
        # A pickled memory map would carry its pixels along.
        return {**self.__dict__, "_maps": OrderedDict()}


def _say_no_missing_pictures() -> None:
    """Silence warnings about missing pictures: they were given where the videos were first listed."""
    warnings.filterwarnings("ignore", message=".* pictures are missing")
