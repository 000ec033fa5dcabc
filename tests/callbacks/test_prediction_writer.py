"""Predictions as JSON lines: which detections, under which names, in which file."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from callbacks.annotated_video import AnnotatedVideo, detection_text
from callbacks.prediction_writer import PredictionWriter

DATA = SimpleNamespace(class_names=("walk", "wave"))
TRAINER = SimpleNamespace(datamodule=DATA, world_size=1, global_rank=0)


def entry(video: str = "kitchen", timestamp: float = 0.5, persons: tuple[float, ...] = (0.9, 0.4)) -> dict:
    """Two proposals of one frame."""
    return {
        "video_id": video,
        "timestamp": timestamp,
        "original_size": (50, 40),
        "boxes": torch.tensor([[1.04, 2.0, 30.06, 40.0], [5.0, 6.0, 7.0, 8.0]]),
        "scores": torch.tensor([[0.81234567, 0.1], [0.9, 0.9]]),
        "person_scores": torch.tensor(persons),
    }


def tracked(frame: int = 0, size: tuple[int, int] = (50, 40), **changes) -> dict:
    """The same of a module that knows tracks and pictures: this one of a single colour."""
    picture = np.full((*size, 3), 90, np.uint8)
    return entry(**changes) | {"frame": frame, "track_ids": torch.tensor([4, 11]), "picture": picture}


def batch_of(*entries: dict) -> SimpleNamespace:
    """The batch that entries come from."""
    return SimpleNamespace(video_ids=tuple(e["video_id"] for e in entries))


def write(writer: PredictionWriter, *batches: list[dict], trainer: SimpleNamespace = TRAINER, end: bool = True) -> None:
    writer.on_predict_start(trainer, None)
    for number, batch in enumerate(batches):
        writer.on_predict_batch_end(trainer, None, batch, batch_of(*batch), number)
    if end:
        writer.on_predict_end(trainer, None)


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


def test_tracks_and_frame_numbers_are_written_where_they_are_known(tmp_path):
    write(PredictionWriter(tmp_path, person_threshold=0.3), [tracked(frame=12)])
    (line,) = lines(tmp_path / "kitchen.jsonl")
    assert (line["timestamp"], line["frame"]) == (0.5, 12)
    assert [found["track"] for found in line["detections"]] == [4, 11]


def test_an_earlier_file_is_said_to_be_replaced(tmp_path, capsys):
    write(PredictionWriter(tmp_path), [entry()])
    assert "replacing" not in capsys.readouterr().out
    write(PredictionWriter(tmp_path), [entry()], [entry()])
    assert capsys.readouterr().out.count(f"replacing {tmp_path / 'kitchen.jsonl'} of an earlier prediction") == 1


def test_what_was_found_is_on_disk_before_the_end(tmp_path):
    write(PredictionWriter(tmp_path), [entry(timestamp=0.0), entry(timestamp=0.5)], end=False)
    assert len(lines(tmp_path / "kitchen.jsonl")) == 2


def test_processes_write_into_files_of_their_own(tmp_path):
    for rank in range(2):
        trainer = SimpleNamespace(datamodule=DATA, world_size=2, global_rank=rank)
        write(PredictionWriter(tmp_path, ["jsonl", "csv"]), [entry(timestamp=float(rank))], trainer=trainer)
    names = ["kitchen.rank0.jsonl", "kitchen.rank1.jsonl", "predictions.rank0.csv", "predictions.rank1.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert lines(tmp_path / "kitchen.rank0.jsonl")[0]["timestamp"] == 0


def test_avas_csv_has_a_row_an_action_with_fractions_of_the_frame(tmp_path):
    write(PredictionWriter(tmp_path, ["csv"], person_threshold=0.3), [entry(), entry("garden", 2.0)])
    # (1.0, 2.0, 30.1, 40.0) of 40 x 50 pixels; the first person walks, the second does both.
    rows = (tmp_path / "predictions.csv").read_text().splitlines()
    assert rows[0] == "kitchen,0.5000,0.0250,0.0400,0.7525,0.8000,1,0.8123"
    assert [row.split(",")[:2] + row.split(",")[6:] for row in rows] == [
        ["kitchen", "0.5000", "1", "0.8123"],
        ["kitchen", "0.5000", "1", "0.9"],
        ["kitchen", "0.5000", "2", "0.9"],
        ["garden", "2.0000", "1", "0.8123"],
        ["garden", "2.0000", "1", "0.9"],
        ["garden", "2.0000", "2", "0.9"],
    ]


def read_mp4(path) -> tuple[list[float], list[np.ndarray], object]:
    """Times and pixels of all frames, and the stream."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
        return [time for time, _ in frames], [pixels for _, pixels in frames], stream.codec_context


