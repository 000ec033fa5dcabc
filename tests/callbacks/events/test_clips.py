"""Clips: the seconds before, the event, the seconds after; memory that does not grow; a stream that never waits."""

from __future__ import annotations

import threading
import time
from math import inf
from pathlib import Path

import av
import numpy as np
import pytest

from callbacks.events import clips as module
from callbacks.events.clips import Begin, ClipRecorder, ClipSettings, End, Step
from callbacks.events.past import PastFrames, shot_of
from datamodules.errors import UserError

FOUND = {"track": 1, "box": [40.0, 20.0, 60.0, 80.0], "person": 0.9, "actions": {"wave": 0.9}}


def picture(colour: int, size=(96, 128)) -> np.ndarray:
    return np.full((*size, 3), colour, np.uint8)


def shot(seconds: float, size=(96, 128)):
    return shot_of(picture(90, size), seconds, [])


def step(seconds: float, *changes, source: str = "cam", size=(96, 128)) -> Step:
    """A frame whose grey says its time: 10 a second."""
    return Step(source, picture(40 + round(10 * seconds), size), seconds, [FOUND], changes)


def record(steps, is_live: bool = False, **settings) -> ClipRecorder:
    recorder = ClipRecorder(ClipSettings(**settings), longest_wait=1.0)
    for each in steps:
        recorder.add(each, is_live)
    recorder.close()
    return recorder


def seconds_shown(path: Path) -> list[float]:
    """Times of the frames of a clip, as their grey at the left edge says."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return [round((float(frame[:, :8].mean()) - 40) / 10, 1) for frame in frames]


def film(changes: dict[float, tuple], last: float = 10.0, **arguments) -> list[Step]:
    return [step(now, *changes.get(now, ()), **arguments) for now in np.arange(0, last + 0.1, 0.5).tolist()]


def test_a_clip_shows_the_seconds_before_and_after_its_event(tmp_path):
    clip = tmp_path / "new" / "clip.mp4"
    record(film({5.0: (Begin(0, clip, 4.0),), 6.5: (End(0, 6.0),)}), before_seconds=2.0, after_seconds=1.5)
    assert seconds_shown(clip) == pytest.approx(np.arange(2.0, 7.6, 0.5).tolist(), abs=0.15)


def test_a_clip_keeps_the_times_of_its_frames(tmp_path):
    times = [0.0, 0.1, 0.5, 0.6, 2.0, 2.25]
    steps = [step(now) for now in times]
    steps[2] = steps[2]._replace(changes=[Begin(0, tmp_path / "clip.mp4", 0.1)])
    record(steps, before_seconds=0.0)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        shown = [frame.time for frame in container.decode(video=0)]
    assert shown == pytest.approx([now - 0.1 for now in times[1:]], abs=0.002)


def test_boxes_are_drawn_in_clips(tmp_path):
    record(film({1.0: (Begin(0, tmp_path / "clip.mp4", 1.0),)}, last=2.0))
    with av.open(str(tmp_path / "clip.mp4")) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    scale = frame.shape[0] / 96
    edge, inside = (frame[round(50 * scale), round(x * scale)] for x in (40, 50))
    assert np.ptp(inside) < 12 < 40 < np.ptp(edge)  # grey within, colour on the edge


def test_a_long_event_is_shown_for_so_long_and_no_longer(tmp_path):
    record(film({1.0: (Begin(0, tmp_path / "clip.mp4", 1.0),)}), before_seconds=0.5, longest_seconds=3.0)
    assert max(seconds_shown(tmp_path / "clip.mp4")) == pytest.approx(4.0, abs=0.15)


def test_an_event_at_the_end_of_a_stream_has_a_whole_clip(tmp_path):
    end = Step("cam", None, inf, (), [End(0, 2.0)], is_end=True)
    other = film({}, last=2.0, source="other")
    record([*film({2.0: (Begin(0, tmp_path / "clip.mp4", 2.0),)}, last=2.0), end, *other], before_seconds=1.0)
    assert seconds_shown(tmp_path / "clip.mp4") == pytest.approx([1.0, 1.5, 2.0], abs=0.15)


def test_clips_of_two_cameras_and_two_events_at_once_keep_apart(tmp_path):
    one = film({1.0: (Begin(0, tmp_path / "a.mp4", 1.0), Begin(1, tmp_path / "b.mp4", 0.5)), 2.0: (End(0, 2.0),)}, 4.0)
    other = film({3.0: (Begin(2, tmp_path / "c.mp4", 3.0),)}, 4.0, source="other", size=(64, 64))
    record([each for pair in zip(one, other, strict=True) for each in pair], before_seconds=0.0, after_seconds=0.5)
    for name, expected in (("a", (1.0, 2.5)), ("b", (0.5, 4.0)), ("c", (3.0, 4.0))):
        shown = seconds_shown(tmp_path / f"{name}.mp4")
        assert (shown[0], shown[-1]) == pytest.approx(expected, abs=0.15)


def test_a_camera_that_changes_its_size_ends_a_clip_whole_and_begins_the_next_anew(tmp_path):
    small = [step(now, size=(64, 64)) for now in (2.0, 2.5)]
    small[1] = small[1]._replace(changes=[Begin(1, tmp_path / "b.mp4", 2.0)])
    record([*film({1.0: (Begin(0, tmp_path / "a.mp4", 1.0),)}, last=1.5), *small], before_seconds=5.0)
    assert seconds_shown(tmp_path / "a.mp4") == pytest.approx([0.0, 0.5, 1.0, 1.5], abs=0.15)
    assert seconds_shown(tmp_path / "b.mp4") == pytest.approx([2.0, 2.5], abs=0.15)


def test_the_past_is_bounded_in_seconds_and_in_bytes():
    by_time, by_bytes = PastFrames(2.0, 2**30), PastFrames(1e9, 10 * len(shot(0.0).jpeg))
    for number in range(1000):
        by_time.add(shot(0.25 * number))
        by_bytes.add(shot(0.25 * number))
    assert [each.seconds for each in by_time.since(0.0)] == [249.75 - 0.25 * back for back in range(8, -1, -1)]
    assert len(by_bytes.since(0.0)) == 10 and by_bytes.bytes <= by_bytes.limit
    assert [each.seconds for each in by_bytes.since(249.5)] == [249.5, 249.75]


def test_a_source_that_begins_anew_has_no_past():
    past = PastFrames(100.0, 2**30)
    for seconds in (50.0, 51.0, 0.0, 1.0):
        past.add(shot(seconds))
    assert [each.seconds for each in past.since(0.0)] == [0.0, 1.0]


def test_large_frames_are_kept_smaller_with_their_boxes():
    kept = shot_of(picture(90, (1440, 2560)), 0.0, [{"box": [100.0, 200.0, 300.0, 400.0], "actions": {}}])
    assert kept.size == (720, 1280) and kept.picture().shape == (720, 1280, 3)
    assert kept.detections[0]["box"] == [50.0, 100.0, 150.0, 200.0]


@pytest.fixture
def slow_thread(monkeypatch):
    """A recorder's thread that does nothing until the event is set."""
    gate = threading.Event()

    def waiting(*arguments):
        gate.wait(30)
        return shot_of(*arguments)

    monkeypatch.setattr(module, "shot_of", waiting)
    return gate


