"""Sinks: nothing waits for them, nothing is lost silently, and what cannot be sent now is sent later."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import pytest

from callbacks.events.sinks import Delivery, EventSink, NotNow, Refused
from callbacks.events.webhook import WebhookSink
from datamodules.errors import UserError

QUICK = {"first_wait_seconds": 0.05, "longest_wait_seconds": 0.2, "closing_seconds": 5.0}


def message(number: int = 0, state: str = "ended") -> dict:
    return {"event": str(number), "state": state, "source": "cam", "rule": "wave", "action": "wave"}


class Scripted(EventSink):
    """Raises what a list holds, one entry an attempt; None delivers, and so does everything after the list."""

    def __init__(self, script: Sequence[Exception | None] = (), **delivery) -> None:
        super().__init__("scripted", Delivery(**QUICK | delivery))
        self.script = list(script)
        self.delivered: list[str] = []
        self.attempts: list[float] = []
        self.gate = Event()
        self.gate.set()

    def deliver(self, message) -> None:
        self.gate.wait()
        self.attempts.append(time.monotonic())
        if self.script and (error := self.script.pop(0)) is not None:
            raise error
        self.delivered.append(message["event"])


def test_events_arrive_in_order():
    sink = Scripted()
    sink.start()
    for number in range(50):
        sink.send(message(number))
    sink.close()
    assert sink.delivered == [str(number) for number in range(50)] and sink.report() == "50 events sent"


@pytest.mark.parametrize(
    ("moments", "expected"), [("began", ["began"]), ("ended", ["ended"]), ("both", ["began", "ended"])]
)
def test_a_sink_gets_the_moments_that_it_asks_for(moments, expected):
    sink = Scripted(moments=moments)
    sink.start()
    for state in ("began", "ended"):
        sink.send(message(state, state))
    sink.close()
    assert sink.delivered == expected


def test_pauses_grow_until_an_event_is_delivered_and_the_next_come_after_it(capsys):
    sink = Scripted([NotNow("away")] * 4)
    sink.start()
    sink.send(message(0))
    sink.send(message(1))
    until = time.monotonic() + 5
    while len(sink.delivered) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    sink.close()
    pauses = [later - earlier for earlier, later in zip(sink.attempts, sink.attempts[1:5], strict=False)]
    assert sink.delivered == ["0", "1"]
    for pause, least in zip(pauses, (0.05, 0.1, 0.2, 0.2), strict=True):
        assert least <= pause < least + 0.15
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "scripted: away; trying again after 0.05 s, and so on",  # once, not four times
        "scripted: is back",
        "scripted: 2 events sent",
    ]


def test_what_is_refused_is_not_sent_again_and_is_counted(capsys):
    sink = Scripted([Refused("404"), None])
    sink.start()
    sink.send(message(0))
    sink.send(message(1))
    sink.close()
    assert sink.delivered == ["1"] and len(sink.attempts) == 2
    assert "scripted: 1 events sent, 1 refused\n" in capsys.readouterr().out


def test_a_sink_that_hangs_makes_nobody_wait_and_the_oldest_events_go(capsys):
    sink = Scripted(queue_events=5)
    sink.gate.clear()
    sink.start()
    sink.send(message(0))
    while sink._waiting.qsize():  # the thread has taken it
        time.sleep(0.01)
    began = time.monotonic()
    for number in range(1, 10_001):
        sink.send(message(number))
    assert time.monotonic() - began < 1.0
    assert sink.overflowed == 9995
    sink.gate.set()
    sink.close()
    assert sink.delivered == ["0", "9996", "9997", "9998", "9999", "10000"]
    assert "6 events sent, 9995 dropped, the queue was full" in capsys.readouterr().out


def test_the_end_does_not_wait_for_a_sink_that_hangs(capsys):
    sink = Scripted(closing_seconds=0.2)
    sink.gate.clear()
    sink.start()
    for number in range(3):
        sink.send(message(number))
    began = time.monotonic()
    sink.close()
    assert time.monotonic() - began < 2.0
    assert "0 events sent, 3 not sent in time" in capsys.readouterr().out
    sink.gate.set()


def test_what_waits_at_the_end_is_tried_once_more():
    sink = Scripted([NotNow("away")], first_wait_seconds=60.0)
    sink.start()
    sink.send(message(0))
    while not sink.attempts:
        time.sleep(0.01)
    sink.close()
    assert sink.delivered == ["0"]


def test_a_bug_in_a_sink_is_not_swallowed():
    sink = Scripted([ZeroDivisionError("bug")])
    sink.start()
    sink.send(message(0))
    with pytest.raises(ZeroDivisionError):
        sink.close()


@pytest.mark.parametrize("wrong", [{"queue_events": 0}, {"first_wait_seconds": 0}, {"closing_seconds": -1}])
def test_impossible_deliveries_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Delivery(**wrong)


@contextmanager
def web_server(*statuses: int) -> Iterator[tuple[str, list]]:
    """The address of a server that answers with these statuses, the last one for ever, and what was posted to it."""
    posted: list = []
    answers = list(statuses)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Not on the terminal."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posted.append((self.path, dict(self.headers), json.loads(body)))
            status = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            posted.append((self.path, {}, None))
            self.send_response(200)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/hook?key=abc", posted
        server.shutdown()


def sent_to(address: str, count: int = 1, **arguments) -> WebhookSink:
    sink = WebhookSink(address, delivery=Delivery(**QUICK), **arguments)
    sink.start()
    for number in range(count):
        sink.send(message(number))
    until = time.monotonic() + 5
    while sink.sent + sink.refused < count and time.monotonic() < until:
        time.sleep(0.01)
    sink.close()
    return sink


def test_a_webhook_posts_json_with_its_headers(monkeypatch):
    monkeypatch.setenv("HOOK_PASSWORD", "Bearer s3cret")
    with web_server(200) as (address, posted):
        sink = sent_to(address, headers={"Authorization": "$HOOK_PASSWORD", "X-Place": "yard"})
    ((path, headers, body),) = posted
    assert path == "/hook?key=abc" and body == message(0) and sink.sent == 1
    assert headers["Content-Type"] == "application/json"
    assert headers["Authorization"] == "Bearer s3cret" and headers["X-Place"] == "yard"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503])
def test_a_webhook_that_has_trouble_is_tried_again(status):
    with web_server(status, status, 204) as (address, posted):
        sink = sent_to(address)
    assert [body["event"] for *_, body in posted] == ["0"] * 3 and (sink.sent, sink.refused) == (1, 0)


@pytest.mark.parametrize("status", [301, 307, 400, 401, 404, 410])
def test_a_webhook_that_refuses_is_left_in_peace(status, capsys):
    with web_server(status) as (address, posted):
        sink = sent_to(address, count=2)
    assert [body["event"] for *_, body in posted] == ["0", "1"] and (sink.sent, sink.refused) == (0, 2)
    assert f"the answer was {status} " in capsys.readouterr().out


def test_a_webhook_that_is_not_there_yet_gets_the_event_when_it_is(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    sink = WebhookSink(f"http://127.0.0.1:{port}/hook?key=abc", delivery=Delivery(**QUICK))
    sink.start()
    sink.send(message(0))
    time.sleep(0.3)
    assert sink.sent == 0
    got = Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Not on the terminal."""

        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            got.set()

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        assert got.wait(5)
        sink.close()
        server.shutdown()
    said = capsys.readouterr().out
    assert sink.sent == 1 and "cannot be reached" in said and "is back" in said
    assert "abc" not in said  # a key of the address


