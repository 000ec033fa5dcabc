"""Flow on disk is that which is computed, is kept while the video is as it was, and is whole or not there."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datamodules.flow import cache as flow_cache
from datamodules.flow.cache import CHUNK_STEPS, FlowCache, SteppedFrames
from datamodules.flow.methods import DisFlow, OpticalFlow
from datamodules.flow.store import ComputedFlow, FlowGrid, FlowSettings
from datamodules.frames.cache_entries import DamagedEntry
from datamodules.frames.store import DecodedFrames, FrameScale
from datamodules.video.picture_folder import PictureFolder
from datamodules.video.states import VideoState
from tests.datamodules.miniature import write_pictures
from tests.datamodules.moving import moving_frames
from tests.datamodules.written_videos import write_video

LENGTH = 2 * CHUNK_STEPS + 9
STEPS = np.arange(LENGTH)


class Counted(DisFlow):
    """DIS that knows how many frames it was asked about, and may break off."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__("ultrafast")
        self.count, self.fail_at = 0, fail_at

    def between(self, frames: np.ndarray) -> np.ndarray:
        self.count += len(frames) - 1
        if self.fail_at is not None and self.count >= self.fail_at:
            raise KeyboardInterrupt
        return super().between(frames)


def cache_of(tmp_path: Path, method: OpticalFlow | str | None = None, side: int | None = 48, **settings) -> FlowCache:
    method = DisFlow("ultrafast") if method is None else method
    return FlowCache(DecodedFrames(FrameScale(side)), FlowSettings(method, tmp_path / "flow", **settings))


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "a!b [c].mp4"
    write_video(path, moving_frames(LENGTH, (2, -1), height=96, width=128), fps=16)
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory, film):
    cache = cache_of(tmp_path_factory.mktemp("built"))
    cache.build([SteppedFrames(film, STEPS)])
    return cache


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "precision", "dtype"), [(20, 1 / 16, np.int16), (7.9, 1 / 16, np.int8), (20, 0.16, np.int8)]
)
def test_rounding_is_off_by_half_the_precision_at_most_and_mirrors(bound, precision, dtype):
    grid = FlowGrid(bound, precision)
    flow = np.random.default_rng(0).uniform(-bound, bound, (5, 2, 30, 30)).astype(np.float32)
    flow[0, 0, 0, :3] = -bound, 0, bound
    integers = grid.to_integers(flow)
    assert integers.dtype == dtype and grid.to_pixels(integers).dtype == np.float32
    assert np.abs(grid.to_pixels(integers) - flow).max() <= precision / 2 * (1 + 1e-5)
    np.testing.assert_array_equal(grid.to_integers(-flow), -integers)
    np.testing.assert_allclose(np.abs(grid.to_pixels(grid.to_integers(flow * 1e4))).max(), bound, atol=precision / 2)


def test_a_grid_that_no_integer_holds_is_refused():
    for bound, precision in ((20, 0), (1, 2), (20, 1e-4), (-1, 0.1)):
        with pytest.raises(ValueError, match="precision must be positive, and bound between"):
            FlowGrid(bound, precision)


def test_what_is_stored_is_what_is_computed(built, film):
    frames = built.frames.get(film, STEPS)
    exact = built.method.of_steps(frames)
    stored = built.get(film, STEPS, 0, LENGTH)
    assert stored.dtype == np.float32 and stored.shape == (LENGTH, 2, 48, 64) and not stored[0].any()
    assert np.abs(stored - exact.clip(-20, 20)).max() <= 1 / 32 + 1e-6
    # At half the size of the video the texture moves by half as much.
    np.testing.assert_allclose(np.median(stored[1:], axis=(0, 2, 3)), [1, -0.5], atol=0.15)


@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, 1), (0, CHUNK_STEPS), (1, 2), (CHUNK_STEPS - 1, CHUNK_STEPS + 1), (CHUNK_STEPS, 2 * CHUNK_STEPS), (5, LENGTH)],
)
def test_any_range_is_a_slice_of_the_whole_stored_or_computed(built, film, start, stop):
    whole = built.get(film, STEPS, 0, LENGTH)
    np.testing.assert_array_equal(built.get(film, STEPS, start, stop), whole[start:stop])
    computed = ComputedFlow(built.frames, FlowSettings(DisFlow("ultrafast"), None))
    np.testing.assert_array_equal(computed.get(film, STEPS, start, stop), whole[start:stop])


