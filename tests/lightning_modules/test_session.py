"""Detection from plain Python: the predictions of files, of arrays and of single steps are the same ones."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.errors import UserError
from datamodules.video.readers import open_video
from lightning_modules.commands.export_parity import moving_blobs
from lightning_modules.evaluation.tracked import TrackedFrame
from lightning_modules.networks.detection.outputs import Detections, decode_detections
from lightning_modules.networks.layers.pixels import normalise_frames
from lightning_modules.networks.weights.configured import build_network
from lightning_modules.session import StreamSession
from tests.datamodules.written_videos import write_video
from tests.networks.tiny import randomise
from tests.networks.weights.small import small_card, small_config

ROOT = Path(__file__).resolve().parents[2]
SIZE = (64, 96)


@pytest.fixture(scope="module")
def session() -> StreamSession:
    """A small student whose predictions come three sampled frames late, at every second frame of 16 per second."""
    torch.manual_seed(0)
    config = small_config()
    network = randomise(build_network(config))
    with torch.no_grad():  # so that the tracker takes everybody for a person
        for stage in network.head.localizer.stages:
            stage.class_logits.bias.copy_(torch.tensor([2.0, -2.0]))
    return StreamSession(network, small_card(config))


def frames(count: int, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    return list(moving_blobs(count, size))


def assert_same(found: list[TrackedFrame], expected: list[TrackedFrame]) -> None:
    """Up to the rounding of batches of other lengths."""
    assert [frame[1:4] for frame in found] == [frame[1:4] for frame in expected]
    for one, other in zip(found, expected, strict=True):
        assert [person.track for person in one.people] == [person.track for person in other.people]
        for ours, theirs in zip(one.people, other.people, strict=True):
            assert ours.box == pytest.approx(theirs.box, abs=1e-2)
            assert ours.person_score == pytest.approx(theirs.person_score, abs=1e-4)
            assert ours.actions == pytest.approx(theirs.actions, abs=1e-4)


def stepped(session: StreamSession, given: list[np.ndarray]) -> list[TrackedFrame]:
    due = [session.step(frame) for frame in given]
    return [frame for frame in due if frame is not None] + session.finish()


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 8, 21])
def test_every_sampled_frame_has_one_prediction_with_its_number_and_time(session, count):
    found = list(session.predict(frames(count)))
    assert [frame.frame for frame in found] == list(range(0, count, 2))
    assert [frame.seconds for frame in found] == pytest.approx([number / 16 for number in range(0, count, 2)])
    assert all(frame.size == SIZE and frame.people for frame in found)
    assert all(tuple(person.actions) == ("sit", "stand", "walk") for frame in found for person in frame.people)


@pytest.mark.parametrize("count", [1, 4, 21])
def test_steps_find_what_predict_finds(session, count):
    expected = list(session.predict(frames(count)))
    for _ in range(2):  # after the end a new stream begins
        assert_same(stepped(session, frames(count)), expected)


def test_a_step_returns_the_prediction_that_is_due(session):
    due = [session.step(frame) for frame in frames(11)]
    session.reset()
    assert [None if frame is None else frame.frame for frame in due] == [None] * 6 + [0, None, 2, None, 4]


def test_time_stamps_of_ones_own_decide_what_is_sampled(session):
    given = frames(6)
    due = [session.step(frame, seconds=10 + number / 8) for number, frame in enumerate(given)]
    found = [frame for frame in due if frame is not None] + session.finish()
    assert [frame.seconds for frame in found] == [10 + number / 8 for number in range(6)]  # a period of 1/8 s: all
    assert [frame.frame for frame in found] == list(range(6))
    assert [frame.frame for frame in session.predict(frames(20), frame_rate=32.0)] == [0, 4, 8, 12, 16]


def test_the_prediction_of_a_frame_is_what_the_network_says_later_with_the_last_frame_repeated(session):
    """Beside a loop over the network by hand, without tracks."""
    given, network = frames(9)[::2], session.network
    sizes = torch.tensor([SIZE])
    state, said = network.initial_state(1, SIZE), []
    with torch.inference_mode():
        for frame in [*given, *[given[-1]] * 3]:
            pixels = normalise_frames(torch.from_numpy(frame).permute(2, 0, 1)[None, None], sizes)
            detections, state = network(pixels, state, sizes)
            said += decode_detections(
                Detections(*(part[0] for part in detections)), sizes, sizes, 0.0, "person_x_action"
            )
    for found, expected in zip(session.predict(frames(9)), said[3:], strict=True):
        assert found.people
        for person in found.people:
            distance = (expected.boxes - torch.tensor(person.box)).abs().amax(1)
            assert distance.min() < 1e-2
            assert float(expected.person_scores[distance.argmin()]) == pytest.approx(person.person_score, abs=1e-4)


@pytest.mark.parametrize("chunk_frames", [1, 3, 8])
def test_a_file_is_predicted_as_its_frames_are(session, tmp_path, chunk_frames):
    write_video(tmp_path / "film.mp4", frames(21), 10)
    with open_video(tmp_path / "film.mp4") as reader:
        pictures, times = reader.get(range(21)), reader.times
    found = list(session.predict(tmp_path / "film.mp4", chunk_frames=chunk_frames))
    assert {frame.video_id for frame in found} == {"film"}
    due = [session.step(frame, seconds) for frame, seconds in zip(pictures, times, strict=True)]
    assert_same(found, [frame for frame in due if frame is not None] + session.finish())
    assert len(found) > 10 and all(frame.picture is None for frame in found)
    (first,) = session.predict(tmp_path / "film.mp4", max_frames=1, pictures=True)
    assert np.array_equal(first.picture, pictures[0])


def test_predict_leaves_the_stream_of_steps_alone(session):
    expected = stepped(session, frames(12))
    due = []
    for frame in frames(12):
        due.append(session.step(frame))
        next(session.predict(frames(9)))
    assert_same([frame for frame in due if frame is not None] + session.finish(), expected)


def test_frames_may_be_read_into_the_same_memory_and_be_views(session):
    expected, buffer, due = stepped(session, frames(12)), np.empty((*SIZE, 3), np.uint8), []
    for frame in frames(12):
        buffer[:] = frame[..., ::-1]
        due.append(session.step(buffer[..., ::-1]))  # as from OpenCV
    assert_same([frame for frame in due if frame is not None] + session.finish(), expected)


def test_limits_and_an_empty_source(session):
    assert [frame.frame for frame in session.predict(frames(20), max_frames=3)] == [0, 2, 4]
    assert [frame.frame for frame in session.predict(frames(20), max_seconds=0.5)] == [0, 2, 4, 6]
    assert list(session.predict([])) == [] and session.finish() == []


@pytest.mark.parametrize(
    ("frame", "match"),
    [
        (np.zeros((64, 96, 3), np.float32), r"uint8 in RGB, got float32 \(64, 96, 3\)"),
        (np.zeros((64, 96), np.uint8), r"got uint8 \(64, 96\)"),
        (np.zeros((3, 64, 96), np.uint8), r"got uint8 \(3, 64, 96\)"),
        (np.zeros((0, 96, 3), np.uint8), r"got uint8 \(0, 96, 3\)"),
        (np.zeros((64, 128, 3), np.uint8), r"frame 1 has 128x64 pixels, those before it 96x64; call finish"),
    ],
)
def test_what_is_no_frame_of_the_stream_is_refused(session, frame, match):
    session.reset()
    session.step(frames(1)[0])
    with pytest.raises(UserError, match=match):
        session.step(frame)
    session.reset()


@pytest.mark.parametrize("seconds", [0.5, float("nan")])
def test_time_that_goes_back_is_refused(session, seconds):
    session.reset()
    session.step(frames(1)[0], seconds=1.0)
    with pytest.raises(UserError, match="the one before it at 1 s; call reset"):
        session.step(frames(1)[0], seconds=seconds)
    session.reset()


def test_what_is_no_source_is_refused(session, tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.mp4: no such source"):
        next(session.predict("nowhere.mp4"))
    with pytest.raises(UserError, match="frame_rate must be above 0, got 0"):
        next(session.predict(frames(1), frame_rate=0))


def test_weights_that_do_not_say_their_frame_rate_take_arrays_by_stride_and_no_files(session, tmp_path):
    write_video(tmp_path / "film.mp4", frames(4), 10)
    rateless = StreamSession(session.network, replace(session.card, frame_rate=None))
    assert [frame.frame for frame in rateless.predict(frames(7))] == [0, 2, 4, 6]
    with pytest.raises(UserError, match="do not say the frame rate"):
        next(rateless.predict(tmp_path / "film.mp4"))


def test_times_and_rates_of_frames_need_the_frame_rate_of_the_training_videos(session):
    rateless = StreamSession(session.network, replace(session.card, frame_rate=None))
    with pytest.raises(UserError, match=r"card\.frame_rate: the weights do not say the frame rate"):
        rateless.step(frames(1)[0], seconds=0.0)
    with pytest.raises(UserError, match=r"card\.frame_rate: the weights do not say the frame rate"):
        next(rateless.predict(frames(7), frame_rate=30.0))


def test_a_session_that_was_saved_predicts_the_same_to_the_last_bit(session, tmp_path):
    session.save_pretrained(tmp_path / "student")
    again = StreamSession.from_pretrained(tmp_path / "student")
    assert again.class_names == session.class_names and again.look_ahead == 3
    assert list(again.predict(frames(12))) == list(session.predict(frames(12)))


def test_a_session_predicts_with_the_delay_that_is_asked_for(session, tmp_path):
    session.save_pretrained(tmp_path / "student")
    early = StreamSession.from_pretrained(tmp_path / "student", look_ahead=1)
    assert (session.look_ahead, early.look_ahead) == (3, 1)
    due = [early.step(frame) for frame in frames(7)]
    assert [None if frame is None else frame.frame for frame in due] == [None, None, 0, None, 2, None, 4]
    with pytest.raises(UserError, match="look_ahead is a number of frames, at least 0, got -1"):
        StreamSession.from_pretrained(tmp_path / "student", look_ahead=-1)


def test_a_chosen_delay_is_saved_with_the_weights(session, tmp_path):
    session.save_pretrained(tmp_path / "student")
    StreamSession.from_pretrained(tmp_path / "student", look_ahead=1).save_pretrained(tmp_path / "early")
    again = StreamSession.from_pretrained(tmp_path / "early")
    assert (again.look_ahead, again.card.look_ahead, again.network.timing.boxes_from) == (1, 1, "next")


ALONE = """
import sys
import numpy as np
from lightning_modules.session import StreamSession
session = StreamSession.from_pretrained(sys.argv[1])
print(len(list(session.predict(sys.argv[2]))), session.step(np.zeros((64, 96, 3), np.uint8)))
others = ("lightning", "pytorch_lightning", "lightning_fabric")
print([name for name in sys.modules if name.partition(".")[0] in others])
"""


@pytest.mark.slow
def test_lightning_is_never_imported(session, tmp_path):
    session.save_pretrained(tmp_path)
    write_video(tmp_path / "film.mp4", frames(8), 10)
    ended = run(ALONE, tmp_path, tmp_path / "film.mp4")
    assert ended.splitlines() == ["6 None", "[]"]  # of ten frames a second those at 0, 0.2, 0.3, 0.4, 0.5 and 0.7 s


def run(program: str, *arguments: object) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_readmes_twelve_lines_are_those_of_the_example():
    """``tests/test_examples.py`` runs it."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (lines,) = (block for block in blocks if "StreamSession" in block)
    assert len([line for line in lines.splitlines() if line.strip()]) <= 12
    assert (ROOT / "examples" / "predict_file.py").read_text().endswith(f'"""\n\n{lines}')
