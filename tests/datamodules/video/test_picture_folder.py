"""A folder of numbered pictures is a video like any other."""

import os
import pickle

import numpy as np
import pytest

from datamodules.frames.cache import FrameCache
from datamodules.frames.store import DecodedFrames, FrameScale
from datamodules.video import picture_folder
from datamodules.video.listing import VideoError
from datamodules.video.picture_folder import PictureFolder, list_pictures
from datamodules.video.readers import list_video, open_video
from tests.datamodules.miniature import read_numbers, write_pictures


def missing_pictures(folder, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


@pytest.mark.parametrize("pattern", ["film_{:06d}.jpg", "img_{:05d}.jpg", "{}.png", "a-9_{:04d}.JPG"])
def test_pictures_are_frames_in_the_order_of_their_numbers_under_any_name(tmp_path, pattern):
    folder = PictureFolder(write_pictures(tmp_path / "film", 12, pattern), frame_rate=25)
    with open_video(folder) as reader:
        assert (reader.num_frames, reader.height, reader.width) == (12, 96, 128)
        assert read_numbers(reader.get([11, 0, 5, 5])) == [11, 0, 5, 5]
        np.testing.assert_allclose(reader.times, np.arange(12) / 25)


def test_pictures_are_rgb(tmp_path):
    import cv2

    (tmp_path / "film").mkdir()
    cv2.imwrite(str(tmp_path / "film" / "img_00001.png"), np.full((8, 8, 3), (10, 20, 200), np.uint8))
    with open_video(PictureFolder(tmp_path / "film")) as reader:
        assert reader.get([0])[0, 0, 0].tolist() == [200, 20, 10]


def test_pictures_may_count_from_zero(tmp_path):
    folder = write_pictures(tmp_path / "film", 4, "img_{:05d}.jpg", first=0)
    listing = list_pictures(PictureFolder(folder))
    np.testing.assert_allclose(listing.times, np.arange(4) / 30)
    assert listing.file(3).endswith("img_00003.jpg")


def test_a_missing_picture_is_named_once_and_the_one_before_is_shown(tmp_path):
    folder = write_pictures(tmp_path / "film", 12, "film_{:06d}.jpg")
    missing_pictures(folder, "film_000001.jpg", "film_000006.jpg", "film_000007.jpg")
    with pytest.warns(UserWarning, match="3 of 12 pictures are missing.*film_000001.jpg, film_000006.jpg") as warned:
        listings = [list_video(PictureFolder(folder)) for _ in range(3)]
    assert len(warned) == 1
    assert listings[0].present.tolist() == [number not in (1, 6, 7) for number in range(1, 13)]
    np.testing.assert_allclose(listings[0].times, np.arange(12) / 30)  # the others keep their times
    with open_video(PictureFolder(folder)) as reader:
        # Picture n carries the number n - 1; the first has none before it.
        assert read_numbers(reader.get([0, 4, 5, 6, 7])) == [1, 4, 4, 4, 7]


def test_an_unreadable_picture_is_named_and_a_neighbour_is_shown(tmp_path):
    folder = write_pictures(tmp_path / "film", 5, "img_{:05d}.jpg")
    (folder / "img_00003.jpg").write_bytes(b"")
    (folder / "img_00001.jpg").write_bytes(b"no picture")
    with open_video(PictureFolder(folder)) as reader:
        with pytest.warns(UserWarning, match="img_00003.jpg: no readable picture"):
            assert read_numbers(reader.get([2])) == [1]
        with pytest.warns(UserWarning, match="img_00001.jpg: no readable picture"):
            assert read_numbers(reader.get([0])) == [1]


def test_optical_flow_beside_the_frames_is_left_alone(tmp_path):
    folder = write_pictures(tmp_path / "film", 3, "img_{:05d}.jpg")
    for prefix in ("flow_x", "flow_y"):
        write_pictures(folder, 2, prefix + "_{:05d}.jpg")
    (folder / "notes.txt").touch()
    (folder / ".img_00009.jpg").touch()
    assert len(list_pictures(PictureFolder(folder)).times) == 3


def test_folders_that_hold_no_video_are_named_with_the_reason(tmp_path):
    (tmp_path / "empty").mkdir()
    two = write_pictures(write_pictures(tmp_path / "two", 2, "left_{:02d}.jpg"), 2, "right_{:02d}.jpg")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "img_00001.jpg").touch()
    reasons = {
        tmp_path / "absent": "absent: no such folder",
        tmp_path / "empty": "empty: holds no numbered picture",
        two: r"two: holds pictures of several kinds \(left_\*.jpg, right_\*.jpg\)",
        tmp_path / "broken": "broken: none of its first 1 pictures can be read",
    }
    for folder, reason in reasons.items():
        with pytest.raises(VideoError, match=reason):
            list_pictures(PictureFolder(folder))


def test_a_picture_of_another_size_is_refused(tmp_path):
    folder = write_pictures(tmp_path / "film", 3, "img_{:05d}.jpg")
    write_pictures(folder, 1, "img_{:05d}.jpg", first=4, size=(64, 64))
    with (
        open_video(PictureFolder(folder)) as reader,
        pytest.raises(VideoError, match=r"img_00004\.jpg: is 64x64, .*128x96"),
    ):
        reader.get([3])


def test_the_folder_is_looked_through_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    folder, look, looks = write_pictures(tmp_path / "film", 3, "img_{:05d}.jpg"), os.scandir, []

    def counted(path):
        looks.append(path)
        return look(path)

    monkeypatch.setattr(picture_folder.os, "scandir", counted)
    for _ in range(3):
        assert len(list_pictures(PictureFolder(folder)).times) == 3
    assert len(looks) == 1
    write_pictures(folder, 5, "img_{:05d}.jpg")
    os.utime(folder, ns=(1, 1))
    assert len(list_pictures(PictureFolder(folder)).times) == 5


@pytest.mark.parametrize("short_side", [None, 48])
def test_cached_and_decoded_pictures_are_the_same(tmp_path, short_side):
    folder = PictureFolder(write_pictures(tmp_path / "film", 70, "film_{:06d}.jpg"), frame_rate=10)
    scale = FrameScale(short_side)
    cache, decoded = FrameCache(tmp_path / "cache", scale), DecodedFrames(scale)
    cache.build([folder])
    np.testing.assert_array_equal(cache.get(folder, [69, 0, 33]), decoded.get(folder, [69, 0, 33]))
    np.testing.assert_allclose(cache.facts(folder).times, decoded.facts(folder).times)
    # At another rate the same pictures are another video.
    np.testing.assert_allclose(cache.facts(folder._replace(frame_rate=5)).times, np.arange(70) / 5)
    assert read_numbers(pickle.loads(pickle.dumps(decoded)).get(folder, [7])) == [7]
