"""Videos that data sets are made of: h264 that every decoder reads alike."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from datamodules.files import whole_path


def write_mp4(path: Path, frames: Iterable[np.ndarray], size: tuple[int, int], fps: int, crf: int, preset: str) -> None:
    """Encode frames, (height, width, 3) uint8 RGB each, as h264; the file is whole or not there.

    No B-frames: with them the container needs an edit list, which not every decoder respects. One thread: many videos
    are encoded side by side, and their bytes shall not depend on the number of cores.

    Args:
        size: height and width, even numbers.
        fps: frames a second.
        crf, preset: quality and speed, as of x264.
    """
    import av

    options = {"crf": str(crf), "preset": preset, "g": "16", "bf": "0"}
    with whole_path(path) as unfinished, av.open(str(unfinished), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
