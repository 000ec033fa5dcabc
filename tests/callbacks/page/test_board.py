"""The page shows newest pictures, delays, events; and what it costs prediction."""

from __future__ import annotations

import json
import threading
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from callbacks.events.rules import read_rules
from callbacks.page import board as module
from callbacks.page.board import Board
from tests.callbacks.events.scenes import frame, person


def board(**arguments) -> Board:
    return Board(0.5, 0.2, **arguments)


def pixels(jpeg: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].astype(int)


def test_the_newest_picture_of_each_source_is_shown_with_its_boxes():
    shown = board()
    for colour in (40, 80, 120):
        shown.show(frame(colour / 40, person(0.9), source="yard", colour=colour))
    shown.show(frame(0.0, source="door", colour=200))
    yard = pixels(shown.picture("yard"))  # four times as large: 400x400
    assert yard.shape == (400, 400, 3)
    assert abs(yard[200, 200] - 120).max() < 6  # within the box, the newest frame
    assert np.ptp(yard[200, 160]) > 60  # its left edge is coloured
    assert abs(pixels(shown.picture("door")) - 200).max() < 6
    assert shown.picture("nowhere") is None and shown.number("yard") == 3


def test_zones_of_rules_are_drawn_where_they_hold():
    rules = read_rules([{"action": "wave", "zone": [[0.25, 0.25], [0.75, 0.25], [0.75, 0.75]], "sources": ["yard"]}])
    shown = board(rules=rules)
    for source in ("yard", "door"):
        shown.show(frame(0.0, source=source, colour=60))
    assert pixels(shown.picture("yard"))[100, 200].max() > 120
    assert abs(pixels(shown.picture("door")) - 60).max() < 6


def test_frame_rates_and_delays_are_of_the_newest_frames(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    shown = board()
    for number in range(100):
        now[0] = 0.125 * number
        shown.show(frame(now[0], colour=60), received=now[0] - (0.2 if number < 94 else 0.4))
    (source,) = shown.state()["sources"]
    assert source == {
        "name": "cam",
        "frames": 100,
        "frames_per_second": 8.0,
        "delay_ms_p50": 200.0,
        "delay_ms_p95": 400.0,
        "seconds_since_frame": 0.0,
        "is_stalled": False,
    }


def test_health_says_when_no_frames_come(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    shown = board()
    assert shown.health()[0] is False and shown.health()[1]["status"] == "starting"
    shown.show(frame(0.0, source="yard"))
    shown.show(frame(0.0, source="door"))
    assert shown.health()[0] is True and shown.health()[1]["status"] == "ok"
    now[0] = 10.5
    shown.show(frame(10.5, source="door"))
    is_well, content = shown.health()
    assert is_well and [source["is_stalled"] for source in content["sources"]] == [True, False]
    now[0] = 25.0
    assert shown.health()[0] is False and shown.health()[1]["status"] == "stalled"
    json.dumps(shown.health()[1])


def test_cameras_that_are_away_are_shown_with_the_reason_also_before_their_first_frame():
    cameras = [
        SimpleNamespace(name="yard", state="running", dropped=3, reconnections=1, problem=None),
        SimpleNamespace(name="door", state="lost", dropped=0, reconnections=0, problem="refused\n"),
    ]
    shown = board(cameras=lambda: cameras)
    assert shown.health()[1]["status"] == "starting"
    shown.show(frame(0.0, source="yard"))
    is_well, content = shown.health()
    yard, door = content["sources"]
    assert is_well and (yard["frames"], yard["state"], yard["dropped"], yard["problem"]) == (1, "running", 3, None)
    assert (door["frames"], door["state"], door["problem"], door["is_stalled"]) == (0, "lost", "refused\\n", True)
    assert shown.names == ["yard"] and shown.picture("door") is None


def test_an_event_takes_the_place_of_its_begin_and_the_newest_is_first():
    shown = board()
    for name, state in (("a", "began"), ("b", "began"), ("a", "ended"), *((str(n), "ended") for n in range(60))):
        shown.tell({"event": name, "state": state})
    events = shown.state()["newest_events"]
    assert len(events) == module.EVENTS_SHOWN and events[0] == {"event": "59", "state": "ended"}
    assert shown.state()["events"] == 61
    few = board()
    few.tell({"event": "a", "state": "began"})
    few.tell({"event": "b", "state": "began"})
    few.tell({"event": "a", "state": "ended"})
    assert few.state()["newest_events"] == [{"event": "b", "state": "began"}, {"event": "a", "state": "ended"}]


def test_of_a_thousand_files_only_the_last_is_kept():
    shown = board()
    for number in range(1000):
        shown.show(frame(0.0, source=f"{number}.mp4", colour=60))
        shown.end(f"{number}.mp4")
    assert shown.names == ["999.mp4"] and shown.picture("999.mp4") is not None


def test_names_that_are_no_text_can_be_shown():
    shown = board()
    shown.show(frame(0.0, source="a\udcff", colour=60))
    (name,) = (json.loads(json.dumps(shown.state(), ensure_ascii=False).encode())["sources"][0]["name"],)
    assert shown.picture(name) is not None


def test_a_picture_is_drawn_once_for_all_and_not_at_all_for_nobody(monkeypatch):
    drawn = []
    original = Board._drawn
    monkeypatch.setattr(Board, "_drawn", lambda *given: drawn.append(given) or original(*given))
    shown = board()
    for number in range(5):
        shown.show(frame(float(number), colour=60))
    assert drawn == []
    threads = [threading.Thread(target=shown.picture, args=("cam",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drawn) == 1


def test_prediction_does_not_wait_while_a_picture_is_drawn(monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(Board, "_drawn", lambda *_: gate.wait(30) and b"")
    shown = board()
    shown.show(frame(0.0, colour=60))
    looking = threading.Thread(target=shown.picture, args=("cam",))
    looking.start()
    time.sleep(0.05)
    began = time.monotonic()
    for number in range(1000):
        shown.show(frame(float(number), colour=None))
        shown.state()
    assert time.monotonic() - began < 2.0 and looking.is_alive()
    gate.set()
    looking.join(5)


@pytest.mark.parametrize("is_given", [True, False])
def test_sources_without_pictures_have_none(is_given):
    shown = board()
    shown.show(frame(0.0, colour=60 if is_given else None))
    assert (shown.picture("cam") is not None) == is_given
