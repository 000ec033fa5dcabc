"""Files that appear under their name whole or not at all, so that what exists after an interruption can be trusted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its name when the block ends without an error."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_mp4(path: Path, frames: Iterable[np.ndarray], size: int, fps: int, crf: int, preset: str) -> None:
    """Encode square frames, (size, size, 3) uint8 RGB each, as h264.

    No B-frames: with them the container needs an edit list, which not every decoder respects. One thread: many videos
    are encoded side by side, and their bytes shall not depend on the number of cores.
    """
    import av

    options = {"crf": str(crf), "preset": preset, "g": "16", "bf": "0"}
    with whole(path) as unfinished, av.open(str(unfinished), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
