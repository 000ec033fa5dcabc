"""Feature maps of frames by a frozen stem, computed once and read in place of pixels.

A folder holds the maps of one stem at one frame size, both named in ``maps.json``. Each video has one file, written
whole or not at all::

    data/maps/maps.json                           the stem and the size
              <name>-<digest of path>.safetensors  ``maps`` (N, 2, C, h, w) float16, each frame's and its mirror image's

They are those of frames that are padded to their size in a batch, as a network sees them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from datamodules.batches import MapFacts
from datamodules.errors import UserError
from datamodules.files import sweep, whole_file, write_whole
from datamodules.frames.store import FrameFacts, FrameScale, FrameStore
from datamodules.sampling.collate import padded_size, stack_frames
from datamodules.video.listing import VideoError
from datamodules.video.picture_folder import PictureFolder, Video, path_of
from datamodules.video.readers import open_video
from datamodules.video.states import VideoState

ABOUT = "maps.json"
OPEN_MAPS = 128
"""Memory maps at a time: Python keeps a file open for each, and many systems allow a process 1,024."""
FRAMES_AT_ONCE = 16
"""Frames that are decoded and go through the stem together, with their mirror images."""
MAKE = "python main.py maps --config CONFIG"

MapsOf = Callable[[np.ndarray, tuple[int, int]], np.ndarray]
"""uint8 (N, 3, H, W), padded, and the height and width before padding -> maps (N, C, h, w)."""


class FeatureMaps(FrameStore):
    """Maps of frames on disk, in place of the frames.

    Args:
        folder: where they lie.
        scale: the size of the frames that they are of.
    """

    def __init__(self, folder: str | Path, scale: FrameScale) -> None:
        self.folder = Path(folder)
        self.scale = scale
        self._about: MapFacts | None = None
        self._facts: dict[Video, tuple[FrameFacts, int]] = {}
        """Facts of a video and the bytes before its first map."""
        self._maps: OrderedDict[Video, np.memmap] = OrderedDict()

    @property
    def about(self) -> MapFacts:
        """Return the stem of the maps.

        Raises:
            UserError: there are none, or they are of frames of another size.
        """
        if self._about is None:
            self._about = self._read_about()
        return self._about

    def build(self, videos: Sequence[Video], stem: MapFacts, maps_of: MapsOf) -> int:
        """Compute what is missing; return the number of videos that were. An interrupted build goes on where it was.

        Raises:
            UserError: the folder holds the maps of another stem, or of frames of another size.
        """
        from tqdm import tqdm

        if (self.folder / ABOUT).exists():
            if self.about != stem:
                raise UserError(
                    f"holds the maps of another stem, {self.about.name} ({self.about.stem}), not those of {stem.name} "
                    f"({stem.stem})",
                    where=self.folder,
                    remedy="take another folder (data.frames.maps), or remove this one",
                )
            sweep(self.folder)
        else:
            content = {"stem": stem._asdict(), "scale": self.scale._asdict()}
            write_whole(self.folder / ABOUT, json.dumps(content, indent=1))
        missing = [video for video in dict.fromkeys(videos) if self._read_facts(video) is None]
        for video in tqdm(missing, desc=f"maps into {self.folder}", unit="video"):
            self._write(video, stem, maps_of)
        return len(missing)

    def facts(self, video: Video) -> FrameFacts:
        return self._known(video)[0]

    def get(self, video: Video, indices: Sequence[int] | np.ndarray, mirrored: bool = False) -> np.ndarray:
        """(T, channels, h, w) float16, a copy that the caller may change; ``mirrored``, of the mirror images."""
        if video not in self._maps:
            facts, offset = self._known(video)
            while len(self._maps) >= OPEN_MAPS:
                self._maps.popitem(last=False)
            shape = (len(facts.times), 2, *self._map_shape(facts.size))
            self._maps[video] = np.memmap(self._file(video), np.float16, "r", offset, shape)
        self._maps.move_to_end(video)
        return np.asarray(self._maps[video][np.asarray(indices, np.int64), int(mirrored)])

    def blank(self, size: tuple[int, int], length: int) -> np.ndarray:
        return np.zeros((length, *self._map_shape(size)), np.float16)

    def _map_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        height, width = (-(-side // self.about.stride) for side in padded_size(*size))
        return self.about.channels, height, width

    def _read_about(self) -> MapFacts:
        path = self.folder / ABOUT
        try:
            content = json.loads(path.read_bytes())
            about, scale = MapFacts(**content["stem"]), FrameScale(**content["scale"])
        except FileNotFoundError:
            raise UserError("has no maps", where=self.folder, remedy=f"make them: {MAKE}") from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"is damaged ({error})", where=path, remedy=f"remove the folder and make its maps again: {MAKE}"
            ) from error
        if scale != self.scale:
            raise UserError(
                f"holds maps of frames of another size ({_words(scale)}) than is wanted ({_words(self.scale)})",
                where=self.folder,
                remedy="set data.frames to theirs, or make others in another folder (data.frames.maps)",
            )
        return about

    def _known(self, video: Video) -> tuple[FrameFacts, int]:
        if video not in self._facts:
            self.about  # noqa: B018  (its absence has another remedy)
            found = self._read_facts(video)
            if found is None:
                kind = "no whole maps of its present state" if self._file(video).exists() else "no maps"
                raise UserError(f"has {kind} in {self.folder}", where=str(path_of(video)), remedy=f"make them: {MAKE}")
            self._facts[video] = found
        return self._facts[video]

    def _read_facts(self, video: Video) -> tuple[FrameFacts, int] | None:
        """Facts of a video whose maps are there and of the file as it is now, and the bytes before the first map."""
        state = VideoState.of(video)  # first: it names a video that is not there
        try:
            with self._file(video).open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
                size = file.seek(0, os.SEEK_END)
            facts = json.loads(header["__metadata__"]["facts"])
            if not state.is_recorded(facts["state"]) or facts["stem"] != self.about.stem:
                return None
            if header["maps"]["dtype"] != "F16" or size != 8 + length + header["maps"]["data_offsets"][1]:
                return None
        except (OSError, ValueError, TypeError, KeyError, OverflowError, MemoryError):
            return None  # missing or damaged: either way it is made again
        times, original = np.asarray(facts["times"]), tuple(facts["original_size"])
        return FrameFacts(times, original, tuple(facts["size"])), 8 + length

    def _write(self, video: Video, stem: MapFacts, maps_of: MapsOf) -> None:
        with open_video(video) as reader, whole_file(self._file(video), "wb") as file:
            size = self.scale.size(reader.height, reader.width, video)
            shape = [reader.num_frames, 2, *self._map_shape(size)]
            facts = {
                "stem": stem.stem,
                "state": VideoState.of(video).record(),
                "times": reader.times.tolist(),
                "original_size": [reader.height, reader.width],
                "size": size,
            }
            ends = [0, 2 * int(np.prod(shape))]
            header = {
                "__metadata__": {"facts": json.dumps(facts)},
                "maps": {"dtype": "F16", "shape": shape, "data_offsets": ends},
            }
            # By hand: the library writes tensors that are in memory, a long video's maps need not be.
            text = json.dumps(header).encode()
            text += b" " * (-len(text) % 8)
            file.write(len(text).to_bytes(8, "little") + text)
            for start in range(0, reader.num_frames, FRAMES_AT_ONCE):
                frames = self.scale(reader.get(range(start, min(start + FRAMES_AT_ONCE, reader.num_frames))), video)
                both = np.concatenate([frames, frames[:, :, ::-1]])
                pixels, _ = stack_frames([both])
                maps = maps_of(pixels[0].numpy(), size)
                if not np.isfinite(maps).all() or np.abs(maps).max() > np.finfo(np.float16).max:
                    raise VideoError("the stem's maps of it are no numbers that float16 holds", video)
                pairs = maps.reshape(2, len(frames), *maps.shape[1:]).swapaxes(0, 1)
                file.write(np.ascontiguousarray(pairs, np.float16).tobytes())

    def _file(self, video: Video) -> Path:
        name = f"{path_of(video).resolve()}|{video.frame_rate if isinstance(video, PictureFolder) else ''}"
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
        return self.folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', path_of(video).stem)[:60]}-{digest}.safetensors"

    def __getstate__(self) -> dict[str, object]:
        # A pickled memory map would carry its content along.
        return {**self.__dict__, "_maps": OrderedDict()}


def _words(scale: FrameScale) -> str:
    return ", ".join(f"{name} {value}" for name, value in scale._asdict().items())
