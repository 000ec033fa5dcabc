"""Recognition of videos that prediction draws: they may lie in one folder with those that it reads."""

from __future__ import annotations

import re
from pathlib import Path

DRAWN = "drawn by Onlooker"
"""The comment inside such a file."""
DRAWN_NAME = re.compile(r".*\.detections(\.\d+)?\.mp4", re.IGNORECASE | re.DOTALL)
"""Names of such files, later parts included; not every file of such a name is one."""


def is_drawn(path: Path) -> bool:
    """Return whether a file is a video that prediction drew; it may still be written, or cut off, at its start too."""
    import av

    if not DRAWN_NAME.fullmatch(path.name) or not path.is_file():
        return False
    if path.stat().st_size == 0:
        return True
    try:
        with path.open("rb") as file, av.open(file, metadata_errors="replace") as container:
            return container.metadata.get("comment") == DRAWN
    except (OSError, av.error.FFmpegError):
        return False  # no video at all; reading it reports that
