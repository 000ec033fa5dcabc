"""The page as a callback: what prediction hands it, from its start to its end."""

from __future__ import annotations

import json
import socket
import time
from types import SimpleNamespace
from urllib.request import urlopen

import pytest
import torch

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from callbacks.events.reporter import EventReporter
from callbacks.page.callback import LivePage
from datamodules.errors import UserError
from tests.callbacks.events.scenes import frame, person


def trainer_of(*callbacks) -> SimpleNamespace:
    data = SimpleNamespace(class_names=("walk", "wave"))
    return SimpleNamespace(datamodule=data, world_size=1, global_rank=0, is_global_zero=True, callbacks=callbacks)


def batch(source: str, times: list[float], received: list[float] | None = None, is_last: bool = False):
    capture = received and SimpleNamespace(received=torch.tensor([received]).double(), dropped=7, reconnections=2)
    return SimpleNamespace(
        video_ids=(source,),
        timestamps=torch.tensor([times]).double(),
        is_last=torch.tensor([is_last]),
        capture=capture or None,
    )


def state(page: LivePage) -> dict:
    with urlopen(f"{page._server.address}state", timeout=5) as reply:
        return json.loads(reply.read())


def test_pictures_delays_and_events_reach_the_page_and_it_ends_with_prediction(tmp_path, capsys):
    page = LivePage(port=0)
    reporter = EventReporter([{"action": "wave"}], tmp_path, clips=None)
    trainer = trainer_of(page, reporter)
    for callback in (page, reporter):
        callback.on_predict_start(trainer, None)
    assert capsys.readouterr().out == f"page: {page._server.address}\n"
    now = time.monotonic()
    # Predictions come one frame late, as of a network with a look-ahead: the first batch gives none.
    for number in range(3):
        given = batch("cam", [0.5 * number], [now - 3.0 + number])
        outputs = [] if number == 0 else [frame(0.5 * (number - 1), person(0.9), colour=60)]
        for callback in (page, reporter):
            callback.on_predict_batch_end(trainer, None, outputs, given, number)
    shown = state(page)
    (source,) = shown["sources"]
    assert (source["name"], source["frames"], shown["dropped"], shown["reconnections"]) == ("cam", 2, 7, 2)
    assert source["delay_ms_p50"] == pytest.approx(2500, abs=400)  # of the frames that are shown: 3 s and 2 s
    (event,) = shown["newest_events"]
    assert (event["rule"], event["state"], event["start"], event["end"]) == ("wave", "began", 0.0, None)
    reporter.on_predict_end(trainer, None)
    assert state(page)["newest_events"][0]["state"] == "ended" and state(page)["events"] == 1
    port = page._server.port
    page.on_predict_end(trainer, None)
    page.on_exception(trainer, None, RuntimeError())  # a second end changes nothing
    assert reporter.listeners == []
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), 1)


def test_files_have_no_delay_and_make_way_for_the_next(tmp_path):
    page = LivePage(port=0)
    trainer = trainer_of(page)
    page.on_predict_start(trainer, None)
    for name in ("a", "b"):
        frames = [frame(0.0, source=name, colour=60), frame(0.5, source=name, colour=60)]
        page.on_predict_batch_end(trainer, None, frames, batch(name, [0.0, 0.5], is_last=True), 0)
    (source,) = state(page)["sources"]
    page.on_predict_end(trainer, None)
    assert (source["name"], source["frames"], source["delay_ms_p50"]) == ("b", 2, None)


def test_moments_of_receipt_do_not_pile_up():
    page = LivePage(port=0)
    trainer = trainer_of(page)
    page.on_predict_start(trainer, None)
    for number in range(3000):
        page.on_predict_batch_end(trainer, None, [], batch("cam", [float(number)], [0.0]), number)
    page.on_predict_end(trainer, None)
    assert len(page._received) <= 1000


def test_a_token_may_come_from_the_environment(monkeypatch, capsys):
    monkeypatch.setenv("PAGE_TOKEN", "long-enough-token")
    page = LivePage(port=0, token="$PAGE_TOKEN")
    page.on_predict_start(trainer_of(page), None)
    address = page._server.address
    with urlopen(f"{address}state?token=long-enough-token", timeout=5) as reply:
        assert reply.status == 200
    page.on_predict_end(trainer_of(page), None)
    assert "long-enough-token" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"host": "0.0.0.0"}, "needs a token"),
        ({"token": "$NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE is not set"),
        ({"token": "short"}, "at least 8 characters"),
        ({"port": 70000}, "port must be from 0 to 65535"),
    ],
)
def test_a_page_that_anybody_could_see_is_refused(arguments, problem):
    with pytest.raises(UserError, match=problem):
        LivePage(**arguments)