def test_videos_play_in_browsers_and_keep_the_times_of_frames(tmp_path):
    entries = [tracked(frame, timestamp=time) for frame, time in enumerate((3.0, 3.125, 3.25, 9.25))]
    write(PredictionWriter(tmp_path, ["mp4"]), entries[:3], entries[3:])
    (path,) = tmp_path.iterdir()
    assert path.name == "kitchen.detections.mp4"
    times, frames, codec = read_mp4(path)
    assert times == pytest.approx([0.0, 0.125, 0.25, 6.25], abs=1e-3)
    assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
    assert frames[0].shape == (500, 400, 3)  # enlarged by a whole factor
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # a browser can begin before it has the whole file


def test_a_box_is_drawn_where_the_person_is_and_in_the_tracks_colour(tmp_path):
    found = {"track": 1, "box": [10.0, 20.0, 30.0, 40.0], "actions": {}}
    video = AnnotatedVideo(tmp_path / "a.mp4", (50, 40), crf=1)
    video.write(np.full((50, 40, 3), 90, np.uint8), 0.0, [found])
    video.write(np.full((50, 40, 3), 90, np.uint8), 0.1, [])
    video.close()
    _, (drawn, empty), _ = read_mp4(tmp_path / "a.mp4")
    assert np.abs(empty.astype(int) - 90).max() <= 4
    for row, column in ((200, 200), (400, 200), (300, 100), (300, 300)):  # the middles of the four edges
        red, _, blue = drawn[row, column].astype(int)
        assert blue - red > 80, (row, column)
    assert np.abs(drawn[300, 200].astype(int) - 90).max() <= 8


@pytest.mark.parametrize("size", [(51, 41), (1, 1), (2160, 3840), (5, 2000)])
def test_frames_of_any_size_become_a_video(tmp_path, size):
    video = AnnotatedVideo(tmp_path / "a.mp4", size)
    for second in range(2):
        found = {"box": [-5.0, -5.0, 1e4, 1e4], "actions": {"walk": 0.5}}
        video.write(np.zeros((*size, 3), np.uint8), float(second), [found])
    video.close()
    times, frames, _ = read_mp4(tmp_path / "a.mp4")
    assert times == pytest.approx([0, 1])
    assert all(side % 2 == 0 for side in frames[0].shape[:2])


def test_labels_name_the_track_and_its_actions_the_best_first():
    assert detection_text({"track": 3, "actions": {"walk": 0.25, "wave": 0.9}}) == "3 wave 0.90\nwalk 0.25"
    assert detection_text({"track": 0, "actions": {}}) == "0"
    assert detection_text({"actions": {"walk": 0.25}}) == "walk 0.25"


def test_another_frame_size_begins_another_video(tmp_path):
    writer = PredictionWriter(tmp_path, ["mp4"])
    writer.on_predict_start(TRAINER, None)
    for size in ((50, 40), (50, 40), (60, 40)):
        writer.on_predict_batch_end(TRAINER, None, [tracked(size=size)], batch_of(tracked()), 0)
    writer.on_predict_end(TRAINER, None)
    assert len(read_mp4(tmp_path / "kitchen.detections.mp4")[0]) == 2
    assert len(read_mp4(tmp_path / "kitchen.detections.2.mp4")[0]) == 1


def test_the_video_of_a_file_is_closed_when_the_next_begins(tmp_path):
    writer = PredictionWriter(tmp_path, ["mp4"])
    write(writer, [tracked(video="kitchen")], [tracked(video="garden")], end=False)
    assert len(read_mp4(tmp_path / "kitchen.detections.mp4")[0]) == 1
    writer.on_exception(TRAINER, None, KeyboardInterrupt())
    assert len(read_mp4(tmp_path / "garden.detections.mp4")[0]) == 1


def test_a_video_without_pictures_is_refused_with_the_way_out(tmp_path):
    writer = PredictionWriter(tmp_path, ["mp4"])
    writer.on_predict_start(TRAINER, None)
    with pytest.raises(ValueError, match=r"take mp4 out of the formats .*PredictDataModule"):
        writer.on_predict_batch_end(TRAINER, None, [entry()], SimpleNamespace(video_ids=("kitchen",)), 0)


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="formats are jsonl, csv and mp4, got gif"):
        PredictionWriter(tmp_path, ["gif"])
