"""The callback: lines, clips and sinks of what prediction returns."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
import torch

from callbacks.events import reporter as module
from callbacks.events.clips import MOST_CLIPS
from callbacks.events.reporter import EventReporter
from callbacks.events.sinks import Delivery, EventSink
from datamodules.errors import UserError
from tests.callbacks.events.scenes import frame, person

TRAINER = SimpleNamespace(datamodule=SimpleNamespace(class_names=("walk", "wave")), world_size=1, global_rank=0)
WAVE = [{"action": "wave", "shortest_seconds": 0.5}]


def batch(*sources: str, last: tuple[bool, ...] = (), live: bool = False, newest: float = 0.0) -> SimpleNamespace:
    is_last = torch.tensor(last or (False,) * len(sources))
    capture, timestamps = object() if live else None, torch.tensor([[newest]] * len(sources))
    return SimpleNamespace(video_ids=sources, is_last=is_last, capture=capture, timestamps=timestamps)


def predict(reporter: EventReporter, *batches, end: bool = True) -> None:
    """Each batch: frames, and the names of the sources that end with it."""
    reporter.on_predict_start(TRAINER, None)
    for number, (frames, over) in enumerate(batches):
        sources = tuple(dict.fromkeys(each.video_id for each in frames))
        given = batch(*sources, last=tuple(source in over for source in sources))
        reporter.on_predict_batch_end(TRAINER, None, frames, given, number)
    if end:
        reporter.on_predict_end(TRAINER, None)


def waving(start: float, end: float, last: float, source: str = "cam", track: int = 3, score: float = 0.9) -> list:
    """Frames every half second, until ``last``; somebody waves from ``start`` to ``end``."""
    times = [0.5 * number for number in range(int(2 * last) + 1)]
    return [frame(now, person(score if start <= now <= end else 0.1, track), source=source, colour=90) for now in times]


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


class Kept(EventSink):
    def __init__(self, **delivery) -> None:
        super().__init__("kept", Delivery(**delivery))
        self.messages: list = []

    def deliver(self, message) -> None:
        self.messages.append(message)


def test_an_event_is_one_line_and_one_clip(tmp_path, capsys):
    predict(EventReporter(WAVE, tmp_path), (waving(8.0, 10.0, 20.0), ["cam"]))
    (line,) = lines(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{32}", line.pop("event"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("reported"))
    clip = line.pop("clip")
    assert line == {
        "state": "ended",
        "rule": "wave",
        "action": "wave",
        "source": "cam",
        "track": 3,
        "zone": None,
        "start": 8.0,
        "end": 10.0,
        "score": 0.9,
    }
    assert re.fullmatch(r"cam\.wave\.8\.0s\.[0-9a-f]{8}\.mp4", Path(clip).name)
    with av.open(clip) as container:
        times = [each.time for each in container.decode(video=0)]
    assert times == pytest.approx([0.5 * number for number in range(25)], abs=0.002)  # 3 s to 15 s
    assert f"events: 1 wave; {tmp_path / 'events.jsonl'}" in capsys.readouterr().out


def test_zones_are_told_by_name_or_as_they_are(tmp_path):
    everywhere = [[0, 0], [1, 0], [1, 1], [0, 1]]
    rules = [
        {"name": "named", "action": "wave", "zone": "all"},
        {"name": "bare", "action": "wave", "zone": everywhere},
    ]
    reporter = EventReporter({"zones": {"all": everywhere}, "rules": rules}, tmp_path, clips=None)
    predict(reporter, (waving(1.0, 2.0, 3.0), []))
    assert [(line["rule"], line["zone"], line["clip"]) for line in lines(tmp_path)] == [
        ("named", "all", None),
        ("bare", [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], None),
    ]


def test_events_of_many_sources_carry_their_names_and_end_with_them(tmp_path):
    yard, door = waving(1.0, 9.0, 3.0, "yard"), waving(0.0, 2.0, 6.0, "a/door", track=5)
    reporter = EventReporter(WAVE, tmp_path)
    predict(reporter, (yard[:4] + door[:4], []), (yard[4:] + door[4:7], ["yard"]), (door[7:], ["a/door"]))
    found = {line["source"]: (line["track"], line["start"], line["end"]) for line in lines(tmp_path)}
    assert found == {"yard": (3, 1.0, 3.0), "a/door": (5, 0.0, 2.0)}
    assert len(list(tmp_path.glob("yard.*.mp4"))) == len(list((tmp_path / "a").glob("door.*.mp4"))) == 1


def test_an_event_that_goes_on_at_the_end_of_prediction_is_told(tmp_path):
    predict(EventReporter(WAVE, tmp_path), (waving(1.0, 9.0, 3.0), []))
    assert [(line["start"], line["end"]) for line in lines(tmp_path)] == [(1.0, 3.0)]


def test_events_until_an_error_are_told_and_clips_are_whole(tmp_path):
    reporter = EventReporter(WAVE, tmp_path)
    predict(reporter, (waving(1.0, 9.0, 3.0), []), end=False)
    reporter.on_exception(TRAINER, None, RuntimeError())
    (line,) = lines(tmp_path)
    assert line["end"] == 3.0
    with av.open(line["clip"]) as container:
        assert len(list(container.decode(video=0))) == 7
    reporter.on_exception(TRAINER, None, RuntimeError())  # a second time changes nothing
    assert len(lines(tmp_path)) == 1


def test_lines_of_earlier_predictions_stay(tmp_path):
    for _ in range(2):
        predict(EventReporter(WAVE, tmp_path), (waving(1.0, 2.0, 3.0), ["cam"]))
    assert len({line["event"] for line in lines(tmp_path)}) == len(list(tmp_path.glob("*.mp4"))) == 2


def test_sinks_and_listeners_get_the_begin_and_the_end_under_one_id(tmp_path):
    both, ended, heard = Kept(moments="both"), Kept(), []
    reporter = EventReporter(WAVE, tmp_path, sinks=[both, ended])
    reporter.listeners.append(heard.append)
    predict(reporter, (waving(1.0, 2.0, 3.0), ["cam"]))
    assert [(each["state"], each["start"], each["end"]) for each in both.messages] == [
        ("began", 1.0, None),
        ("ended", 1.0, 2.0),
    ]
    assert len({each["event"] for each in both.messages}) == len({each["clip"] for each in both.messages}) == 1
    assert ended.messages == both.messages[1:] and heard == both.messages and lines(tmp_path) == ended.messages


def test_a_crowd_has_an_event_each_but_not_a_clip_each(tmp_path):
    crowd = [frame(0.5 * n, *(person(0.9, track) for track in range(MOST_CLIPS + 4)), colour=90) for n in range(3)]
    later = waving(5.0, 6.0, 7.0, source="other")
    predict(EventReporter(WAVE, tmp_path), (crowd, ["cam"]))
    clips = [line["clip"] for line in lines(tmp_path)]
    assert len(clips) == MOST_CLIPS + 4 and clips.count(None) == 4
    assert all(Path(clip).exists() for clip in clips if clip)
    predict(EventReporter(WAVE, tmp_path), (later, ["other"]))
    assert lines(tmp_path)[-1]["clip"] is not None


def test_a_camera_that_has_gone_silent_ends_its_events_while_others_go_on(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    reporter = EventReporter(WAVE, tmp_path, clips=None)
    reporter.on_predict_start(TRAINER, None)
    reporter.on_predict_batch_end(TRAINER, None, waving(0.0, 9.0, 2.0, "yard"), batch("yard", live=True), 0)
    for seconds in (0.0, 9.0, 11.0):
        now[0] = 100.0 + seconds
        reporter.on_predict_batch_end(TRAINER, None, [frame(seconds, source="door")], batch("door", live=True), 1)
        there = (tmp_path / "events.jsonl").exists()
        assert there == (seconds > module.IDLE_SECONDS)
    assert [(line["source"], line["end"]) for line in lines(tmp_path)] == [("yard", 2.0)]
    reporter.on_predict_end(TRAINER, None)


def test_frames_that_are_answered_after_their_camera_was_lost_repeat_no_event(tmp_path, monkeypatch):
    """Predictions come three frames late, so those of the last frames come with the first one after the loss."""
    now = [100.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    reporter, frames = EventReporter(WAVE, tmp_path, clips=None), waving(0.0, 9.0, 4.0, "yard")
    reporter.on_predict_start(TRAINER, None)
    reporter.on_predict_batch_end(TRAINER, None, frames[:-3], batch("yard", live=True, newest=4.0), 0)
    now[0] += module.IDLE_SECONDS + 1
    reporter.on_predict_batch_end(TRAINER, None, [], batch("door", live=True), 1)
    reporter.on_predict_batch_end(TRAINER, None, frames[-3:], batch("yard", live=True, newest=30.0), 2)
    later = [frame(seconds, person(0.9, 3), source="yard") for seconds in (30.0, 31.0)]
    reporter.on_predict_batch_end(TRAINER, None, later, batch("yard", live=True, newest=31.0), 3)
    reporter.on_predict_end(TRAINER, None)
    assert [(line["start"], line["end"]) for line in lines(tmp_path)] == [(0.0, 2.5), (30.0, 31.0)]


def test_a_misspelt_action_ends_prediction_before_it_begins(tmp_path):
    reporter = EventReporter([{"action": "wvae"}], tmp_path)
    with pytest.raises(UserError, match=r"no action 'wvae'; did you mean wave\?"):
        reporter.on_predict_start(TRAINER, None)
    reporter.on_exception(TRAINER, None, UserError(""))


def test_clips_without_pictures_are_refused_with_the_way_out(tmp_path):
    reporter = EventReporter(WAVE, tmp_path)
    reporter.on_predict_start(TRAINER, None)
    with pytest.raises(UserError, match="set clips of EventReporter to null"):
        reporter.on_predict_batch_end(TRAINER, None, [frame(0.0)], batch("cam"), 0)
    reporter.on_predict_end(TRAINER, None)


def test_a_full_disk_leaves_whole_lines_and_says_so(small_disk):
    folder = small_disk / "events"
    reporter = EventReporter([{"action": "wave"}], folder, clips=None)
    reporter.on_predict_start(TRAINER, None)
    (small_disk / "rest").write_bytes(b"0" * (256 * 1024 - 3 * 4096))
    with pytest.raises(UserError, match=r"events.jsonl: cannot be written: No space left"):
        for number in range(200):
            frames = waving(0.0, 1.0, 2.0, track=number)
            moved = [each._replace(seconds=each.seconds + 3.0 * number) for each in frames]
            reporter.on_predict_batch_end(TRAINER, None, moved, batch("cam"), number)
    assert len(lines(folder)) > 5
    reporter.on_exception(TRAINER, None, UserError(""))
