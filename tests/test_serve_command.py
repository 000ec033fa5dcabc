"""``serve --weights W --source S``: a camera in a real browser, and nothing for those without the token."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import urlopen

import av
import numpy as np
import pytest
import torch

from callbacks.files.annotated_video import COLOURS
from datamodules.errors import UserError
from datamodules.video.readers import open_video
from main import main
from tests.datamodules.live.network_camera import Connection, network_camera
from tests.forked import Forked

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ("--weights=results/weights/dsta.pt", "--trainer.accelerator=cpu")
TOKEN = "long-enough-token"
RULES = {"rules": [{"name": "waving", "action": "fast_wave", "start_score": 0.5, "end_score": 0.3}]}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.slow


class Shown(NamedTuple):
    """A prediction that is being served."""

    process: Forked
    address: str
    folder: Path
    film: Path


@pytest.fixture(scope="module")
def shown(puppets_film, tmp_path_factory) -> Iterator[Shown]:
    """The page of a camera that shows the same film of Puppets again and again."""
    folder = tmp_path_factory.mktemp("serve")
    (folder / "results").symlink_to(ROOT / "results")
    (folder / "rules.yaml").write_text(json.dumps(RULES))
    with network_camera(Connection(puppets_film), refuse_afterwards=False) as camera:
        arguments = [f"--source={camera}", "--rules=rules.yaml", "--port=0", f"--token={TOKEN}"]
        with chdir(folder):
            process = Forked(["serve", *WEIGHTS, *arguments])
        try:
            wait_for(lambda: page_of(process), 480)
            address = page_of(process)
            wait_for(lambda: state(address)["sources"], 60)
            yield Shown(process, address, folder, puppets_film)
        finally:
            process.kill()


def page_of(process: Forked) -> str:
    """Return the address of the page, once it is on the screen."""
    said = re.search(r"^page: (\S+?)(?:\?\S*)?\s", process.out, flags=re.MULTILINE)
    return said[1] if said else ""


def wait_for(condition, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < until:
        time.sleep(0.2)
    assert found


def state(address: str) -> dict:
    with urlopen(f"{address}state?token={TOKEN}", timeout=10) as reply:
        return json.loads(reply.read())


def pixels_of_boxes(picture: np.ndarray) -> int:
    """Count the pixels, (..., 3), of a colour in which boxes are drawn."""
    near = [np.abs(picture.astype(int) - colour).max(-1) < 25 for colour in COLOURS]
    return int(np.any(near, axis=0).sum())


def test_health_tells_how_the_camera_gets_on(shown):
    with urlopen(f"{shown.address}health?token={TOKEN}", timeout=10) as reply:
        content = json.loads(reply.read())
    assert content["status"] == "ok"
    (source,) = content["sources"]
    assert source["name"] == "127.0.0.1_live" and source["frames"] > 0 and not source["is_stalled"]
    wait_for(lambda: (state(shown.address)["sources"][0]["delay_ms_p50"] or 0) > 0, 30)


def test_without_the_token_there_is_nothing(shown):
    for path in ("", "state", "picture", "stream", "health?token=wrong"):
        with pytest.raises(HTTPError) as refused:
            urlopen(f"{shown.address}{path}", timeout=10)
        assert refused.value.code == 401 and refused.value.read() == b""


def test_a_browser_shows_moving_pictures_with_boxes_and_events(shown):
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as control:
        browser = control.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        stranger = browser.new_page()
        answers: list[int] = []
        stranger.on("response", lambda answer: answers.append(answer.status))
        with pytest.raises(playwright.Error, match="ERR_HTTP_RESPONSE_CODE_FAILURE"):  # Chromium's for an empty 401
            stranger.goto(f"{shown.address}?token=wrong-but-long")
        assert set(answers) == {401} and stranger.locator("figure, #events").count() == 0
        stranger.close()

        page = browser.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
        page.goto(f"{shown.address}?token={TOKEN}")
        page.locator("figure img[src*=picture]").wait_for(timeout=60_000)
        pictures = []
        until = time.monotonic() + 60
        while time.monotonic() < until:
            pictures.append(decoded(page.locator("figure img").screenshot()))
            boxes = max(map(pixels_of_boxes, pictures))
            moved = max(float(np.abs(one.astype(int) - pictures[0]).mean()) for one in pictures)
            if boxes > 500 and moved > 1 and page.locator("#events tr.ended").count():
                break
            time.sleep(0.3)
        assert moved > 1, "the picture stands still"
        with open_video(shown.film) as reader:
            bare = reader.get(range(0, reader.num_frames, 4))
        drawn_share = boxes / pictures[0][..., 0].size
        assert drawn_share > 0.002 + 2 * max(pixels_of_boxes(one) / one[..., 0].size for one in bare)
        rows = page.locator("#events tr.ended").all()
        named = [row.locator("td").all_inner_texts()[:2] for row in rows]
        assert named == [["waving", "127.0.0.1_live"]] * len(rows) != []
        caption = page.inner_text("figcaption")
        assert "127.0.0.1_live" in caption and "frames/s" in caption and "delay" in caption
        assert page.inner_text("#status").startswith("ok") and faults == []

        shown.process.send(signal.SIGINT)
        page.locator("#status", has_text="has ended").wait_for(timeout=60_000)
        browser.close()
    assert shown.process.wait() == 0, shown.process.out
    lines = [json.loads(line) for line in (shown.folder / "runs/events/events.jsonl").read_text().splitlines()]
    assert lines and all(line["rule"] == "waving" for line in lines)
    for line in lines:
        with av.open(str(shown.folder / line["clip"])) as container:
            assert len(list(container.decode(video=0))) > 1
    assert TOKEN not in shown.process.out


def decoded(png: bytes) -> np.ndarray:
    with av.open(io.BytesIO(png), format="png_pipe") as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--host=0.0.0.0"], "the page on 0.0.0.0 could be seen from other machines, so it needs a token"),
        (["--rules=nowhere.yaml"], "nowhere.yaml: no such file of rules"),
        (["--ruls=rules.yaml"], "serve has no such key; did you mean --rules?"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(arguments, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").symlink_to(ROOT / "results")
    precision = torch.get_float32_matmul_precision()
    with pytest.raises(UserError) as refused:
        main(["serve", *WEIGHTS, "--source=rtsp://127.0.0.1:9/none", *arguments])
    torch.set_float32_matmul_precision(precision)
    assert problem in str(refused.value)