def test_steps_that_show_the_same_frame_do_not_move(tmp_path, film):
    steps = np.asarray([0, 3, 3, 3, 6])
    flow = cache_of(tmp_path).get(film, steps, 0, 5)
    assert [bool(one.any()) for one in flow] == [False, True, False, False, True]
    # Three frames apart, three times as far.
    np.testing.assert_allclose(np.median(flow[1], axis=(1, 2)), [3, -1.5], atol=0.4)


def test_numpy_opens_a_file_of_it(built, film):
    (file,) = built.folder.iterdir()
    with np.load(file) as archive:
        assert archive["steps_0"].shape == (CHUNK_STEPS, 2, 48, 64)
        pixels = archive[f"steps_{CHUNK_STEPS}"] * archive["precision"]
    np.testing.assert_allclose(pixels, built.get(film, STEPS, CHUNK_STEPS, 2 * CHUNK_STEPS))
    assert file.stat().st_size < LENGTH * 2 * 48 * 64


# --- files -----------------------------------------------------------------------------------------------------------


def test_only_what_is_missing_is_computed(tmp_path):
    jobs = []
    for number in range(3):
        path = tmp_path / f"{number}.mp4"
        write_video(path, moving_frames(6 + number, (1, 1), seed=number), fps=8)
        jobs.append(SteppedFrames(path, np.arange(6 + number)))
    cache = cache_of(tmp_path, Counted())
    cache.build([*jobs, jobs[0]])
    assert cache.method.count == 5 + 6 + 7
    before = {file.name: file.stat().st_mtime_ns for file in cache.folder.iterdir()}
    assert len(before) == 3
    (deleted,) = cache.folder.glob("1-*.npz")
    deleted.unlink()
    again = cache_of(tmp_path, Counted())
    again.build(jobs)
    assert again.method.count == 6
    after = {file.name: file.stat().st_mtime_ns for file in cache.folder.iterdir()}
    assert after.keys() == before.keys() and [name for name in after if after[name] != before[name]] == [deleted.name]
    again.build(jobs)
    assert again.method.count == 6


def test_an_interrupted_write_leaves_nothing(tmp_path, film):
    cache = cache_of(tmp_path, Counted(fail_at=CHUNK_STEPS + 1))
    with pytest.raises(KeyboardInterrupt):
        cache.build([SteppedFrames(film, STEPS)])
    assert list(cache.folder.iterdir()) == []


def harmed(content: bytes, how: str) -> bytes:
    """A file of flow after an accident."""
    middle = len(content) // 2
    return {
        "cut": content[:-100],
        "cut in half": content[:middle],
        "empty": b"",
        "zeros at the end": content[:-400] + bytes(400),
        "zeros from the middle on": content[:middle] + bytes(len(content) - middle),
        "zeros in the middle": content[:middle] + bytes(300) + content[middle + 300 :],
        "one bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "other text": b"<html>" * 100,
    }[how]


HARMS = (
    "cut",
    "cut in half",
    "empty",
    "zeros at the end",
    "zeros from the middle on",
    "zeros in the middle",
    "one bit",
    "other text",
)


@pytest.fixture(scope="module")
def short(tmp_path_factory, film):
    """The flow of 20 steps: expected values, and the file."""
    cache = cache_of(tmp_path_factory.mktemp("short"))
    expected = cache.get(film, STEPS[:20], 0, 20)
    (file,) = cache.folder.iterdir()
    return expected, file


@pytest.mark.parametrize("how", HARMS)
def test_a_damaged_file_is_named_once_and_computed_anew(tmp_path, film, short, how):
    expected, file = short
    cache = cache_of(tmp_path)
    cache.folder.mkdir()
    entry = cache.folder / file.name
    entry.write_bytes(harmed(file.read_bytes(), how))
    with pytest.warns(UserWarning, match=f"{file.name} is damaged .*it is made anew") as told:
        np.testing.assert_array_equal(cache.get(film, STEPS[:20], 0, 20), expected)
        np.testing.assert_array_equal(cache.get(film, STEPS[:20], 3, 7), expected[3:7])
    assert len(told) == 1 and [path.name for path in cache.folder.iterdir()] == [file.name]


