import errno
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from fractions import Fraction
from math import floor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from datamodules.errors import UserError
from datamodules.files import whole_path
from datamodules.frames import cache_entries
from datamodules.frames.cache import OPEN_MAPS, FrameCache
from datamodules.frames.store import DecodedFrames, FrameScale
from datamodules.video.picture_folder import PictureFolder
from datamodules.video.readers import VideoError
from tests.datamodules.miniature import encode, numbered_frames, read_numbers, write_pictures
from tests.datamodules.written_videos import write_video


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "a!b [c].mp4"
    write_video(path, numbered_frames(70), fps=10)
    return path


@pytest.mark.parametrize("short_side", [None, 48, 120])
def test_cached_and_decoded_frames_are_the_same(tmp_path, video, short_side):
    scale = FrameScale(short_side)
    cache, decoded = FrameCache(tmp_path / "cache", scale), DecodedFrames(scale)
    wanted = [69, 0, 33, 33, 5]
    np.testing.assert_array_equal(cache.get(video, wanted), decoded.get(video, wanted))
    assert read_numbers(cache.get(video, wanted)) == wanted
    size = {None: (96, 128), 48: (48, 64), 120: (120, 160)}[short_side]
    for facts in (cache.facts(video), decoded.facts(video)):
        assert facts.size == size and facts.original_size == (96, 128)
        np.testing.assert_allclose(facts.times, np.arange(70) / 10, atol=1e-6)
    frames = cache.get(video, range(70))
    assert frames.shape == (70, *size, 3) and frames.dtype == np.uint8


def test_what_is_returned_may_be_changed(tmp_path, video):
    cache = FrameCache(tmp_path / "cache", FrameScale(48))
    before = cache.get(video, [3])
    cache.get(video, [3])[:] = 0
    np.testing.assert_array_equal(cache.get(video, [3]), before)


def test_a_video_is_decoded_once(tmp_path, video, monkeypatch):
    FrameCache(tmp_path / "cache", FrameScale(48)).build([video, video])
    monkeypatch.setattr("datamodules.frames.cache.open_video", None)
    again = FrameCache(tmp_path / "cache", FrameScale(48))
    again.build([video])
    assert read_numbers(again.get(video, [7])) == [7]


def test_a_copy_with_other_times_is_not_decoded_again(tmp_path, video, monkeypatch):
    FrameCache(tmp_path / "cache", FrameScale(48)).build([video])
    os.utime(video, (1, 1))
    monkeypatch.setattr("datamodules.frames.cache.open_video", None)
    assert read_numbers(FrameCache(tmp_path / "cache", FrameScale(48)).get(video, [7])) == [7]


def test_a_changed_video_is_decoded_again(tmp_path, video):
    folder = tmp_path / "cache"
    FrameCache(folder, FrameScale(None)).build([video])
    write_video(video, numbered_frames(12), fps=10)
    assert read_numbers(FrameCache(folder, FrameScale(None)).get(video, range(12))) == list(range(12))
    assert len(list(folder.iterdir())) == 1


def test_sizes_do_not_share_frames(tmp_path, video):
    folder = tmp_path / "cache"
    assert FrameCache(folder, FrameScale(48)).get(video, [0]).shape[1:3] == (48, 64)
    assert FrameCache(folder, FrameScale(24)).get(video, [0]).shape[1:3] == (24, 32)


def test_a_video_that_fails_half_way_leaves_nothing(tmp_path, video):
    content = bytearray(video.read_bytes())
    middle = content.find(b"mdat") + len(content) // 3
    content[middle : middle + 1500] = b"\xff" * 1500
    video.write_bytes(content)
    with pytest.raises(VideoError, match="corrupt"):
        FrameCache(tmp_path / "cache", FrameScale(None)).build([video])
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_would_grow_too_large_says_how_to_go_on(tmp_path, video):
    with pytest.raises(
        ValueError, match=r"2\.46 MiB, more than the 1\.02 MiB allowed; turn the cache off \(cache: null\)"
    ):
        FrameCache(tmp_path / "cache", FrameScale(None), max_gib=0.001).build([video])
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_is_told_in_units_that_say_something(tmp_path, video, monkeypatch):
    monkeypatch.setattr(cache_entries.shutil, "disk_usage", lambda folder: SimpleNamespace(free=300 * 2**10))
    with pytest.raises(UserError, match=r"cache: .* take 2\.46 MiB more, 300 KiB are free; turn the cache off"):
        FrameCache(tmp_path / "cache", FrameScale(None)).build([video])


# --- damage ----------------------------------------------------------------------------------------------------------


def cut(path: Path, end: int) -> None:
    os.truncate(path, path.stat().st_size - end)


