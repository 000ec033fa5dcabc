"""Predictions as JSON lines: which detections, under which names, in which file."""

import json
from types import SimpleNamespace

import torch

from callbacks.prediction_writer import PredictionWriter

TRAINER = SimpleNamespace(datamodule=SimpleNamespace(class_names=("walk", "wave")))


def entry(video: str = "kitchen", timestamp: float = 0.5, persons: tuple[float, ...] = (0.9, 0.4)) -> dict:
    """Two proposals of one frame."""
    return {
        "video_id": video,
        "timestamp": timestamp,
        "boxes": torch.tensor([[1.04, 2.0, 30.06, 40.0], [5.0, 6.0, 7.0, 8.0]]),
        "scores": torch.tensor([[0.81234567, 0.1], [0.9, 0.9]]),
        "person_scores": torch.tensor(persons),
    }


def write(writer: PredictionWriter, *batches: list[dict]) -> None:
    writer.on_predict_start(TRAINER, None)
    for number, batch in enumerate(batches):
        writer.on_predict_batch_end(TRAINER, None, batch, None, number)
    writer.on_predict_end(TRAINER, None)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_holds_persons_and_actions_above_their_thresholds(tmp_path):
    write(PredictionWriter(tmp_path, person_threshold=0.5, action_threshold=0.2), [entry()])
    detection = {"box": [1.0, 2.0, 30.1, 40.0], "person": 0.9, "actions": {"walk": 0.8123}}
    assert lines(tmp_path / "kitchen.jsonl") == [{"timestamp": 0.5, "detections": [detection]}]


def test_a_frame_without_anybody_is_a_line_too(tmp_path):
    write(PredictionWriter(tmp_path), [entry(persons=(0.1, 0.2))])
    assert lines(tmp_path / "kitchen.jsonl") == [{"timestamp": 0.5, "detections": []}]


def test_a_person_without_an_action_is_written(tmp_path):
    write(PredictionWriter(tmp_path, action_threshold=0.95), [entry()])
    assert [found["actions"] for found in lines(tmp_path / "kitchen.jsonl")[0]["detections"]] == [{}]


def test_batches_of_several_videos_end_in_a_file_each_in_order_of_time(tmp_path, capsys):
    write(
        PredictionWriter(tmp_path / "new" / "folder"),
        [entry("kitchen", 0.0), entry("garden", 0.0), entry("kitchen", 0.25)],
        [entry("kitchen", 0.5), entry("garden", 0.25)],
    )
    folder = tmp_path / "new" / "folder"
    assert [line["timestamp"] for line in lines(folder / "kitchen.jsonl")] == [0.0, 0.25, 0.5]
    assert [line["timestamp"] for line in lines(folder / "garden.jsonl")] == [0.0, 0.25]
    assert capsys.readouterr().out == f"wrote {folder / 'garden.jsonl'}\nwrote {folder / 'kitchen.jsonl'}\n"


def test_files_of_an_earlier_prediction_are_replaced(tmp_path):
    writer = PredictionWriter(tmp_path)
    write(writer, [entry(timestamp=0.0), entry(timestamp=1.0)])
    write(writer, [entry(timestamp=2.0)])
    assert [line["timestamp"] for line in lines(tmp_path / "kitchen.jsonl")] == [2.0]


def test_videos_of_one_name_in_two_folders_keep_a_file_each(tmp_path):
    """Such videos are named by their paths (datamodules/detection.py)."""
    write(PredictionWriter(tmp_path), [entry("/mnt/a/cam.1.mp4"), entry("/mnt/b/cam.1.mp4"), entry("v1.5")])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mnt_a_cam.1.mp4.jsonl",
        "mnt_b_cam.1.mp4.jsonl",
        "v1.5.jsonl",
    ]
