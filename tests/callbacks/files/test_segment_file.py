"""One json of the segments of many videos: whole, and each video under a name of its own."""

import json
from types import SimpleNamespace

import pytest
import torch

from callbacks.files.segment_file import SegmentFile
from callbacks.files.tube_file import TubeFile
from datamodules.errors import UserError

TRAINER = SimpleNamespace(
    state=SimpleNamespace(fn="predict"),
    world_size=1,
    is_global_zero=True,
    ckpt_path=None,
    log_dir=None,
    datamodule=SimpleNamespace(class_names=("walk", "wave")),
)
MODULE = SimpleNamespace(weights=None)


def found(video: str) -> dict:
    parts = {"segments": torch.tensor([[0.0, 1.0]]), "scores": torch.tensor([0.5]), "labels": torch.tensor([1])}
    return {"video_id": video, **parts}


def write(file: SegmentFile, *videos: str) -> None:
    file.on_predict_start(TRAINER, MODULE)
    file.on_predict_batch_end(TRAINER, MODULE, [found(video) for video in videos], None, 0)
    file.on_predict_end(TRAINER, MODULE)


def test_the_file_is_there_with_the_folders_on_its_way(tmp_path, capsys):
    write(SegmentFile(tmp_path / "new" / "segments.json"), "cam/1", "cam_1")
    record = json.loads((tmp_path / "new" / "segments.json").read_text())
    assert list(record["results"]) == ["cam/1", "cam_1"]
    assert capsys.readouterr().out == f"wrote {tmp_path}/new/segments.json: 2 segments, 2 videos\n"


def test_two_videos_of_one_name_are_refused(tmp_path):
    with pytest.raises(UserError, match="two videos are called 'kitchen'; give each its own name"):
        write(SegmentFile(tmp_path / "segments.json"), "kitchen", "garden", "kitchen")
    evaluation, file = SimpleNamespace(on_finished=None), TubeFile(tmp_path / "tubes.json")
    trainer = SimpleNamespace(state=SimpleNamespace(fn="test"), log_dir=None)
    file.on_test_start(trainer, SimpleNamespace(evaluator=SimpleNamespace(videos=evaluation)))
    evaluation.on_finished("kitchen", [])
    with pytest.raises(UserError, match="two videos are called 'kitchen'"):
        evaluation.on_finished("kitchen", [])


@pytest.mark.parametrize("place", ["folder", "file/below.json", "/proc/self/nothing"])
def test_a_place_that_cannot_be_written_is_one_line_that_names_it(place, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"{place}: cannot be written: "):
        SegmentFile(tmp_path / place).on_predict_start(TRAINER, MODULE)  # not after hours of work


def test_at_a_full_disk_the_earlier_file_stays(small_disk):
    write(SegmentFile(small_disk / "segments.json"), "kitchen")
    (small_disk / "filler").write_bytes(bytes(256 * 1024 - 8192))
    with pytest.raises(UserError, match=r"segments\.json: cannot be written: No space left on device"):
        write(SegmentFile(small_disk / "segments.json"), *(f"video {number}" for number in range(1000)))
    assert list(json.loads((small_disk / "segments.json").read_text())["results"]) == ["kitchen"]