def zero(path: Path, start: int, stop: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[start:stop] = bytes(len(content[start:stop]))
    path.write_bytes(content)


def change_time(path: Path) -> None:
    text = path.read_text()
    assert "0.1, 0.2" in text
    path.write_text(text.replace("0.1, 0.2", "0.1, 0.3"))


DAMAGES = {
    "frames cut": lambda entry: cut(entry / "frames.npy", 1000),
    "frames longer": lambda entry: (entry / "frames.npy").open("ab").write(b"more"),
    "frames empty": lambda entry: (entry / "frames.npy").write_bytes(b""),
    "frames gone": lambda entry: (entry / "frames.npy").unlink(),
    "frames a folder": lambda entry: ((entry / "frames.npy").unlink(), (entry / "frames.npy").mkdir()),
    "zeros at the end": lambda entry: zero(entry / "frames.npy", -50_000),
    "zeros in the middle": lambda entry: zero(entry / "frames.npy", 1_000_000, 1_004_096),
    "zeros from frame 3 on": lambda entry: zero(entry / "frames.npy", 128 + 3 * 96 * 128 * 3),
    "one byte": lambda entry: zero(entry / "frames.npy", 128 + 69 * 96 * 128 * 3, 129 + 69 * 96 * 128 * 3),
    "facts cut": lambda entry: cut(entry / "facts.json", 30),
    "facts empty": lambda entry: (entry / "facts.json").write_bytes(b""),
    "facts zeros": lambda entry: zero(entry / "facts.json", -200),
    "facts gone": lambda entry: (entry / "facts.json").unlink(),
    "facts no utf-8": lambda entry: (entry / "facts.json").write_bytes(b"\xff\xfe{"),
    "facts a list": lambda entry: (entry / "facts.json").write_text("[1, 2]"),
    "facts a number": lambda entry: (entry / "facts.json").write_text("7"),
    "facts of another kind": lambda entry: (entry / "facts.json").write_text('{"record": [], "checksum": 3}'),
    "another time": lambda entry: change_time(entry / "facts.json"),
    "a file": lambda entry: (shutil.rmtree(entry), entry.write_text("")),
    "an empty folder": lambda entry: (shutil.rmtree(entry), entry.mkdir()),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A video and its cache, to be copied."""
    root = tmp_path_factory.mktemp("built")
    write_video(root / "video.mp4", numbered_frames(70), fps=10)
    FrameCache(root / "cache", FrameScale(None)).build([root / "video.mp4"])
    return root


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("how", ["get", "build"])
def test_a_damaged_entry_is_named_once_and_made_anew(tmp_path, built, damage, how):
    video, scale = built / "video.mp4", FrameScale(None)
    expected = DecodedFrames(scale).get(video, range(70))
    shutil.copytree(built / "cache", tmp_path / "cache")
    (entry,) = (tmp_path / "cache").iterdir()
    DAMAGES[damage](entry)
    cache = FrameCache(tmp_path / "cache", scale)
    with pytest.warns(UserWarning, match=f"{entry.name} is damaged .*it is made anew") as told:
        if how == "build":
            cache.build([video])
        for start in range(0, 70, 10):
            np.testing.assert_array_equal(cache.get(video, range(start, start + 10)), expected[start : start + 10])
    assert len(told) == 1
    np.testing.assert_array_equal(cache.facts(video).times, DecodedFrames(scale).facts(video).times)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [entry.name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = FrameCache(tmp_path / "cache", scale)
        again.build([video])
        np.testing.assert_array_equal(again.get(video, range(70)), expected)


def test_damage_that_comes_while_an_entry_is_open_is_found_at_the_first_look_at_a_frame(tmp_path, built):
    video = built / "video.mp4"
    shutil.copytree(built / "cache", tmp_path / "cache")
    (entry,) = (tmp_path / "cache").iterdir()
    cache = FrameCache(tmp_path / "cache", FrameScale(None))
    assert read_numbers(cache.get(video, [0, 1])) == [0, 1]
    with (entry / "frames.npy").open("r+b") as file:  # in place: the file is open
        file.seek(-10_000, os.SEEK_END)
        file.write(bytes(10_000))
    with pytest.warns(UserWarning, match="frame 69 is not what was written"):
        assert read_numbers(cache.get(video, [2, 69])) == [2, 69]


@pytest.mark.slow
def test_several_processes_mend_the_same_entry(tmp_path, built):
    video = built / "video.mp4"
    shutil.copytree(built / "cache", tmp_path / "cache")
    (entry,) = (tmp_path / "cache").iterdir()
    zero(entry / "frames.npy", 500)
    cache = FrameCache(tmp_path / "cache", FrameScale(None))
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        for _, frames in pool.map(fetch_all, [(cache, video)] * 3, chunksize=1):
            assert read_numbers(frames) == [60, 2]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [entry.name]


def test_frames_that_are_damaged_again_at_once_are_an_error(tmp_path, built, monkeypatch):
    video = built / "video.mp4"
    shutil.copytree(built / "cache", tmp_path / "cache")
    (entry,) = (tmp_path / "cache").iterdir()
    zero(entry / "frames.npy", 500)
    cache = FrameCache(tmp_path / "cache", FrameScale(None))
    write = cache._write

    def failing_disk(video):
        write(video)
        zero(entry / "frames.npy", 500)

    monkeypatch.setattr(cache, "_write", failing_disk)
    with pytest.warns(UserWarning, match="made anew"), pytest.raises(UserError, match=r"is damaged.*check the disk"):
        cache.get(video, [3])


def test_too_many_open_files_are_no_damage(tmp_path, built, monkeypatch):
    video = built / "video.mp4"
    shutil.copytree(built / "cache", tmp_path / "cache")
    cache = FrameCache(tmp_path / "cache", FrameScale(None))
    cache.facts(video)

    def full(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("datamodules.frames.cache.np.memmap", full)
    with pytest.raises(OSError, match="Too many open files"):
        cache.get(video, [3])


def test_entries_of_earlier_versions_are_made_anew_without_a_word(tmp_path, built):
    video = built / "video.mp4"
    shutil.copytree(built / "cache", tmp_path / "cache")
    (entry,) = (tmp_path / "cache").iterdir()
    record = json.loads((entry / "facts.json").read_text())["record"]
    old = {name: record[name] for name in ("source", "original_size", "size", "times")}
    (entry / "facts.json").write_text(json.dumps(old))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache = FrameCache(tmp_path / "cache", FrameScale(None))
        cache.build([video])
        assert read_numbers(cache.get(video, [3])) == [3]
    assert "checksum" in json.loads((entry / "facts.json").read_text())


def test_numpy_opens_the_frames(built):
    (entry,) = (built / "cache").iterdir()
    frames = np.load(entry / "frames.npy", mmap_mode="r")
    assert frames.shape == (70, 96, 128, 3) and read_numbers(frames[:3]) == [0, 1, 2]


def test_what_killed_programs_left_is_swept(tmp_path, built):
    cache = FrameCache(tmp_path / "cache", FrameScale(None))
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    (tmp_path / "cache").mkdir()
    older = tmp_path / "cache" / f".video-0123456789abcdef.{ended.pid}.partial"
    older.mkdir()
    (older / "frames.npy").write_bytes(b"half")
    running = tmp_path / "cache" / f".video-0123456789abcdef.{os.getpid()}.partial"
    running.mkdir()
    with whole_path(tmp_path / "cache" / "entry") as unfinished:
        unfinished.touch()
        name = unfinished.name.replace(f"-{os.getpid()}.", f"-{ended.pid}.")
    (tmp_path / "cache" / "entry").rename(tmp_path / "cache" / name)
    cache.build([built / "video.mp4"])
    names = [path.name for path in (tmp_path / "cache").iterdir()]
    assert len(names) == 2 and running.name in names


def test_a_full_disk_leaves_no_entry(tmp_path, built):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("needs root, to mount a small file system")
    try:
        cache = FrameCache(disk / "cache", FrameScale(None))
        with pytest.raises(UserError, match=r"video-\w+: cannot be written: No space left"):
            cache._write(built / "video.mp4")
        assert list((disk / "cache").iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


# --- processes -------------------------------------------------------------------------------------------------------


def test_several_processes_build_the_same_cache(tmp_path):
    videos = [tmp_path / f"{number}.mp4" for number in range(3)]
    for number, path in enumerate(videos):
        write_video(path, numbered_frames(5 + number), fps=10)
    cache = FrameCache(tmp_path / "cache", FrameScale(48))
    cache.build(videos, workers=2)
    assert [read_numbers(cache.get(path, range(5 + number))) for number, path in enumerate(videos)] == [
        list(range(5 + number)) for number in range(3)
    ]


def test_open_readers_are_bounded(tmp_path):
    videos = [tmp_path / f"{number}.mp4" for number in range(3)]
    for path in videos:
        write_video(path, numbered_frames(4), fps=10)
    store = DecodedFrames(FrameScale(None), open_readers=2)
    for path in videos:
        assert read_numbers(store.get(path, [1, 3])) == [1, 3]
    assert list(store._readers) == videos[1:]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_stores_work_in_processes_that_begin_after_they_have_been_used(tmp_path, video, method):
    stores = [FrameCache(tmp_path / "cache", FrameScale(48)), DecodedFrames(FrameScale(48))]
    for store in stores:
        store.get(video, [0])
    with multiprocessing.get_context(method).Pool(1) as pool:
        for store in stores:
            other, frames = pool.apply_async(fetch, (store, video)).get(timeout=30)
            assert other != os.getpid()
            assert read_numbers(frames) == [60, 2]


def test_a_store_travels_without_its_pixels(tmp_path, video):
    store = FrameCache(tmp_path / "cache", FrameScale(None))
    store.get(video, [0])
    assert len(pickle.dumps(store)) < 10_000


def fetch_all(arguments):
    return fetch(*arguments)


def fetch(store, video):
    return os.getpid(), store.get(video, [60, 2])


def test_the_short_side_is_scaled_and_the_aspect_kept():
    assert FrameScale(288).size(240, 320) == (288, 384)
    assert FrameScale(288).size(320, 240) == (384, 288)
    assert FrameScale(128).size(256, 340) == (128, 170)
    assert FrameScale(None).size(100, 100) == (100, 100)


def half_up(value: Fraction) -> int:
    return floor(value + Fraction(1, 2))


def test_sizes_are_rounded_half_up_and_the_long_side_keeps_its_limit():
    scale = FrameScale(288, max_long_side=1333)
    for height, width in ((480, 854), (320, 3), (272, 640), (100, 1000), (1000, 100), (64, 297), (288, 1333), (5, 24)):
        factor = min(Fraction(288, min(height, width)), Fraction(1333, max(height, width)))
        assert scale.size(height, width) == (half_up(height * factor), half_up(width * factor))
    assert scale.size(100, 1000) == (133, 1333)
    assert FrameScale(2).size(4, 5) == (2, 3)  # 2.5
    assert FrameScale(288).size(100, 1000) == (288, 2880)


def test_shrinking_averages_areas():
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), np.uint8)
    averages = frames.reshape(2, 4, 2, 6, 2, 3).mean(axis=(2, 4))
    assert np.abs(FrameScale(4)(frames) - averages).max() <= 0.5


def test_bilinear_shrinking_weighs_the_four_nearest_pixels_alone():
    frames = np.random.default_rng(0).integers(0, 256, (1, 9, 12, 3), np.uint8)
    small = FrameScale(3, interpolation="bilinear")(frames)
    # A third of the size: pixel i lies on the middle of pixel 3 i + 1.
    np.testing.assert_array_equal(small, frames[:, 1::3, 1::3])


def test_scales_do_not_share_frames(tmp_path, video):
    scales = FrameScale(48), FrameScale(48, 60), FrameScale(48, interpolation="bilinear")
    stores = [FrameCache(tmp_path / "cache", scale) for scale in scales]
    assert [store.get(video, [0]).shape[1:3] for store in stores] == [(48, 64), (45, 60), (48, 64)]
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.slow
def test_missing_pictures_are_not_told_again_by_the_processes_that_decode(tmp_path, capfd):
    folders = [PictureFolder(write_pictures(tmp_path / name, 4, "img_{:05d}.png")) for name in ("one", "two")]
    (folders[0].path / "img_00002.png").unlink()
    cache = FrameCache(tmp_path / "cache", FrameScale(None))
    with pytest.warns(UserWarning, match=r"1 of 4 pictures are missing.*img_00002\.png") as warned:
        cache.build(folders, workers=2)
    assert len(warned) == 1 and "pictures are missing" not in capfd.readouterr().err
    assert read_numbers(cache.get(folders[0], range(4))) == [0, 0, 2, 3]


def resident_mib() -> float:
    """Memory of this process that is no file's."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("decord.mp4", {"preset": "ultrafast", "threads": "1"}),
        ("pyav.avi", {"codec": "mpeg4", "bf": "2"}),
        ("cached", {}),
    ],
)
def test_reading_2000_videos_leaves_memory_flat(tmp_path, name, codec):
    videos = [tmp_path / str(number) / name.replace("cached", "cached.mp4") for number in range(2000)]
    first = videos[0]
    for video in videos:
        video.parent.mkdir()
    encode(first, 20, **codec)
    for video in videos[1:]:
        os.link(first, video)
    store = FrameCache(tmp_path / "cache", FrameScale(48)) if name == "cached" else DecodedFrames(FrameScale(48))
    memory = []
    for number, video in enumerate(videos):
        assert read_numbers(store.get(video, [3, 17])) == [3, 17]
        if number % 400 == 399:
            memory.append(resident_mib())
    # The first 400 bring the libraries and fill what is bounded; a decord reader that stayed would be several MiB each.
    assert memory[-1] - memory[0] < 16, memory
    assert len(os.listdir("/proc/self/fd")) < 100 + OPEN_MAPS and len(os.listdir("/proc/self/task")) < 100