def test_an_archive_that_cannot_be_opened_is_made_anew_when_the_cache_is_filled(tmp_path, film, short):
    expected, file = short
    cache = cache_of(tmp_path, Counted())
    (cache.folder / file.name).mkdir(parents=True)  # not even a file
    with pytest.warns(UserWarning, match=f"{file.name} is damaged"):
        cache.build([SteppedFrames(film, STEPS[:20])])
    assert cache.method.count == 19
    np.testing.assert_array_equal(cache.get(film, STEPS[:20], 0, 20), expected)


@pytest.mark.parametrize("change", ["shorter", "longer", "smaller", "other numbers", "gone"])
def test_arrays_of_another_shape_are_not_served(tmp_path, film, short, change):
    expected, file = short
    cache = cache_of(tmp_path)
    cache.folder.mkdir()
    with np.load(file) as archive:
        arrays = dict(archive)
    steps = arrays.pop("steps_0")
    changed = {
        "shorter": steps[:-1],
        "longer": np.concatenate([steps, steps]),
        "smaller": steps[..., :-1],
        "other numbers": steps.astype(np.float32),
        "gone": None,
    }[change]
    np.savez(cache.folder / file.name, **arrays, **({} if changed is None else {"steps_0": changed}))
    with pytest.warns(UserWarning, match="made anew"):
        np.testing.assert_array_equal(cache.get(film, STEPS[:20], 0, 20), expected)


@pytest.mark.slow
def test_no_damage_is_served_or_ends_in_another_error(tmp_path, film, short):
    expected, file = short
    content, rng = file.read_bytes(), np.random.default_rng(0)
    cache = cache_of(tmp_path)
    cache.folder.mkdir()
    entry = cache.folder / file.name
    state = VideoState.of(film)
    found = 0
    for _ in range(1500):
        harmed = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(0, len(content) if rng.random() < 0.5 else 300) * rng.choice([1, -1]))
            harmed[at if abs(at) < len(content) else 0] = rng.integers(0, 256)
        entry.write_bytes(harmed)
        try:
            flow = cache._read(entry, film, 20, 0, 20)
        except DamagedEntry as error:
            assert file.name in str(error)
            found += 1
        else:  # what was hit says nothing of the flow, such as the date of a member
            assert flow is None or np.array_equal(flow, expected)
    assert found > 1000 and state == VideoState.of(film)


def test_what_killed_programs_left_is_swept(tmp_path, film):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    cache = cache_of(tmp_path)
    cache.folder.mkdir()
    (cache.folder / f".film-0123.npz.{ended.pid}.partial").touch()
    cache.build([SteppedFrames(film, STEPS[:4])])
    assert [path.suffix for path in cache.folder.iterdir()] == [".npz"]


def test_a_changed_video_is_noticed(tmp_path):
    path = tmp_path / "video.mp4"
    write_video(path, moving_frames(8, (2, 0)), fps=8)
    steps = np.arange(8)
    assert np.median(cache_of(tmp_path).get(path, steps, 1, 8)[:, 0]) > 0.5
    write_video(path, moving_frames(8, (-2, 0)), fps=8)
    assert np.median(cache_of(tmp_path).get(path, steps, 1, 8)[:, 0]) < -0.5
    assert len(list((tmp_path / "flow").iterdir())) == 1


def test_flow_of_a_copy_with_other_times_is_kept(tmp_path, monkeypatch):
    path, steps = tmp_path / "video.mp4", np.arange(8)
    write_video(path, moving_frames(8, (2, 0)), fps=8)
    before = cache_of(tmp_path).get(path, steps, 0, 8)
    os.utime(path, (1, 1))
    monkeypatch.setattr(FlowCache, "_write", None)
    np.testing.assert_array_equal(cache_of(tmp_path).get(path, steps, 0, 8), before)


def test_an_entry_of_before_there_were_digests_is_read(tmp_path, monkeypatch):
    path, steps = tmp_path / "video.mp4", np.arange(8)
    write_video(path, moving_frames(8, (2, 0)), fps=8)
    before = cache_of(tmp_path).get(path, steps, 0, 8)
    (file,) = (tmp_path / "flow").iterdir()
    with np.load(file) as entry:
        arrays = dict(entry)
    facts = path.stat()
    np.savez_compressed(file, **{**arrays, "source": np.asarray([facts.st_size, facts.st_mtime_ns])})
    monkeypatch.setattr(FlowCache, "_write", None)
    np.testing.assert_array_equal(cache_of(tmp_path).get(path, steps, 0, 8), before)


