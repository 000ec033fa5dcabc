"""The class scores of every frame as JSON lines: one file for each video."""

import json
from types import SimpleNamespace

import pytest
import torch

from callbacks.files.frame_score_file import FrameScoreFile
from datamodules.errors import UserError


def trainer_of(rank: int = 0, world_size: int = 1, **data) -> SimpleNamespace:
    return SimpleNamespace(
        datamodule=SimpleNamespace(class_names=("walk", "wave"), **data), world_size=world_size, global_rank=rank
    )


def found(video: str, *times: float) -> dict:
    return {
        "video_id": video,
        "times": torch.tensor(times),
        "frame_scores": torch.tensor([[0.75, 0.01]] * len(times)),
    }


def write(file: FrameScoreFile, *batches: list[dict], trainer: SimpleNamespace | None = None) -> None:
    trainer = trainer or trainer_of()
    file.on_predict_start(trainer, None)
    for number, batch in enumerate(batches):
        file.on_predict_batch_end(trainer, None, batch, None, number)
    file.on_predict_end(trainer, None)


def test_a_line_names_its_video_its_time_and_the_actions_above_the_threshold(tmp_path, capsys):
    write(FrameScoreFile(tmp_path), [found("cam/1", 0.0, 0.5)], [found("cam/1", 1.0)])
    lines = [json.loads(line) for line in (tmp_path / "cam" / "1.jsonl").read_text().splitlines()]
    assert lines == [{"video": "cam/1", "timestamp": time, "actions": {"walk": 0.75}} for time in (0.0, 0.5, 1.0)]
    assert capsys.readouterr().out == f"wrote {tmp_path}/cam/1.jsonl\n"


def test_an_earlier_file_is_replaced_which_is_reported(tmp_path, capsys):
    for _ in range(2):
        write(FrameScoreFile(tmp_path), [found("a", 0.0)])
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 1
    assert f"replacing {tmp_path}/a.jsonl of an earlier prediction\n" in capsys.readouterr().out


def test_no_two_videos_share_a_file(tmp_path):
    write(FrameScoreFile(tmp_path), [found(video, 0.0) for video in ("cam/1", "cam_1", "A", "a")])
    for rank, video in enumerate(("B", "b")):  # of two processes
        write(FrameScoreFile(tmp_path), [found(video, 0.0)], trainer=trainer_of(rank, 2))
    files = list(tmp_path.rglob("*.jsonl"))
    assert sorted(json.loads(path.read_text())["video"] for path in files) == ["A", "B", "a", "b", "cam/1", "cam_1"]
    assert len({str(path).casefold() for path in files}) == 6


def test_an_input_is_never_written_to(tmp_path):
    (tmp_path / "film.jsonl").write_bytes(b"a film")
    trainer = trainer_of(input_files=(tmp_path / "film.jsonl",))
    with pytest.raises(UserError, match=r"film\.jsonl: is predicted on"):
        write(FrameScoreFile(tmp_path), [found("film", 0.0)], trainer=trainer)
    assert (tmp_path / "film.jsonl").read_bytes() == b"a film"


def test_at_a_full_disk_lines_are_whole(small_disk):
    file = FrameScoreFile(small_disk)
    with pytest.raises(UserError, match=r"a\.jsonl: cannot be written: No space left on device"):
        write(file, *[[found("a", *range(400))]] * 100)
    assert all(map(json.loads, (small_disk / "a.jsonl").read_text().splitlines()))
