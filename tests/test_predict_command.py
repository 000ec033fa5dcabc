"""``predict --weights W --source X``: a file to its end, a camera until Ctrl-C."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import av
import pytest
import torch

from lightning_modules.session import StreamSession
from main import main
from tests.datamodules.live.network_camera import Connection, network_camera
from tests.datamodules.miniature import numbered_frames
from tests.datamodules.written_videos import write_video
from tests.forked import Forked

ROOT = Path(__file__).resolve().parent.parent
ARGUMENTS = ("predict", f"--config={ROOT / 'configs' / 'predict.yaml'}", "--trainer.accelerator=cpu")
WEIGHTS = ("predict", "--weights=results/weights/{}.pt", "--trainer.accelerator=cpu")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Results go to an empty folder in which the shipped weights are found."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").symlink_to(ROOT / "results")
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)


def lines(name: str) -> list[dict]:
    return [json.loads(line) for line in Path(f"runs/predictions/{name}.jsonl").read_text().splitlines()]


def mp4_times(name: str) -> list[float]:
    with av.open(f"runs/predictions/{name}.detections.mp4") as container:
        return [frame.time for frame in container.decode(video=0)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_a_file_becomes_json_lines_and_a_video_without_another_argument(capsys):
    write_video("film.mp4", numbered_frames(20, 128, 160), 16)
    main([*ARGUMENTS, "--data.source=film.mp4"])
    found = lines("film")
    assert [line["frame"] for line in found] == list(range(0, 20, 2))
    assert [line["timestamp"] for line in found] == pytest.approx([frame / 16 for frame in range(0, 20, 2)], abs=1e-4)
    assert mp4_times("film") == pytest.approx([frame / 16 for frame in range(0, 20, 2)], abs=1e-3)
    assert "10 frames in" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
@pytest.mark.parametrize("name", ["dsta", "tsa"])
def test_plain_python_finds_what_the_command_writes(puppets_film, name):
    """Ids, boxes and scores, equal as they are written; a weights file alone decides network, classes and frames."""
    main([argument.format(name) for argument in WEIGHTS] + ["--source", str(puppets_film)])
    session = StreamSession.from_pretrained(f"results/weights/{name}.pt")
    found = [
        {
            "video": frame.video_id,
            "timestamp": round(frame.seconds, 4),
            "frame": frame.frame,
            "detections": [
                {
                    "track": person.track,
                    "box": [round(side, 1) for side in person.box],
                    "person": round(person.person_score, 4),
                    "actions": {name: round(score, 4) for name, score in person.actions.items() if score >= 0.2},
                }
                for person in frame.people
                if person.person_score >= 0.5
            ],
        }
        for frame in session.predict(puppets_film)
    ]
    written = lines(puppets_film.stem)
    assert found == written and [line["frame"] for line in written] == list(range(0, 48, 2))
    assert sum(len(line["detections"]) for line in written) > 10
    assert {action for line in written for person in line["detections"] for action in person["actions"]} <= {
        *session.class_names
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_options_count_before_the_card(puppets_film):
    main([argument.format("dsta") for argument in WEIGHTS] + [f"--source={puppets_film}", "--data.frame_stride=4"])
    numbers = [line["frame"] for line in lines(puppets_film.stem)]
    assert numbers == list(range(0, 4 * len(numbers), 4)) and len(numbers) >= 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_videos_of_a_folder_keep_apart_with_results_beside_them_and_a_second_run_finds_the_same(capsys):
    names = ("kitchen.mp4", "porch/kitchen.MP4", "porch_kitchen.mp4")
    for number, name in enumerate(names):
        Path("films", name).parent.mkdir(parents=True, exist_ok=True)
        write_video("film.mp4", numbered_frames(4 + 2 * number, 128, 160), 16)
        shutil.move("film.mp4", Path("films", name))
    inputs = {name: Path("films", name).read_bytes() for name in names}
    for run in range(2):
        main([*ARGUMENTS, "--data.source=films", "--trainer.callbacks.folder=films"])
        said = capsys.readouterr()
        for number, video in enumerate(("kitchen", "porch/kitchen", "porch_kitchen")):
            frames = 2 + number
            found = [json.loads(line) for line in Path(f"films/{video}.jsonl").read_text().splitlines()]
            assert [line["video"] for line in found] == [video] * frames
            with av.open(f"films/{video}.detections.mp4") as container:
                assert len(list(container.decode(video=0))) == frames
            assert said.out.count(f"wrote films/{video}.jsonl\n") == 1
            assert said.out.count(f"replacing films/{video}.jsonl of an earlier prediction\n") == run
        assert inputs == {name: Path("films", name).read_bytes() for name in names}
        assert len([path for path in Path("films").rglob("*") if path.is_file()]) == 9


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_signals_on_a_camera_leave_whole_files_and_no_error(number, status, tmp_path):
    """Ctrl-C is the end of a camera; SIGTERM keeps its status, as on many cameras."""
    write_video("film.mp4", numbered_frames(400, 128, 160), 16)
    with network_camera(Connection(tmp_path / "film.mp4")) as address:
        process = Forked([*ARGUMENTS, f"--data.source={address}"], apart=True)
        written = Path("runs/predictions/127.0.0.1_live.jsonl")
        until = time.monotonic() + 480
        while process.status is None and time.monotonic() < until:
            if written.is_file() and len(written.read_text().splitlines()) >= 3:
                process.send(number)
                break
            time.sleep(0.05)
        assert process.wait() == status, process.err
    found = lines("127.0.0.1_live")
    assert len(found) >= 3
    assert len(mp4_times("127.0.0.1_live")) == len(found)
    assert "Traceback" not in process.err
    if number == signal.SIGTERM:
        assert process.err.splitlines()[-1] == "stopped by SIGTERM"
    else:
        assert "frames dropped, 0 reconnections" in process.out
        assert f"wrote {written}" in process.out


@pytest.mark.slow
def test_ctrl_c_in_a_file_leaves_whole_files_and_its_status():
    write_video("film.mp4", numbered_frames(40, 128, 160), 16)
    sending = {"name": "SIGINT", "hook": "on_predict_batch_start", "count": 3}
    callback = json.dumps({"class_path": "tests.signals.SendSignal", "init_args": sending})
    arguments = [*ARGUMENTS, "--data.source=film.mp4", "--data.chunk_frames=2", f"--trainer.callbacks+={callback}"]
    process = Forked(arguments, apart=True)
    assert process.wait() == 130, process.err
    assert process.err.splitlines()[-1] == "stopped by Ctrl-C; what it has written is not complete, predict again"
    found = lines("film")
    assert 0 < len(found) < 20 and len(mp4_times("film")) == len(found)
