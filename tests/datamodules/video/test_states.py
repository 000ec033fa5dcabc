"""States of videos: a copy with other times is still the same video, another content of the same size is not."""

from __future__ import annotations

import json
import os

import pytest

from datamodules.video import states
from datamodules.video.listing import VideoError
from datamodules.video.picture_folder import PictureFolder
from datamodules.video.states import VideoState


def age(path):
    """Change the time of the last change alone."""
    facts = path.stat()
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns - 100 * 10**9))


@pytest.fixture
def film(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(b"abcd")
    return path


def stored(video):
    """The record, once it has been through a file."""
    return json.loads(json.dumps(VideoState.of(video).record()))


def test_a_file_that_only_has_another_time_is_in_the_same_state(film):
    record = stored(film)
    assert VideoState.of(film).is_recorded(record)
    age(film)
    assert VideoState.of(film).is_recorded(record)


@pytest.mark.parametrize("content", [b"abce", b"abcde"])
def test_another_content_is_another_state(film, content):
    record = stored(film)
    film.write_bytes(content)
    age(film)
    assert not VideoState.of(film).is_recorded(record)


def test_a_record_without_digest_goes_by_time(film):
    record = {key: value for key, value in stored(film).items() if key != "sha256"}
    assert VideoState.of(film).is_recorded(record)
    age(film)
    assert not VideoState.of(film).is_recorded(record)


def test_a_folder_is_known_by_its_pictures_and_their_names(tmp_path):
    folder = PictureFolder(tmp_path / "film")
    folder.path.mkdir()
    (folder.path / "1.png").write_bytes(b"one")
    (folder.path / "2.png").write_bytes(b"two")
    record = stored(folder)
    for picture in folder.path.iterdir():
        age(picture)
    age(folder.path)
    assert VideoState.of(folder).is_recorded(record)
    (folder.path / "2.png").rename(folder.path / "3.png")
    assert not VideoState.of(folder).is_recorded(record)


def test_a_picture_that_is_overwritten_is_another_state_of_its_folder(tmp_path):
    """The folder's own time stays as it was."""
    folder = PictureFolder(tmp_path / "film")
    folder.path.mkdir()
    (folder.path / "1.png").write_bytes(b"one")
    record, before = stored(folder), folder.path.stat().st_mtime_ns
    (folder.path / "1.png").write_bytes(b"two")
    assert folder.path.stat().st_mtime_ns == before
    states._newest.cache_clear()  # as another process would begin
    states._digest.cache_clear()
    assert not VideoState.of(folder).is_recorded(record)


def test_a_video_that_is_not_there_is_named(tmp_path):
    with pytest.raises(VideoError, match=r"none\.mp4: no such video"):
        VideoState.of(tmp_path / "none.mp4")
