"""Events to a real broker: mosquitto, where it is installed."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from callbacks.events.mqtt import MqttSink, topic_of
from callbacks.events.sinks import Delivery
from datamodules.errors import UserError

MOSQUITTO = shutil.which("mosquitto") or shutil.which("/usr/sbin/mosquitto")
PASSWORDS = shutil.which("mosquitto_passwd")
QUICK = Delivery(first_wait_seconds=0.1, longest_wait_seconds=0.3, closing_seconds=5.0)


def message(number: int = 0, source: str = "cam") -> dict:
    return {"event": str(number), "state": "ended", "source": source, "rule": "wave", "action": "wave"}


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def broker(port: int, folder: Path, *settings: str) -> Iterator[None]:
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    config = folder / "mosquitto.conf"
    config.write_text("\n".join([f"listener {port} 127.0.0.1", *(settings or ["allow_anonymous true"])]) + "\n")
    process = subprocess.Popen([MOSQUITTO, "-c", str(config)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 10
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def listener(port: int, topic: str = "#") -> Iterator[list]:
    """Messages that are published, as topics and contents."""
    client_module = pytest.importorskip("paho.mqtt.client")
    enums = pytest.importorskip("paho.mqtt.enums")
    heard: list = []
    subscribed: list = []
    client = client_module.Client(enums.CallbackAPIVersion.VERSION2)
    client.on_message = lambda _client, _data, said: heard.append((said.topic, json.loads(said.payload)))
    client.on_subscribe = lambda *_: subscribed.append(True)
    client.connect("127.0.0.1", port)
    client.subscribe(topic, qos=1)
    client.loop_start()
    wait_for(lambda: subscribed)
    yield heard
    client.disconnect()
    client.loop_stop()


def wait_for(condition, seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    assert condition()


def test_events_are_published_under_the_topic_of_their_camera_and_rule(tmp_path):
    port = free_port()
    with broker(port, tmp_path), listener(port) as heard:
        sink = MqttSink("127.0.0.1", port, delivery=QUICK)
        sink.start()
        for number, source in enumerate(("yard", "door/1", "yard")):
            sink.send(message(number, source))
        sink.close()
        wait_for(lambda: len(heard) == 3)
    assert heard == [
        ("onlooker/events/yard/wave", message(0, "yard")),
        ("onlooker/events/door_1/wave", message(1, "door/1")),
        ("onlooker/events/yard/wave", message(2, "yard")),
    ]
    assert sink.report() == "3 events sent"


def test_events_wait_for_a_broker_that_starts_later(tmp_path):
    port = free_port()
    sink = MqttSink("127.0.0.1", port, timeout_seconds=0.3, delivery=QUICK)
    sink.start()
    sink.send(message(7))
    time.sleep(0.5)
    with broker(port, tmp_path), listener(port) as heard:
        wait_for(lambda: sink.sent == 1)
        sink.close()
        wait_for(lambda: heard)
    assert {content["event"] for _, content in heard} == {"7"}


def test_events_outlive_a_broker_that_is_started_again(tmp_path):
    port = free_port()
    sink = MqttSink("127.0.0.1", port, timeout_seconds=0.5, delivery=QUICK)
    with broker(port, tmp_path), listener(port) as heard:
        sink.start()
        sink.send(message(0))
        wait_for(lambda: heard)
    sink.send(message(1))
    time.sleep(0.5)
    with broker(port, tmp_path), listener(port) as heard:
        wait_for(lambda: sink.sent == 2, 20.0)
        sink.close()
    assert sink.report() == "2 events sent"


def test_a_broker_that_asks_for_a_password_gets_it_from_the_environment(tmp_path, monkeypatch, capsys):
    if PASSWORDS is None:
        pytest.skip("mosquitto_passwd is not installed")
    port, file = free_port(), tmp_path / "passwords"
    subprocess.run([PASSWORDS, "-b", "-c", str(file), "me", "s3cret"], check=True, capture_output=True)
    file.chmod(0o644)  # mosquitto reads it as another user
    tmp_path.chmod(0o755)
    monkeypatch.setenv("BROKER_PASSWORD", "s3cret")
    settings = ("allow_anonymous false", f"password_file {file}", "user root")
    with broker(port, tmp_path, *settings):
        right = MqttSink("127.0.0.1", port, user="me", password="$BROKER_PASSWORD", delivery=QUICK)
        right.start()
        right.send(message(0))
        wait_for(lambda: right.sent == 1)
        right.close()
        hasty = Delivery(first_wait_seconds=0.1, longest_wait_seconds=0.3, closing_seconds=1.0)
        wrong = MqttSink("127.0.0.1", port, user="me", password="guess", timeout_seconds=0.5, delivery=hasty)
        wrong.start()
        wrong.send(message(0))
        time.sleep(0.7)
        wrong.close()
    said = capsys.readouterr().out
    assert wrong.report() == "0 events sent, 1 not sent in time"
    assert "the broker answers: Not authorized" in said and "s3cret" not in said and "guess" not in said


def test_names_of_cameras_do_not_become_levels_or_wildcards_of_a_topic():
    given = {"source": "a/b+#", "rule": "x", "action": "wave", "state": "ended"}
    assert topic_of("home/{source}/{state}", given) == "home/a_b__/ended"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"topic": "a/{camera}"}, "an event has no 'camera'; there are source, rule"),
        ({"topic": "a/{source"}, "is no topic"),
        ({"topic": "a/{0}"}, "an event has no '0'"),
        ({"topic": "a/#"}, r"hold no \+ and #"),
        ({"topic": ""}, r"hold no \+ and #"),
        ({"port": 70000}, "a port from 1 to 65535"),
        ({"host": ""}, "must be a host"),
        ({"password": "$NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE is not set"),
        ({"timeout_seconds": 0}, "above 0"),
    ],
)
def test_what_could_never_be_published_is_refused_at_once(arguments, problem):
    with pytest.raises(UserError, match=problem):
        MqttSink(**{"host": "localhost"} | arguments)
