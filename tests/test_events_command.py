"""Events of a film by the command line: lines, clips, a webhook, refusals, and what a kill leaves."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import av
import pytest
import torch

from datamodules.errors import UserError
from main import main
from tests.callbacks.events.test_sinks import web_server
from tests.forked import Forked

ROOT = Path(__file__).resolve().parent.parent
COMMAND = ("predict", "--weights=results/weights/dsta.pt", "--trainer.accelerator=cpu")
RULES = {"rules": [{"name": "waving", "action": "fast_wave", "start_score": 0.5, "end_score": 0.3}]}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Results go to an empty folder in which the shipped weights and a file of rules are found."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").symlink_to(ROOT / "results")
    (tmp_path / "rules.yaml").write_text(json.dumps(RULES))
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)


def lines(name: str) -> list[dict]:
    return [json.loads(line) for line in Path(name).read_text().splitlines()]


def waves(film: Path) -> list[tuple[int, float, float, float]]:
    """Events of the written predictions by the rule's definition: track, start, end, highest score."""
    found, going = [], {}
    for line in lines(f"runs/predictions/{film.stem}.jsonl"):
        for person in line["detections"]:
            score, track = person["actions"].get("fast_wave", 0.0), person["track"]
            if track in going and score >= 0.3:
                going[track] = (going[track][0], line["timestamp"], max(going[track][2], score))
            elif track in going:
                found.append((track, *going.pop(track)))
            elif score >= 0.5:
                going[track] = (line["timestamp"], line["timestamp"], score)
    return sorted(found + [(track, *event) for track, event in going.items()])


def test_a_film_becomes_events_clips_and_posts_to_a_webhook(puppets_film, capsys):
    with web_server(200) as (address, posted):
        sinks = json.dumps([{"class_path": "WebhookSink", "init_args": {"address": address}}])
        reporter = ["--trainer.callbacks+=EventReporter", "--trainer.callbacks.rules=rules.yaml"]
        main([*COMMAND, f"--source={puppets_film}", *reporter, f"--trainer.callbacks.sinks={sinks}"])
    events = lines("runs/events/events.jsonl")
    told = sorted((event["track"], event["start"], event["end"], event["score"]) for event in events)
    assert told == waves(puppets_film) and len(told) > 0
    assert [body for *_, body in posted] == events
    for event in events:
        assert (event["rule"], event["action"], event["source"]) == ("waving", "fast_wave", puppets_film.stem)
        with av.open(event["clip"]) as container:
            assert len(list(container.decode(video=0))) == 24  # the film is shorter than the seconds before and after
    said = capsys.readouterr().out
    assert f"{len(events)} events sent\n" in said and f"events: {len(events)} waving; runs/events/events.jsonl" in said


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--trainer.callbacks.rules=nowhere.yaml", "nowhere.yaml: no such file of rules"),
        ('--trainer.callbacks.rules=[{"action": "fats_wave"}]', "no action 'fats_wave'; did you mean fast_wave?"),
        ('--trainer.callbacks.rules=[{"acton": "walk"}]', "there is no key 'acton'; did you mean action?"),
        ("--trainer.callbacks.clip=null", "did you mean"),
    ],
)
def test_what_is_misspelt_is_refused_with_the_nearest(setting, message, puppets_film):
    reporter = ["--trainer.callbacks+=EventReporter", "--trainer.callbacks.rules=rules.yaml"]
    with pytest.raises(UserError) as refused:
        main([*COMMAND, f"--source={puppets_film}", *reporter, setting])
    assert message in str(refused.value)


def test_a_kill_leaves_whole_lines_and_clips_that_can_be_played(puppets_film):
    sending = {"name": "SIGKILL", "hook": "on_predict_batch_end", "count": 20}
    kill = json.dumps({"class_path": "tests.signals.SendSignal", "init_args": sending})
    reporter = ["--trainer.callbacks+=EventReporter", "--trainer.callbacks.rules=rules.yaml"]
    arguments = [
        *COMMAND,
        f"--source={puppets_film}",
        "--data.chunk_frames=1",
        *reporter,
        f"--trainer.callbacks+={kill}",
    ]
    process = Forked(arguments)
    assert process.wait() == -signal.SIGKILL, process.out
    clips = list(Path("runs/events").glob("*.waving.*.mp4"))
    assert clips
    for clip in clips:
        with av.open(str(clip)) as container:
            assert len(list(container.decode(video=0))) >= 1
    written = Path("runs/events/events.jsonl")
    assert all(line["rule"] == "waving" for line in (lines(str(written)) if written.exists() else []))