def test_a_live_stream_waits_for_no_clip_and_events_are_kept_although_frames_are_not(slow_thread, tmp_path, capsys):
    recorder = ClipRecorder(ClipSettings(before_seconds=100.0, after_seconds=0.0), 0.0)
    began = time.monotonic()
    one = film({7.0: (Begin(0, tmp_path / "clip.mp4", 7.0),), 8.0: (End(0, 8.0),)})
    for pair in zip(one, film({}, source="other"), strict=True):
        for each in pair:
            recorder.add(each, is_live=True)
    assert time.monotonic() - began < 0.5
    slow_thread.set()
    recorder.close()
    assert recorder.left_out in (42 - 9, 42 - 8)  # eight wait, one may be in the thread
    assert f"clips of events lack {recorder.left_out} frames" in capsys.readouterr().out
    assert seconds_shown(tmp_path / "clip.mp4")[:2] == pytest.approx([0.0, 0.5], abs=0.15)


def test_the_end_of_a_camera_waits_for_no_clip_either(slow_thread, tmp_path):
    recorder = ClipRecorder(ClipSettings(), 0.0)
    began = time.monotonic()
    for each in film({7.0: (Begin(0, tmp_path / "clip.mp4", 7.0),)}):
        recorder.add(each, is_live=True)
    for source in ("cam", "other"):
        recorder.add(Step(source, None, inf, (), (), is_end=True), is_live=True)
    assert time.monotonic() - began < 0.5
    slow_thread.set()
    recorder.close()
    assert (tmp_path / "clip.mp4").exists()


def test_a_file_waits_so_that_its_clips_are_complete(slow_thread, tmp_path):
    threading.Timer(0.3, slow_thread.set).start()
    changes = {7.0: (Begin(0, tmp_path / "clip.mp4", 7.0),), 8.0: (End(0, 8.0),)}
    recorder = record(film(changes), before_seconds=100.0, after_seconds=0.0)
    assert recorder.left_out == 0 and len(seconds_shown(tmp_path / "clip.mp4")) == 17


def test_a_clip_that_cannot_be_written_ends_and_the_others_go_on(tmp_path, capsys):
    (tmp_path / "file").touch()
    begins = (Begin(0, tmp_path / "file" / "a.mp4", 1.0), Begin(1, tmp_path / "b.mp4", 1.0))
    record(film({1.0: begins}, last=2.0), before_seconds=0.0)
    assert "a clip of an event ends here: " in capsys.readouterr().out
    assert seconds_shown(tmp_path / "b.mp4") == pytest.approx([1.0, 1.5, 2.0], abs=0.15)


def test_a_bug_in_the_thread_is_not_swallowed(monkeypatch):
    monkeypatch.setattr(module, "shot_of", lambda *_: 1 // 0)
    recorder = ClipRecorder(ClipSettings(), 0.0)
    with pytest.raises(ZeroDivisionError):
        for each in film({}):
            recorder.add(each, is_live=False)
        recorder.close()


def test_places_for_clips_are_given_back_whole_or_not(tmp_path):
    (tmp_path / "file").touch()
    recorder = ClipRecorder(ClipSettings(after_seconds=0.0), 0.0)
    assert [recorder.reserve() for _ in range(module.MOST_CLIPS + 1)] == [True] * module.MOST_CLIPS + [False]
    paths = [tmp_path / "file" / "a.mp4", tmp_path / "b.mp4", tmp_path / "c.mp4"]  # the first cannot be written
    recorder.add(step(0.0, *(Begin(number, path, 0.0) for number, path in enumerate(paths))), is_live=False)
    recorder.add(step(0.5, End(1, 0.5)), is_live=False)
    recorder.close()
    assert [recorder.reserve() for _ in range(4)] == [True] * 3 + [False]


@pytest.mark.parametrize("wrong", [{"before_seconds": -1}, {"longest_seconds": 0}, {"buffer_mib": float("nan")}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        ClipSettings(**wrong)
