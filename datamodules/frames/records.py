"""Records of the frame cache: facts about the frames of a video, and how they are read again."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datamodules.frames.cache_entries import damage
from datamodules.frames.store import FrameFacts
from datamodules.video.states import VideoState


class Record(NamedTuple):
    """Facts and checksums of an entry."""

    facts: FrameFacts
    checksums: np.ndarray
    """(N,) uint32, CRC-32 of each frame."""
    checked: np.ndarray
    """(N,) bool, which frames this process has compared with their checksums."""
    offset: int
    """Bytes of ``frames.npy`` before the first frame."""


def read_record(entry: Path, state: VideoState) -> Record | None:
    """Read the record of an entry; None where there is none, or its video was in another ``state``.

    Raises:
        DamagedEntry: there is an entry that cannot be used.
    """
    if not os.path.lexists(entry):
        return None
    try:
        content = json.loads((entry / "facts.json").read_bytes())
        if isinstance(content, dict) and "source" in content:
            return None  # written before there were checksums
        record, checksum = content["record"], content["checksum"]
        size = (entry / "frames.npy").stat().st_size
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise damage(entry, error) from error
    if zlib.crc32(json.dumps(record).encode()) != checksum:
        raise damage(entry, "facts.json is not what was written")
    if not state.is_recorded(record["source"]):
        return None
    if record["bytes"] != size:
        raise damage(entry, f"frames.npy has {size} bytes, {record['bytes']} were written")
    facts = FrameFacts(np.asarray(record["times"]), tuple(record["original_size"]), tuple(record["size"]))
    checksums = np.asarray(record["checksums"], np.uint32)
    offset = size - len(checksums) * facts.size[0] * facts.size[1] * 3
    return Record(facts, checksums, np.zeros(len(checksums), bool), offset)
