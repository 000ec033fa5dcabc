"""The videos that a path stands for."""

from __future__ import annotations

import stat
from pathlib import Path

from datamodules.errors import UserError
from datamodules.video.drawn_videos import is_drawn
from datamodules.video.picture_folder import NUMBERED, PictureFolder, Video

VIDEO_ENDINGS = frozenset({
    ".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".dav", ".divx", ".dv", ".f4v", ".flv", ".h264", ".h265",
    ".hevc", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg",
    ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".tod", ".ts", ".vob", ".webm", ".wmv",
})  # fmt: skip
"""Endings of video files in lower case, the one list of all readers."""
SOURCES = (
    "name a video file, a folder of videos or of numbered pictures, the number of a camera, an address such as "
    "rtsp://..., or a list of them (--data.source X)"
)


def is_video_file(path: Path) -> bool:
    """Return whether a path is a file that its ending, in upper or lower case, makes a video; hidden files are none."""
    return path.suffix.lower() in VIDEO_ENDINGS and not path.name.startswith(".") and path.is_file()


def files_of(source: str, picture_rate: float) -> list[tuple[str, Video]]:
    """Names and files that a path stands for: itself, or what its folder holds; videos come before pictures.

    Names are those of the files without their endings, with the sub-folders they lie in; with their endings where two
    files would have one name. Hidden files, and videos that an earlier prediction drew, are left out of folders.

    Raises:
        UserError: there is nothing that could be read.
    """
    path = Path(source)
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        raise UserError("no such source", source, SOURCES) from None
    except OSError as error:  # no permission, a name that is too long, a file among the folders
        raise UserError(f"cannot be read ({error.strerror})", source, SOURCES) from None
    if not is_folder:
        return [(path.stem, path)]
    files = sorted(file for file in path.rglob("*") if _is_shown(file.relative_to(path), path))
    videos = [file for file in files if not is_drawn(file)]
    if drawn := len(files) - len(videos):
        from lightning.pytorch.utilities import rank_zero_info

        rank_zero_info(f"{source}: left out {drawn} file{'s' * (drawn > 1)} that earlier predictions drew")
    if videos:
        names = [str(file.relative_to(path).with_suffix("")) for file in videos]
        # "A" and "a" would share their files of results on a file system that takes them for one.
        if len({name.casefold() for name in names}) < len(names):
            names = [str(file.relative_to(path)) for file in videos]
        return list(zip(names, videos, strict=True))
    if any(NUMBERED.fullmatch(file.name) for file in path.iterdir()):
        return [(path.resolve().name, PictureFolder(path, picture_rate))]
    raise UserError("holds neither videos nor numbered pictures such as img_00001.jpg", source, SOURCES)


def _is_shown(relative: Path, folder: Path) -> bool:
    """Return whether a file is a video and neither it nor a folder on its way is hidden."""
    return is_video_file(folder / relative) and not any(part.startswith(".") for part in relative.parts)
