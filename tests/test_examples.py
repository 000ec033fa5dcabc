"""The programs of examples/ run as their heads say; the exported student's is run in lightning_modules/commands."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_modules.commands.export_parity import moving_blobs
from lightning_modules.evaluation.tracked import TrackedFrame
from lightning_modules.networks.weights.configured import build_network
from lightning_modules.session import StreamSession
from tests.datamodules.written_videos import write_video
from tests.networks.tiny import randomise
from tests.networks.weights.small import small_card, small_config

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def run(program: str, *arguments: object) -> str:
    """Run an example; return what it prints."""
    ended = subprocess.run(
        [sys.executable, ROOT / "examples" / program, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def session() -> StreamSession:
    torch.manual_seed(0)
    config = small_config()
    network = randomise(build_network(config))
    with torch.no_grad():  # so that everybody is taken for a person
        for stage in network.head.localizer.stages:
            stage.class_logits.bias.copy_(torch.tensor([2.0, -2.0]))
    return StreamSession(network, small_card(config))


@pytest.fixture(scope="module")
def film(session, tmp_path_factory) -> tuple[Path, Path, list[TrackedFrame]]:
    """A folder of weights, a video, and the session's predictions of it."""
    folder = tmp_path_factory.mktemp("film")
    session.save_pretrained(folder / "weights")
    write_video(folder / "film.mp4", list(moving_blobs(12, (64, 96))), 16)
    predictions = list(session.predict(folder / "film.mp4"))
    assert sum(len(frame.people) for frame in predictions) > len(predictions) > session.look_ahead > 0
    return folder / "weights", folder / "film.mp4", predictions


def test_a_file_is_predicted_on_as_the_session_does(film):
    weights, video, predictions = film
    expected = [
        f"{frame.seconds:.2f} s {person.track} {[round(side) for side in person.box]} "
        f"{[name for name, score in person.actions.items() if score >= 0.2]}"
        for frame in predictions
        for person in frame.people
        if person.person_score >= 0.5
    ]
    assert expected and run("predict_file.py", weights, video).splitlines() == expected


def test_frames_given_one_by_one_have_the_predictions_of_the_file(film, session):
    weights, video, predictions = film
    first, *lines = run("step_by_step.py", weights, video).splitlines()
    assert first == f"predictions come {session.look_ahead} sampled frames late"
    likeliest = [
        (frame.seconds, person.track, max(person.actions, key=person.actions.get))
        for frame in predictions
        for person in frame.people
    ]
    assert [line.rpartition(" ")[0] for line in lines] == [
        f"{seconds:.2f} s person {track}: {action}" for seconds, track, action in likeliest
    ]


def test_saved_predictions_are_scored_on_all_annotated_frames_of_ones_own_videos(tiny_puppets, tmp_path):
    """Truth as predictions scores 100 %; truth of one of K annotated classes a K-th of that."""
    data = tiny_puppets / "tiny"
    labelled = [row for row in csv.reader((data / "val.csv").open()) if row[6]]
    classes = {row[6] for row in labelled}
    for count, kept in ((len(classes), classes), (1, {labelled[0][6]})):
        with (tmp_path / "predictions.csv").open("w", newline="") as file:
            csv.writer(file).writerows([*row[:7], 0.9] for row in labelled if row[6] in kept)
        arguments = (data / "videos" / "val", data / "val.csv", data / "classes.txt", tmp_path / "predictions.csv")
        first = run("score_saved_predictions.py", *arguments).splitlines()[0]
        assert first == f"ava frame mAP@0.5: {100 * count / len(classes):.2f} %"