def test_a_webhook_that_does_not_answer_costs_the_stream_nothing():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        sink = WebhookSink(address, timeout_seconds=30, delivery=Delivery(**QUICK | {"closing_seconds": 0.2}))
        sink.start()
        began = time.monotonic()
        for number in range(100):
            sink.send(message(number))
        assert time.monotonic() - began < 0.5
        sink.close()
        assert time.monotonic() - began < 3.0 and sink.report() == "0 events sent, 100 not sent in time"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"address": "ftp://host/"}, "must begin with http"),
        ({"address": "http://"}, "must begin with http"),
        ({"address": "http://host:99999/"}, "is no address"),
        ({"address": "http://me:pw@host/"}, "holds a user"),
        ({"address": "http://host/a b"}, "holds characters"),
        ({"address": "http://host/", "headers": {"A b": "c"}}, "no name of a header"),
        ({"address": "http://host/", "headers": {"A": "b\r\nC: d"}}, "printable ASCII"),
        ({"address": "http://host/", "headers": {"A": "$NOT_SET_ANYWHERE"}}, "NOT_SET_ANYWHERE is not set"),
        ({"address": "http://host/", "timeout_seconds": 0}, "above 0"),
    ],
)
def test_what_could_never_be_sent_is_refused_at_once(arguments, problem):
    with pytest.raises(UserError, match=problem):
        WebhookSink(**arguments)
