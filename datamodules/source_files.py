"""The videos that a path stands for."""

from __future__ import annotations

from pathlib import Path

from datamodules.picture_folder import NUMBERED, PictureFolder, Video

VIDEO_ENDINGS = frozenset({
    ".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".dav", ".divx", ".dv", ".f4v", ".flv", ".h264", ".h265",
    ".hevc", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg",
    ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".tod", ".ts", ".vob", ".webm", ".wmv",
})  # fmt: skip
"""Endings of video files in lower case, the one list of all readers."""
SOURCES = (
    "name a video file, a folder of videos or of numbered pictures, the number of a camera, or an address such as "
    "rtsp://... (--data.source X)"
)


def is_video_file(path: Path) -> bool:
    """Whether a path is a file that its ending, in upper or lower case, makes a video; hidden files are none."""
    return path.suffix.lower() in VIDEO_ENDINGS and not path.name.startswith(".") and path.is_file()


def files_of(source: str, picture_rate: float) -> list[tuple[str, Video]]:
    """Names and files that a path stands for: itself, or what its folder holds; videos come before pictures."""
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"no source at {source}; {SOURCES}")
    if not path.is_dir():
        return [(path.stem, path)]
    videos = sorted(file for file in path.rglob("*") if is_video_file(file))
    if videos:
        names = [str(file.relative_to(path).with_suffix("")) for file in videos]
        if len(set(names)) < len(names):  # one name with two endings
            names = [str(file.relative_to(path)) for file in videos]
        return list(zip(names, videos, strict=True))
    if any(NUMBERED.fullmatch(file.name) for file in path.iterdir()):
        return [(path.resolve().name, PictureFolder(path, picture_rate))]
    raise ValueError(f"{source} holds neither videos nor numbered pictures such as img_00001.jpg")
