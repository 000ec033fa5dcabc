"""The videos that a path stands for."""

from __future__ import annotations

import stat
from pathlib import Path

from datamodules.errors import UserError
from datamodules.picture_folder import NUMBERED, PictureFolder, Video

VIDEO_ENDINGS = frozenset(
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .webm .wmv".split()  # noqa: SIM905
)
SOURCES = (
    "name a video file, a folder of videos or of numbered pictures, the number of a camera, or an address such as "
    "rtsp://... (--data.source X)"
)


def files_of(source: str, picture_rate: float) -> list[tuple[str, Video]]:
    """Names and files that a path stands for: itself, or what its folder holds; videos come before pictures.

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
    videos = sorted(file for file in path.rglob("*") if file.suffix.lower() in VIDEO_ENDINGS and file.is_file())
    if videos:
        names = [str(file.relative_to(path).with_suffix("")) for file in videos]
        if len(set(names)) < len(names):  # one name with two endings
            names = [str(file.relative_to(path)) for file in videos]
        return list(zip(names, videos, strict=True))
    if any(NUMBERED.fullmatch(file.name) for file in path.iterdir()):
        return [(path.resolve().name, PictureFolder(path, picture_rate))]
    raise UserError("holds neither videos nor numbered pictures such as img_00001.jpg", source, SOURCES)
