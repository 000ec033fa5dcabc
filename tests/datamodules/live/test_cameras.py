"""Many cameras: whoever has a frame shares a batch, and nobody waits for one that has none."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from datamodules.errors import UserError
from datamodules.live import capture as live_capture
from datamodules.video.listing import VideoError
from tests.datamodules.live.handed_source import PERIOD, HandedSource, handed_feed, received, wait_until
from tests.datamodules.miniature import numbered_frames, read_numbers
from tests.datamodules.written_videos import write_video
from tests.flat_data import predict_data


def picture(value: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


@contextmanager
def opened(feed, cameras):
    """The batches of a feed, whose threads are ended afterwards."""
    batches = feed.batches()
    try:
        yield batches
    finally:
        feed.stop.set()
        for camera in cameras.values():
            camera.handed.put(None)
        batches.close()


@contextmanager
def running(*names, **settings):
    """A feed whose cameras have all shown one frame, which is the first batch."""
    feed, cameras = handed_feed(*names, **settings)
    for camera in cameras.values():
        camera.show(0.0, picture(0))
    with opened(feed, cameras) as batches:
        taken = {}
        while len(taken) < len(names):  # the first ones may come one by one
            batch = next(batches)
            taken |= dict(zip(batch.lanes, batch.is_first.tolist(), strict=True))
        assert all(taken.values())
        yield feed, cameras, batches


def states(feed) -> list[str]:
    return [each.state for each in feed.health()]


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr(live_capture, "LONGEST_WAIT_SECONDS", 0.01)


def test_cameras_that_have_a_frame_share_a_batch_and_the_others_are_not_waited_for():
    with running("door", "yard", "gate") as (feed, cameras, batches):
        for number in range(1, 4):
            cameras["door"].show(number * PERIOD, picture(10 + number))
            cameras["gate"].show(number * PERIOD, picture(20 + number))
            wait_until(lambda number=number: received(feed) == (number + 1, 1, number + 1))
            batch = next(batches)
            assert batch.lanes in ((0, 2), (2, 0)) and sorted(batch.video_ids) == ["door", "gate"]
            shown = {name: int(each[0, 0, 0]) for name, each in zip(batch.video_ids, batch.pictures, strict=True)}
            assert shown == {"door": 10 + number, "gate": 20 + number}
            assert batch.frames.shape == (2, 1, 3, 32, 32) and batch.is_valid.all() and not batch.is_first.any()
            assert batch.timestamps.flatten().tolist() == pytest.approx([number * PERIOD] * 2)
        cameras["yard"].show(3 * PERIOD, picture(7))
        wait_until(lambda: received(feed) == (4, 2, 4))
        assert next(batches).lanes == (1,)


def test_each_camera_has_a_clock_a_grid_and_drops_of_its_own():
    """Frames are due every 0.1 s; one camera shows 20 a second, the other has shown one since."""
    with running("fast", "late", queue_frames=2) as (feed, cameras, batches):
        for number in range(1, 9):
            cameras["fast"].show(number * PERIOD / 2, picture(number))
        cameras["late"].show(PERIOD, picture(9))
        wait_until(lambda: received(feed) == (9, 2))
        batch = next(batches)
        indices = dict(zip(batch.video_ids, batch.frame_indices.flatten().tolist(), strict=True))
        assert indices == {"fast": 6, "late": 1}  # of 2, 4, 6, 8, those of the queue of two
        assert [each.dropped for each in feed.health()] == [2, 0]
        assert batch.capture.dropped == 2
        times = dict(zip(batch.video_ids, batch.timestamps.flatten().tolist(), strict=True))
        assert times == pytest.approx({"fast": 0.3, "late": 0.1})


def test_frames_of_different_sizes_go_in_turn_and_keep_their_padding():
    with running("small", "large", "twin", max_gap_seconds=1e9) as (feed, cameras, batches):
        for number in range(1, 4):
            for name, side in (("small", 32), ("large", 64), ("twin", 32)):
                cameras[name].show(number * PERIOD, picture(number, side, side))
        wait_until(lambda: received(feed) == (4, 4, 4))
        seen = []
        for _ in range(7):
            batch = next(batches)
            assert {tuple(size) for size in batch.image_sizes.tolist()} == {tuple(batch.frames.shape[-2:])}
            seen.append((sorted(batch.video_ids), batch.pictures[0][0, 0, 0]))
            if len([names for names, _ in seen if "large" in names]) == 3:
                break
        assert [number for names, number in seen if "large" in names] == [1, 2, 3]
        assert [number for names, number in seen if "small" in names] == [1, 2, 3]
        assert all("large" not in names or names == ["large"] for names, _ in seen)


def test_a_camera_that_comes_back_starts_anew_while_the_others_go_on(no_pauses):
    with running("door", "yard", max_gap_seconds=0.5) as (feed, cameras, batches):
        cameras["yard"].handed.put(None)
        wait_until(lambda: cameras["yard"].connections > 1)
        assert feed.health()[1].problem == "the stream ended" and states(feed)[1] == "lost"
        for number in range(1, 4):
            cameras["door"].show(number * PERIOD, picture(number))
            wait_until(lambda number=number: received(feed)[0] == number + 1)
            batch = next(batches)
            assert (batch.lanes, batch.is_first.tolist()) == ((0,), [False])
        lane = feed._lanes[1]
        lane.capture._clock._received -= 60  # as if a minute had passed
        cameras["yard"].show(5.0, picture(50))
        wait_until(lambda: received(feed)[1] == 2)
        batch = next(batches)
        assert (batch.lanes, batch.is_first.tolist()) == ((1,), [True])
        assert batch.timestamps.item() > 59
        health = feed.health()
        assert [each.reconnections for each in health] == [0, 1] and batch.capture.reconnections == 1
        assert states(feed) == ["running", "running"] and health[1].problem is None


def test_a_camera_that_was_never_there_or_sends_garbage_is_looked_for_while_the_others_go_on(no_pauses):
    feed, cameras = handed_feed("door", "dead", "garbage", "back", reconnect_attempts=None)
    for _ in range(30):
        cameras["dead"].handed.put(ConnectionError("connection refused"))
        cameras["garbage"].handed.put(VideoError("holds no video stream", "garbage"))
    cameras["back"].handed.put(ConnectionError("connection refused"))
    cameras["back"].show(0.0, picture(3))  # of a batch of its own, since it is half a second late
    with opened(feed, cameras) as batches:
        cameras["door"].show(0.0, picture(0))
        seen = [*next(batches).video_ids, *next(batches).video_ids]
        assert sorted(seen) == ["back", "door"]
        wait_until(lambda: cameras["garbage"].connections > 20 and cameras["dead"].connections > 20)
        for number in range(1, 3):
            cameras["door"].show(number * PERIOD, picture(number))
            assert next(batches).video_ids == ("door",)
        assert states(feed) == ["running", "lost", "lost", "running"]
        assert [each.problem for each in feed.health()] == [
            None,
            "connection refused",
            "holds no video stream",
            None,
        ]
        assert feed.health()[3].reconnections == 0  # it was never lost


def test_a_camera_that_was_away_for_days_comes_back(monkeypatch, caplog):
    monkeypatch.setattr(live_capture, "LONGEST_WAIT_SECONDS", 0.0)
    with running("door", reconnect_attempts=None) as (feed, cameras, batches):
        for _ in range(2000):
            cameras["door"].handed.put(ConnectionError("refused"))
        wait_until(lambda: cameras["door"].connections == 2001)
        time.sleep(2 * PERIOD)  # a frame is due again: without stamps that go on, time is that of receipt
        cameras["door"].show(PERIOD, picture(1))
        assert next(batches).video_ids == ("door",)
        assert (feed.health()[0].state, feed.health()[0].reconnections) == ("running", 1)
        assert cameras["door"].connections == 2001
    assert caplog.text.count("to reconnect in") < 20


def test_a_camera_that_hangs_is_stalled_and_one_that_was_given_up_holds_up_nobody(no_pauses):
    with running("door", "hung", "gone", reconnect_attempts=2, max_gap_seconds=0.05) as (feed, cameras, batches):
        for _ in range(3):
            cameras["gone"].handed.put(ConnectionError("refused"))
        wait_until(lambda: states(feed)[1:] == ["stalled", "given up"])
        cameras["door"].show(PERIOD, picture(1))
        with pytest.warns(UserWarning, match="given up: gone"):
            assert next(batches).video_ids == ("door",)
        assert "2 attempts to reconnect failed" in feed.health()[2].problem


@pytest.mark.filterwarnings("ignore:given up")
def test_the_feed_ends_with_an_error_when_every_camera_was_given_up(no_pauses):
    feed, cameras = handed_feed("door", "yard", reconnect_attempts=0)
    for camera in cameras.values():
        camera.handed.put(ConnectionError("refused"))
    with (
        opened(feed, cameras) as batches,
        pytest.raises(VideoError, match=r"all 2 sources were given up; the first: door: lost"),
    ):
        next(batches)


def test_a_bug_in_one_camera_is_shown_and_the_others_go_on(capsys):
    with running("door", "odd") as (feed, cameras, batches):
        cameras["odd"].handed.put(ZeroDivisionError("a bug"))
        wait_until(lambda: states(feed)[1] == "given up")
        cameras["door"].show(PERIOD, picture(1))
        with pytest.warns(UserWarning, match=r"given up: odd: ZeroDivisionError\('a bug'\)"):
            assert next(batches).video_ids == ("door",)
    assert "Traceback" in capsys.readouterr().err


def test_a_frame_that_cannot_be_used_counts_as_dropped():
    with running("door", "odd") as (feed, cameras, batches):

        def unusable() -> np.ndarray:
            raise VideoError("a frame cannot be converted")

        capture = feed._lanes[1].capture
        cameras["odd"].show(PERIOD, picture(1))
        wait_until(lambda: received(feed)[1] == 2)
        capture._queue[0] = capture._queue[0]._replace(picture=unusable)
        cameras["door"].show(PERIOD, picture(1))
        wait_until(lambda: received(feed) == (2, 2))
        assert next(batches).video_ids == ("door",)
        assert feed.health()[1][3:] == (1, 0, "a frame cannot be converted")


def test_limits_end_each_camera_and_then_the_feed():
    feed, cameras = handed_feed("door", "yard", max_frames=2)
    for number in range(5):
        for camera in cameras.values():
            camera.show(number * PERIOD, picture(number))
    taken = [video for batch in feed.batches() for video in batch.video_ids]
    assert sorted(taken) == ["door", "door", "yard", "yard"] and states(feed) == ["ended", "ended"]


def test_a_feed_can_be_read_twice_and_each_camera_starts_anew():
    feed, _ = handed_feed("a", max_frames=2)
    for _ in range(2):
        feed.streams[0].live = source = HandedSource()  # the thread of an earlier one may still wait for it
        for number in range(2):
            source.show(number * PERIOD, picture(number))
        assert [bool(batch.is_first) for batch in feed.batches()] == [True, False]


def test_a_stop_ends_the_feed_though_cameras_hang_and_its_threads_end():
    with running("first", "second") as (feed, cameras, batches):
        threading.Timer(0.1, feed.stop.set).start()
        assert next(batches, None) is None
        for camera in cameras.values():
            camera.handed.put(None)
        wait_until(
            lambda: not any(thread.name in ("capture first", "capture second") for thread in threading.enumerate())
        )


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    write_video(folder / "a.mp4", numbered_frames(13), 8)
    write_video(folder / "many" / "b.mp4", numbered_frames(4), 8)
    write_video(folder / "many" / "c.mp4", numbered_frames(6, 128, 96), 8)
    (folder / "broken.mp4").write_bytes((folder / "a.mp4").read_bytes()[:900])
    return folder


def prepared(source, **settings):
    data = predict_data(source, ["walk", "wave"], **{"frame_stride": 2, "frame_rate": 8.0, **settings})
    data.setup("predict")
    return data


@pytest.mark.filterwarnings("ignore:left out")
def test_files_of_a_list_are_read_to_their_ends_and_the_feed_ends_then(films):
    data = prepared([str(films / "a.mp4"), str(films / "many"), str(films / "broken.mp4")])
    seen: dict[str, list[int]] = {}
    ends = []
    for batch in data.predict_dataloader():
        for row, video in enumerate(batch.video_ids):
            assert bool(batch.is_first[row]) == (video not in seen)
            seen.setdefault(video, []).extend(read_numbers(np.stack(batch.pictures[row : row + 1])))
            ends += [video] * int(batch.is_last[row])
    assert seen == {"a": [0, 2, 4, 6, 8, 10, 12], "many/b": [0, 2], "many/c": [0, 2, 4]}
    assert sorted(ends) == ["a", "many/b", "many/c"]
    assert [each.state for each in data.source_health()] == ["ended", "ended", "given up"]
    assert not data.is_endless and [path.name for path in data.input_files] == ["a.mp4", "b.mp4", "c.mp4", "broken.mp4"]


def test_a_list_without_a_readable_source_is_an_error(films):
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        prepared([str(films / "broken.mp4")] * 2)
    with pytest.raises(UserError, match=r"nowhere\.mp4: no such source"):
        prepared([str(films / "a.mp4"), "nowhere.mp4"])


def test_a_list_is_read_by_one_process(films):
    data = predict_data([str(films / "a.mp4"), 0], ["walk"])
    data.trainer = type("Trainer", (), {"global_rank": 0, "world_size": 2})()
    with pytest.raises(UserError, match="a list of 2 sources: can be read by one process, not 2"):
        data.setup("predict")
    assert data.is_endless


def test_a_single_source_says_nothing_of_the_health_of_many(films):
    data = prepared(str(films / "a.mp4"))
    assert data.source_health() == ()
    assert all(batch.lanes is None for batch in data.predict_dataloader())
