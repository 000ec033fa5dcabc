"""Predictions as JSON lines: which detections, under which names, in which file."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import unicodedata
from concurrent.futures import wait
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from callbacks.files.annotated_video import AnnotatedVideo, detection_text
from callbacks.files.prediction_writer import PredictionWriter
from datamodules.errors import UserError
from datamodules.video.drawn_videos import is_drawn
from lightning_modules.evaluation.tracked import TrackedFrame, TrackedPerson
from tests.datamodules.miniature import numbered_frames
from tests.datamodules.written_videos import write_video

DATA = SimpleNamespace(class_names=("walk", "wave"))
TRAINER = SimpleNamespace(datamodule=DATA, world_size=1, global_rank=0)


BOXES = ((1.04, 2.0, 30.06, 40.0), (5.0, 6.0, 7.0, 8.0))
SCORES = ((0.81234567, 0.1), (0.9, 0.9))


def entry(
    video: str = "kitchen", timestamp: float = 0.5, persons: tuple[float, ...] = (0.9, 0.4), tracks=(None, None)
) -> TrackedFrame:
    """Two proposals of one frame."""
    rows = zip(tracks, BOXES, persons, SCORES, strict=True)
    people = [TrackedPerson(*row, dict(zip(DATA.class_names, scores, strict=True))) for *row, scores in rows]
    return TrackedFrame(video, timestamp, None, (50, 40), tuple(people))


def tracked(frame: int = 0, size: tuple[int, int] = (50, 40), **changes) -> TrackedFrame:
    """The same of a module that knows tracks and pictures: this one of a single colour."""
    picture = np.full((*size, 3), 90, np.uint8)
    return entry(tracks=(4, 11), **changes)._replace(frame=frame, picture=picture)


def batch_of(*entries: TrackedFrame) -> SimpleNamespace:
    """The batch that entries come from."""
    return SimpleNamespace(video_ids=tuple(e.video_id for e in entries))


def write(
    writer: PredictionWriter, *batches: list[TrackedFrame], trainer: SimpleNamespace = TRAINER, end: bool = True
) -> None:
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
    assert lines(tmp_path / "kitchen.jsonl") == [{"video": "kitchen", "timestamp": 0.5, "detections": [detection]}]


def test_a_frame_without_anybody_is_a_line_too(tmp_path):
    write(PredictionWriter(tmp_path), [entry(persons=(0.1, 0.2))])
    assert lines(tmp_path / "kitchen.jsonl") == [{"video": "kitchen", "timestamp": 0.5, "detections": []}]


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


def files_below(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_files_lie_in_folders_as_their_videos_do(tmp_path):
    """Videos of one name in two folders are named by their paths (datamodules/source_data.py)."""
    ids = ["/mnt/a/cam.1.mp4", "/mnt/b/cam.1.mp4", "v1.5", "cam/1", "cam_1", "../up", ""]
    write(PredictionWriter(tmp_path / "out"), [entry(video) for video in ids])
    assert files_below(tmp_path) == [
        "out/__/up.jsonl",
        "out/cam/1.jsonl",
        "out/cam_1.jsonl",
        "out/mnt/a/cam.1.mp4.jsonl",
        "out/mnt/b/cam.1.mp4.jsonl",
        "out/v1.5.jsonl",
        "out/video.jsonl",
    ]


LONG = "n" * 250
ALIKE = [
    ("cam/1", "cam_1"),
    ("A", "a"),
    ("Cam/x", "cam/x"),
    ("straße", "STRASSE"),
    ("caf\u00e9", "cafe\u0301"),  # one letter, or a letter and its accent: one name on macOS
    ("../x", "__/x"),
    ("/x", "x"),
    ("a//b", "a/b"),
    (LONG + "1", LONG + "2"),
    ("\udcff", "\\udcff"),  # a byte that is no UTF-8, and its escape
]


@pytest.mark.parametrize("ids", ALIKE, ids=ascii)
@pytest.mark.parametrize("formats", [["jsonl"], ["mp4"]])
def test_no_two_videos_share_a_file_whatever_the_file_system(ids, formats, tmp_path):
    batches = [[tracked(video=video)] for video in ids]
    write(PredictionWriter(tmp_path, formats), *batches, batches[0])
    names = files_below(tmp_path)
    assert (
        len({unicodedata.normalize("NFC", name).casefold() for name in names}) == len(names) == 2 + ("mp4" in formats)
    )
    assert max(len(os.fsencode(part)) for name in names for part in name.split("/")) <= 255
    if "jsonl" in formats:
        found = [[line["video"] for line in lines(tmp_path / name)] for name in names]
        assert sorted(found) == sorted([[ids[0]] * 2, [ids[1]]])


def test_a_changed_name_is_the_same_in_every_run(tmp_path):
    for run in ("one", "two"):
        write(PredictionWriter(tmp_path / run), [entry(video) for video in ("A", "a", LONG)])
    assert files_below(tmp_path / "one") == files_below(tmp_path / "two")
    cut = next(name for name in files_below(tmp_path / "one") if name.startswith("nnn"))
    write(PredictionWriter(tmp_path / "three"), [entry(LONG + "x"), entry(LONG)])
    assert cut in files_below(tmp_path / "three")


def test_every_line_names_its_video(tmp_path):
    """Names that are hard to write included."""
    ids = ["a,b", 'say "hi"', "two\nlines", "\udcff"]
    write(PredictionWriter(tmp_path, ["jsonl", "csv"]), [entry(video) for video in ids])
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        assert [row[0] for row in csv.reader(file)] == [*ids[:3], "\\udcff"]
    assert sorted(lines(path)[0]["video"] for path in tmp_path.glob("*.jsonl")) == sorted(ids)


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
    (closing,) = writer._closing
    closing.result(timeout=30)
    assert len(read_mp4(tmp_path / "kitchen.detections.mp4")[0]) == 1
    writer.on_exception(TRAINER, None, KeyboardInterrupt())
    assert len(read_mp4(tmp_path / "garden.detections.mp4")[0]) == 1


def test_a_video_without_pictures_is_refused_with_the_way_out(tmp_path):
    writer = PredictionWriter(tmp_path, ["mp4"])
    writer.on_predict_start(TRAINER, None)
    with pytest.raises(UserError, match=r"take mp4 out of the formats .*PredictDataModule"):
        writer.on_predict_batch_end(TRAINER, None, [entry()], SimpleNamespace(video_ids=("kitchen",)), 0)


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(UserError, match="formats are jsonl, csv and mp4, got gif"):
        PredictionWriter(tmp_path, ["gif"])


# ---------------------------------------------------------------------------------------------------------------------
# What lies where results go.


def reading(*files) -> SimpleNamespace:
    """A trainer that predicts on these files."""
    return SimpleNamespace(
        datamodule=SimpleNamespace(class_names=DATA.class_names, input_files=files), world_size=1, global_rank=0
    )


@pytest.mark.parametrize(
    ("formats", "name"),
    [(["mp4"], "a.detections.mp4"), (["jsonl"], "a.jsonl"), (["csv"], "predictions.csv")],
)
@pytest.mark.parametrize("way", ["itself", "soft link", "hard link"])
def test_an_input_is_never_written_to(formats, name, way, tmp_path):
    film = tmp_path / "results" / name if way == "itself" else tmp_path / "film.mp4"
    film.parent.mkdir(exist_ok=True)
    write_video(film.with_suffix(".mp4"), numbered_frames(4), 8)
    film.with_suffix(".mp4").rename(film)
    target = tmp_path / "results" / name
    target.parent.mkdir(exist_ok=True)
    if way == "soft link":
        target.symlink_to(film)
    if way == "hard link":
        target.hardlink_to(film)
    before = film.read_bytes()
    with pytest.raises(UserError, match=rf"{name}: is predicted on, so results cannot go there; choose another folder"):
        write(PredictionWriter(tmp_path / "results", formats), [tracked(video="a")], trainer=reading(film))
    assert film.read_bytes() == before


def test_a_video_that_prediction_did_not_draw_is_kept(tmp_path):
    film = tmp_path / "a.detections.mp4"
    write_video(film, numbered_frames(4), 8)
    before = film.read_bytes()
    with pytest.raises(
        UserError, match=r"a\.detections\.mp4: exists and is no result of an earlier prediction; remove"
    ):
        write(PredictionWriter(tmp_path, ["mp4"]), [tracked(video="a")])
    assert film.read_bytes() == before and not is_drawn(film)


def test_what_an_earlier_prediction_drew_is_replaced_with_its_later_parts(tmp_path, capsys):
    sizes = ((50, 40), (60, 40), (50, 40))
    parts = [tmp_path / f"kitchen.detections{part}.mp4" for part in ("", ".2", ".3")]
    write(PredictionWriter(tmp_path, ["mp4"]), *([tracked(size=size)] for size in sizes))
    assert all(map(is_drawn, parts)) and files_below(tmp_path) == sorted(path.name for path in parts)
    capsys.readouterr()
    write(PredictionWriter(tmp_path, ["mp4"]), [tracked(size=(60, 40))], [tracked(size=(60, 40), timestamp=1.0)])
    assert files_below(tmp_path) == [parts[0].name] and len(read_mp4(parts[0])[0]) == 2
    said = capsys.readouterr().out
    assert said.splitlines() == [
        f"replacing {parts[0]} of an earlier prediction",
        f"removing {parts[1]} of an earlier prediction",
        f"removing {parts[2]} of an earlier prediction",
        f"wrote {parts[0]}",
    ]


def test_the_video_of_a_lane_without_a_frame_stays_open_until_the_lane_shows_another(tmp_path):
    """Of many cameras a batch holds those that have a frame; a folder in their list shows one video after the other."""
    steps = [("door", "film/a"), ("door",), ("yard", "door"), ("film/a", "yard"), ("film/b",), ("door", "film/b")]
    lanes = {"door": 0, "yard": 1, "film/a": 2, "film/b": 2}
    writer = PredictionWriter(tmp_path, ["mp4"])
    writer.on_predict_start(TRAINER, None)
    drawn_on = []
    for number, names in enumerate(steps):
        frames = [tracked(number, video=name, timestamp=number / 8) for name in names]
        batch = SimpleNamespace(video_ids=names, lanes=tuple(lanes[name] for name in names))
        writer.on_predict_batch_end(TRAINER, None, frames, batch, number)
        drawn_on.append(sorted(writer._videos))
    writer.on_predict_end(TRAINER, None)
    assert drawn_on[3] == ["door", "film/a", "yard"] and drawn_on[4] == drawn_on[5] == ["door", "film/b", "yard"]
    counts = {name: len(read_mp4(tmp_path / f"{name}.detections.mp4")[0]) for name in lanes}
    assert counts == {"door": 4, "yard": 2, "film/a": 2, "film/b": 2}
    assert len(files_below(tmp_path)) == 4  # none in parts


@pytest.mark.parametrize("formats", [["jsonl"], ["csv"], ["mp4"]])
@pytest.mark.parametrize("place", ["file", "file/below", "folder as file", "/proc/self/nothing"])
def test_a_place_that_cannot_be_written_is_one_line_that_names_it(formats, place, tmp_path):
    (tmp_path / "file").touch()
    for name in ("a.jsonl", "predictions.csv", "a.detections.mp4"):
        (tmp_path / "folder as file" / name).mkdir(parents=True)
    with pytest.raises(UserError, match=place.split("/")[-1]) as error:
        write(PredictionWriter(tmp_path / place, formats), [tracked(video="a")])
    assert "\n" not in str(error.value) and "File exists" not in str(error.value)


def test_names_of_files_cannot_steer_a_terminal(tmp_path, capsys):
    write(PredictionWriter(tmp_path), [entry("a\x1b[2Jb")], [entry("\udcff")])
    assert capsys.readouterr().out.splitlines() == [
        f"wrote {tmp_path}/a\\x1b[2Jb.jsonl",
        f"wrote {tmp_path}/\\udcff.jsonl",
    ]


# ---------------------------------------------------------------------------------------------------------------------
# What is there when a program is killed, or a disk is full.

PREDICTS = """
import sys
sys.path.insert(0, "tests/callbacks/files")
from test_prediction_writer import PredictionWriter, TRAINER, batch_of, tracked
writer = PredictionWriter(sys.argv[1], ["jsonl", "csv", "mp4"])
writer.on_predict_start(TRAINER, None)
for number in range(10_000):
    frame = tracked(number, timestamp=number / 8)
    frame.picture[number % 40 :] += 50
    writer.on_predict_batch_end(TRAINER, None, [frame], batch_of(frame), number)
    print(number, flush=True)
