"""Folders and files of the videos of a data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from datamodules.annotations.mistakes import Mistake
from datamodules.errors import UserError
from datamodules.video.picture_folder import PictureFolder, Video
from datamodules.video.source_files import is_video_file


def require_folder(folder: Path) -> None:
    """Refuse a folder of videos that is not there."""
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "no such folder"
        raise UserError(f"{what} of videos, or of folders of pictures", folder)


def videos_in(
    folder: Path, frame_rate: Callable[[str], float], not_videos: Collection[str] = ()
) -> dict[str, list[Video]]:
    """Find what a folder holds of each video, by name: its folder of pictures if there is one, else its files.

    Args:
        folder: is not searched any deeper.
        frame_rate: pictures per second of a folder of pictures, by its name.
        not_videos: folders that hold something else.
    """
    found: dict[str, list[Video]] = {}
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir():
                if entry.name not in not_videos:
                    found[entry.name] = [PictureFolder(Path(entry.path), frame_rate(entry.name))]
            elif is_video_file(Path(entry.path)):
                of_name = found.setdefault(os.path.splitext(entry.name)[0], [])
                if not any(isinstance(video, PictureFolder) for video in of_name):
                    of_name.append(Path(entry.path))
    return found


def only_video(name: str, videos: Sequence[Video]) -> Video:
    """Return the one video of a name; several of one name are a mistake."""
    if len(videos) > 1:
        raise Mistake(
            "annotated videos whose name several files have",
            name,
            f"several videos are called {name}: {', '.join(map(str, videos))}",
            "keep one of them",
        )
    return videos[0]