def test_settings_do_not_share_flow(tmp_path, film):
    caches = [
        cache_of(tmp_path),
        cache_of(tmp_path, "dis"),
        cache_of(tmp_path, side=24),
        cache_of(tmp_path, bound=10),
        cache_of(tmp_path, precision=0.25),
        FlowCache(
            DecodedFrames(FrameScale(48, interpolation="bilinear")),
            FlowSettings(DisFlow("ultrafast"), tmp_path / "flow"),
        ),
    ]
    for number, cache in enumerate(caches, start=1):
        cache.build([SteppedFrames(film, STEPS[:4])])
        assert len(list(cache.folder.iterdir())) == number
    caches[0].build([SteppedFrames(film, STEPS[:8:2])])  # another frame rate
    assert len(list(caches[0].folder.iterdir())) == number + 1


def test_folders_of_pictures_have_flow(tmp_path):
    folder = PictureFolder(write_pictures(tmp_path / "pictures", 5, "img_{:05d}.png"), 8.0)
    cache = cache_of(tmp_path)
    flow = cache.get(folder, np.arange(5), 0, 5)
    np.testing.assert_array_equal(flow[2:4], cache.get(folder, np.arange(5), 2, 4))
    (file,) = cache.folder.iterdir()
    assert file.name.startswith("pictures-")


def test_several_processes_write_what_one_does(tmp_path, film):
    jobs = [SteppedFrames(film, STEPS[:10]), SteppedFrames(film, STEPS[10:30])]
    alone, together = cache_of(tmp_path / "one"), cache_of(tmp_path / "two")
    alone.build(jobs, workers=1)
    together.build(jobs, workers=2)
    names = sorted(file.name for file in alone.folder.iterdir())
    assert len(names) == 2 and names == sorted(file.name for file in together.folder.iterdir())
    for video, steps in jobs:
        ours, theirs = (cache.get(video, steps, 0, len(steps)) for cache in (alone, together))
        np.testing.assert_array_equal(ours, theirs)


def test_much_work_starts_processes_unless_the_method_has_its_own_device(tmp_path, film, monkeypatch):
    started = []

    class Pool:
        def __init__(self, workers, *args, **kwargs) -> None:
            started.append(workers)
            raise InterruptedError

    monkeypatch.setattr(flow_cache, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(flow_cache, "PARALLEL_FROM", 12 * 48 * 64)
    monkeypatch.setattr(flow_cache.os, "sched_getaffinity", lambda process: set(range(8)))
    cache = cache_of(tmp_path)
    cache.build([SteppedFrames(film, STEPS[:6]), SteppedFrames(film, STEPS[6:11])])
    assert not started
    jobs = [SteppedFrames(film, STEPS[:7]), SteppedFrames(film, STEPS[7:12])]
    with pytest.raises(InterruptedError):
        cache.build(jobs)
    assert started == [2]
    cache.method.device = "cuda"
    cache.build(jobs)
    assert started == [2]


def test_a_cache_that_would_grow_too_large_says_how_to_go_on(tmp_path, film):
    cache = cache_of(tmp_path, cache_max_gib=1e-4)
    with pytest.raises(
        ValueError,
        match=r"take 1\d\d KiB, more than the 105 KiB allowed; .*flow\.cache: null\), or raise flow\.cache_max_gib",
    ):
        cache.build([SteppedFrames(film, STEPS)])
    assert not cache.folder.exists()


def test_a_method_that_cannot_run_is_told_before_a_frame_is_read(tmp_path, film, monkeypatch):
    cache = cache_of(tmp_path)
    monkeypatch.setattr(cache.frames, "get", None)

    def missing():
        raise ModuleNotFoundError("no such method here")

    monkeypatch.setattr(cache.method, "prepare", missing)
    with pytest.raises(ModuleNotFoundError):
        cache.build([SteppedFrames(film, STEPS)])
    assert not cache.folder.exists()


def test_a_cache_travels_without_what_is_open(tmp_path, film):
    cache = cache_of(tmp_path)
    whole = cache.get(film, STEPS[:9], 0, 9)
    content = pickle.dumps(cache)
    assert len(content) < 10_000
    np.testing.assert_array_equal(pickle.loads(content).get(film, STEPS[:9], 2, 7), whole[2:7])