"""


@pytest.mark.slow
def test_after_kill_9_everything_up_to_the_last_second_is_there(tmp_path):
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen([sys.executable, "-c", PREDICTS, str(tmp_path)], stdout=subprocess.PIPE, cwd=root) as process:
        for line in process.stdout:
            if int(line) == 30:
                break
        times = read_mp4(tmp_path / "kitchen.detections.mp4")[0]  # while it is written
        assert times[: 30 - 1] == pytest.approx([number / 8 for number in range(30 - 1)], abs=1e-3)
        os.kill(process.pid, signal.SIGKILL)
        done = int((process.stdout.read().split() or [line])[-1]) + 1
    times = read_mp4(tmp_path / "kitchen.detections.mp4")[0]
    assert done - 1 <= len(times) <= done + 1
    assert times == pytest.approx([number / 8 for number in range(len(times))], abs=1e-3)
    assert done <= len(lines(tmp_path / "kitchen.jsonl")) <= done + 1
    rows = (tmp_path / "predictions.csv").read_text()
    assert rows.endswith("\n") and done <= rows.count("\n") <= done + 1
    write(PredictionWriter(tmp_path, ["mp4"]), [tracked()])  # a file that was cut off makes way for the next run
    assert len(read_mp4(tmp_path / "kitchen.detections.mp4")[0]) == 1


def noisy(number: int, video: str = "kitchen", size: tuple[int, int] = (96, 128)) -> dict:
    """A frame that hardly shrinks."""
    pixels = np.random.default_rng(number).integers(0, 255, (*size, 3), np.uint8)
    return tracked(number, video=video, timestamp=number / 8)._replace(picture=pixels)


def fill(disk) -> None:
    with (disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))


def test_at_a_full_disk_a_video_can_be_played_up_to_the_last_second(small_disk):
    writer = PredictionWriter(small_disk, ["mp4"])
    writer.on_predict_start(TRAINER, None)
    for number in range(2):
        writer.on_predict_batch_end(TRAINER, None, [noisy(number)], batch_of(noisy(number)), number)
    with pytest.raises(UserError, match=r"kitchen\.detections\.mp4: cannot be written: No space left on device"):
        for number in range(2, 1000):
            writer.on_predict_batch_end(TRAINER, None, [noisy(number)], batch_of(noisy(number)), number)
    writer.on_exception(TRAINER, None, RuntimeError())
    times = read_mp4(small_disk / "kitchen.detections.mp4")[0]
    assert number - 2 <= len(times) <= number
    assert times == pytest.approx([number / 8 for number in range(len(times))], abs=1e-3)
    assert is_drawn(small_disk / "kitchen.detections.mp4")


def test_at_a_full_disk_lines_are_whole(small_disk):
    writer = PredictionWriter(small_disk, ["jsonl", "csv"])
    writer.on_predict_start(TRAINER, None)
    frame = tracked()
    writer.on_predict_batch_end(TRAINER, None, [frame], batch_of(frame), 0)
    fill(small_disk)
    with pytest.raises(UserError, match=r"(jsonl|csv): cannot be written: No space left on device"):
        for number in range(10_000):
            writer.on_predict_batch_end(TRAINER, None, [frame], batch_of(frame), number)
    assert len(lines(small_disk / "kitchen.jsonl")) > 1
    assert (small_disk / "predictions.csv").read_text().endswith("\n")


def test_a_file_that_cannot_be_closed_does_not_lose_the_others_and_is_named(tmp_path, monkeypatch, recwarn):
    names = ("attic", "bath", "cellar")

    def started() -> PredictionWriter:
        writer = PredictionWriter(tmp_path, ["mp4"])
        writer.on_predict_start(TRAINER, None)
        entries = [tracked(number, video=name, timestamp=number / 8) for number in range(3) for name in names]
        writer.on_predict_batch_end(TRAINER, None, entries, batch_of(*entries), 0)
        return writer

    close = AnnotatedVideo.close

    def fails(video: AnnotatedVideo) -> None:
        close(video)
        if video.path.name.startswith(("attic", "bath")):
            raise UserError("cannot be written: Input/output error", where=video.path)

    monkeypatch.setattr(AnnotatedVideo, "close", fails)
    with pytest.raises(UserError, match=r"attic\.detections\.mp4: .*; .*bath\.detections\.mp4: ") as error:
        started().on_predict_end(TRAINER, None)
    assert "cellar" not in str(error.value)
    assert [len(read_mp4(tmp_path / f"{name}.detections.mp4")[0]) for name in names] == [3, 3, 3]
    started().on_exception(TRAINER, None, KeyboardInterrupt())  # whose own error must not be replaced
    assert sum("Input/output error" in str(warning.message) for warning in recwarn) == 2
    assert [len(read_mp4(tmp_path / f"{name}.detections.mp4")[0]) for name in names] == [3, 3, 3]


@pytest.fixture
def slow_close(monkeypatch) -> threading.Event:
    """Videos are closed, and one called attic fails to be, once the event is set."""
    go_on, close = threading.Event(), AnnotatedVideo.close

    def waits(video: AnnotatedVideo) -> None:
        assert go_on.wait(30)
        close(video)
        if video.path.name.startswith("attic"):
            raise UserError("cannot be written: Input/output error", where=video.path)

    monkeypatch.setattr(AnnotatedVideo, "close", waits)
    return go_on


def test_frames_go_on_while_the_video_of_an_earlier_size_is_closed_and_the_end_waits_for_it(tmp_path, slow_close):
    writer = PredictionWriter(tmp_path, ["mp4", "jsonl"])
    write(writer, *([tracked(size=size)] for size in ((50, 40), (60, 40), (60, 40))), end=False)
    assert len(lines(tmp_path / "kitchen.jsonl")) == 3
    slow_close.set()
    writer.on_predict_end(TRAINER, None)
    counts = [len(read_mp4(tmp_path / f"kitchen.detections{part}.mp4")[0]) for part in ("", ".2")]
    assert counts == [1, 2] and not any(thread.name.startswith("close videos") for thread in threading.enumerate())


def test_a_video_that_cannot_be_closed_beside_prediction_is_named_at_the_next_one_or_at_the_end(tmp_path, slow_close):
    slow_close.set()
    attic, bath, cellar = ([tracked(video=name)] for name in ("attic", "bath", "cellar"))
    writer = PredictionWriter(tmp_path, ["mp4"])
    write(writer, attic, bath, end=False)
    with pytest.raises(UserError, match=r"attic\.detections\.mp4: cannot be written"):
        writer.on_predict_end(TRAINER, None)
    write(writer, attic, bath, end=False)
    wait([*writer._closing], timeout=30)
    with pytest.raises(UserError, match=r"attic\.detections\.mp4: cannot be written"):
        writer.on_predict_batch_end(TRAINER, None, cellar, batch_of(*cellar), 2)
    writer.on_exception(TRAINER, None, UserError("the one above"))
    assert [len(read_mp4(tmp_path / f"{name}.detections.mp4")[0]) for name in ("attic", "bath", "cellar")] == [1, 1, 1]


def test_a_disk_that_is_full_at_the_end_leaves_a_video_that_can_be_played(small_disk):
    """There is no space for a second copy with its index in front."""
    video = AnnotatedVideo(small_disk / "a.mp4", (96, 128))
    for number in range(2):
        video.write(noisy(number).picture, number / 8, [])
    fill(small_disk)
    with pytest.raises(UserError, match=r"a\.mp4: cannot be written: No space left"):
        video.close()
    assert len(read_mp4(small_disk / "a.mp4")[0]) == 1
