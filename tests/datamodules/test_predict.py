"""Files, folders and cameras as streams to predict on: which frames, when, and what happens to broken ones."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from callbacks.files.annotated_video import AnnotatedVideo
from datamodules.errors import UserError
from datamodules.live.stopping import stopped_by_signals
from datamodules.predict import PredictDataModule
from datamodules.video.drawn_videos import is_drawn
from datamodules.video.listing import VideoError
from datamodules.video.source_files import files_of
from tests.datamodules.live.network_camera import Connection, ScriptedSource, network_camera
from tests.datamodules.miniature import numbered_frames, read_numbers, write_pictures
from tests.datamodules.written_videos import write_video
from tests.flat_data import predict_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of videos: 21 frames at 8 a second, 12 in a sub-folder at 16, a file cut short, one of another kind."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "long.mp4", numbered_frames(21), 8)
    write_video(folder / "sub" / "short.mkv.mp4", numbered_frames(12, 128, 96), 16)
    (folder / "broken.mp4").write_bytes((folder / "long.mp4").read_bytes()[:900])
    (folder / "notes.txt").write_text("not a video")
    return folder


def opened(source, **settings) -> PredictDataModule:
    settings = {"classes": ["walk", "wave"], "frame_stride": 2, "frame_rate": 8.0, "chunk_frames": 4, **settings}
    data = predict_data(str(source), **settings)
    data.setup("predict")
    return data


def read(data: PredictDataModule) -> dict[str, list[int]]:
    """The numbers that the pictures of each video carry; checks what every batch must fulfil."""
    seen: dict[str, list[int]] = {}
    for batch in data.predict_dataloader():
        (video_id,) = batch.video_ids
        assert bool(batch.is_first) == (video_id not in seen)
        assert batch.is_valid.all() and not batch.annotated.any()
        assert batch.frames.shape[1] == len(batch.pictures) == batch.frame_indices.shape[1]
        numbers = read_numbers(np.stack(batch.pictures))
        assert batch.frame_indices[0].tolist() == numbers
        seen.setdefault(video_id, []).extend(numbers)
    return seen


def test_a_file_is_sampled_at_the_pace_of_the_network(folder):
    data = opened(folder / "long.mp4")
    assert len(data.predict_dataloader()) == 3
    assert read(data) == {"long": list(range(0, 21, 2))}
    twice_as_fast = opened(folder / "sub" / "short.mkv.mp4")
    assert read(twice_as_fast) == {"short.mkv": [0, 4, 8]}


def test_batches_hold_small_frames_and_original_pictures_with_their_times(folder):
    (batch, *_) = opened(folder / "long.mp4", short_side=64).predict_dataloader()
    assert batch.frames.shape == (1, 4, 3, 64, 96)
    assert batch.image_sizes.tolist() == [[64, 85]]
    assert batch.original_sizes.tolist() == [[96, 128]]
    assert batch.pictures[0].shape == (96, 128, 3)
    assert batch.timestamps.tolist() == [[0.0, 0.25, 0.5, 0.75]]
    assert batch.capture is None


def test_a_folder_is_read_whole_and_a_broken_file_is_told(folder):
    with pytest.warns(UserWarning, match=r"left out: .*broken\.mp4"):
        data = opened(folder)
    assert read(data) == {"long": list(range(0, 21, 2)), "sub/short.mkv": [0, 4, 8]}


def test_a_file_that_breaks_off_while_it_is_read_does_not_end_the_run(folder, tmp_path):
    write_video(tmp_path / "a.mp4", numbered_frames(600), 8)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    write_video(tmp_path / "b.mp4", numbered_frames(3), 8)
    opened_before = opened(tmp_path, frame_stride=1)
    middle = len(data) // 3
    data[middle : 2 * middle] = os.urandom(middle)
    os.utime(tmp_path / "a.mp4")
    (tmp_path / "a.mp4").write_bytes(data)
    with pytest.warns(UserWarning, match=r"a\.mp4"):
        seen = [batch.video_ids[0] for batch in opened_before.predict_dataloader()]
    assert seen[-1] == "b"


def test_every_frame_before_damage_is_read_whatever_the_size_of_a_chunk(tmp_path):
    write_video(tmp_path / "a.mp4", numbered_frames(64), 8)
    whole = (tmp_path / "a.mp4").read_bytes()
    with av.open(str(tmp_path / "a.mp4")) as container:
        places = sorted((packet.dts, packet.pos) for packet in container.demux(video=0) if packet.size)
    place = places[45][1]  # h264 tells the length of a picture first
    (tmp_path / "a.mp4").write_bytes(whole[:place] + b"\xff" * 64 + whole[place + 64 :])
    numbers = {}
    for chunk_frames in (1, 16):
        data = opened(tmp_path / "a.mp4", frame_stride=1, chunk_frames=chunk_frames)
        with pytest.warns(UserWarning, match=r"read only in part: .*a\.mp4"):
            batches = list(data.predict_dataloader())
        assert [bool(batch.is_last) for batch in batches] == [False] * (len(batches) - 1) + [True]
        numbers[chunk_frames] = [n for batch in batches for n in batch.frame_indices[batch.is_valid].tolist()]
    assert len(numbers[1]) % 16 > 0
    assert numbers[16] == numbers[1] == list(range(len(numbers[1])))


def test_a_broken_file_alone_is_an_error(folder):
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        opened(folder / "broken.mp4")


def test_a_folder_of_numbered_pictures_is_a_video(tmp_path):
    pictures = write_pictures(tmp_path / "trip", 9, "img_{:05d}.jpg")
    data = opened(pictures, picture_rate=8.0)
    assert read(data) == {"trip": [0, 2, 4, 6, 8]}
    assert read(opened(pictures, picture_rate=4.0)) == {"trip": list(range(9))}


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a.mp4", "b.MP4", "sub/a.mkv", "sub_a.mp4"], ["a", "b", "sub/a", "sub_a"]),
        (["a.mp4", "a.MOV", "b.avi"], ["a.MOV", "a.mp4", "b.avi"]),
        (["A.mp4", "a.mov"], ["A.mp4", "a.mov"]),  # one name where the file system does not tell "A" from "a"
        (["a.mp4", "a.mov", "a.mp4.avi"], ["a.mov", "a.mp4", "a.mp4.avi"]),
        (["a.mp4", ".b.mp4", "._a.mp4", ".trash/c.mp4", ".1a2b-3c4d-5.partial.mp4"], ["a"]),
        (["a.mp4", "notes.txt", "b.mp4.txt"], ["a"]),
    ],
)
def test_a_folders_videos_are_named_by_their_places(files, names, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [name for name, _ in files_of(str(tmp_path), 30)] == names


def test_results_beside_the_videos_do_not_become_inputs(folder, tmp_path, caplog):
    """The annotated ones too, also while they are written and where a writer was killed."""
    for name in ("a", "sub/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "long.mp4", tmp_path / f"{name}.mp4")
        drawn = AnnotatedVideo(tmp_path / f"{name}.detections.mp4", (96, 128))
        drawn.write(np.zeros((96, 128, 3), np.uint8), 0.0, [])
        if name == "a":
            drawn.close()
    shutil.copy(folder / "long.mp4", tmp_path / "mine.detections.mp4")  # of this name, but somebody's film
    data = opened(tmp_path)
    assert [video.video_id for video in data.stream.videos] == ["a", "mine.detections", "sub/b"]
    assert data.input_files == (tmp_path / "a.mp4", tmp_path / "mine.detections.mp4", tmp_path / "sub" / "b.mp4")
    assert "left out 2 files that earlier predictions drew" in caplog.text
    assert [name for name, _ in files_of(str(tmp_path / "a.detections.mp4"), 30)] == ["a.detections"]  # as asked for


def test_what_a_killed_writer_leaves_is_no_input_however_early_it_was_killed(tmp_path):
    path = tmp_path / "a.detections.mp4"
    drawn = AnnotatedVideo(path, (96, 128))
    assert path.stat().st_size == 0 and is_drawn(path)
    for number in range(3):
        drawn.write(np.full((96, 128, 3), number, np.uint8), number / 8, [])
        assert is_drawn(path)
    drawn.close()
    assert is_drawn(path)
    path.rename(tmp_path / "renamed.mp4")  # on purpose, to predict on it
    assert not is_drawn(tmp_path / "renamed.mp4") and not is_drawn(path)


def test_every_file_of_a_folder_is_an_input_though_another_process_reads_it_or_it_is_broken(folder):
    with pytest.warns(UserWarning, match="left out"):
        files = [of_rank(folder, rank).input_files for rank in range(2)]
    assert [path.name for path in files[0]] == ["broken.mp4", "long.mp4", "short.mkv.mp4"] and files[0] == files[1]


def test_a_folder_of_broken_files_is_an_error_that_counts_them(folder, tmp_path):
    for name in "ab":
        shutil.copy(folder / "broken.mp4", tmp_path / f"{name}.mp4")
    with pytest.raises(VideoError, match=r"none of its 2 videos can be read; the first: .*a\.mp4"):
        opened(tmp_path)


def test_what_is_no_source_is_told_with_the_way_out(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.mp4: no such source; name a video file"):
        opened("nowhere.mp4")
    with pytest.raises(UserError, match=r"nothing to predict on; name a video file.*--data\.source X"):
        predict_data(None, ["walk"])
    with pytest.raises(UserError, match="holds neither videos nor numbered pictures"):
        opened(tmp_path)


@pytest.mark.parametrize("settings", [{"max_frames": 5}, {"max_seconds": 1.2}])
def test_a_run_can_be_limited(folder, settings):
    assert read(opened(folder / "long.mp4", **settings)) == {"long": [0, 2, 4, 6, 8]}


@pytest.mark.parametrize("name", ["frame_stride", "frame_rate", "max_frames", "queue_frames", "stall_seconds"])
def test_a_setting_without_sense_is_named(name):
    with pytest.raises(UserError, match=f"{name} must be above 0, got -1"):
        predict_data("film.mp4", ["walk"], **{name: -1})


def test_class_names_come_from_a_list_or_a_file(tmp_path):
    # As Windows' editor saves it; a line separator inside a name is refused.
    (tmp_path / "classes.txt").write_bytes("\ufeffwalk\r\nslow\u2028wave\r\n\r\n".encode())
    with pytest.raises(UserError, match=r"classes\.txt: line 2 holds the line break"):
        predict_data("film.mp4", str(tmp_path / "classes.txt"))
    (tmp_path / "classes.txt").write_bytes("\ufeffwalk\r\nslow wave\r\n\r\n".encode())
    data = predict_data("film.mp4", str(tmp_path / "classes.txt"))
    assert (data.class_names, data.num_classes) == (("walk", "slow wave"), 2)
    with pytest.raises(UserError, match=r"nowhere\.txt: no such list of classes"):
        predict_data("film.mp4", "nowhere.txt")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.txt: "):
        predict_data("film.mp4", str(tmp_path / "latin.txt"))
    with pytest.raises(UserError, match="the class 'walk' is there 2 times"):
        predict_data("film.mp4", ["walk", "walk"])
    with pytest.raises(UserError, match="there must be class names"):
        predict_data("film.mp4", [" "])


def test_there_is_nothing_to_train_on(folder):
    with pytest.raises(UserError, match="nothing to fit; use predict"):
        predict_data(str(folder), ["walk"]).setup("fit")


def of_rank(source, rank: int) -> PredictDataModule:
    """As one process of two has it."""
    data = predict_data(str(source), ["walk", "wave"], frame_stride=2, frame_rate=8.0)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
    data.setup("predict")
    return data


@pytest.mark.filterwarnings("ignore:left out")
def test_processes_share_the_files_of_a_folder(folder):
    assert [list(read(of_rank(folder, rank))) for rank in range(2)] == [["long"], ["sub/short.mkv"]]


def test_a_camera_is_read_by_one_process():
    with pytest.raises(UserError, match=r"camera_0: can be read by one process, not 2; set --trainer\.devices 1"):
        of_rank("0", 0)


@pytest.fixture
def interruptible():
    """Ctrl-C is heard, as on a terminal: what a shell starts in the background has it ignored. So is SIGTERM."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_ctrl_c_in_a_file_stops_behind_what_has_been_read_and_is_raised_then(folder, interruptible):
    batches = []
    with pytest.raises(KeyboardInterrupt):
        for batch in opened(folder / "long.mp4", chunk_frames=1).predict_dataloader():
            batches.append(batch)
            if len(batches) == 3:
                os.kill(os.getpid(), signal.SIGINT)
    assert 3 <= len(batches) <= 5  # what has been read ahead still comes


def test_the_second_ctrl_c_is_as_usual(interruptible):
    stop = threading.Event()
    with pytest.raises(KeyboardInterrupt), stopped_by_signals(stop):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def live(*connections, **settings) -> list:
    """The batches of a scripted source."""
    data = opened("0", frame_stride=1, frame_rate=1e6, queue_frames=99, **settings)
    data.stream.live = ScriptedSource(*connections)
    return without_end(data)


def without_end(data: PredictDataModule) -> list:
    """The batches but the last one, which ends the stream."""
    *batches, end = data.predict_dataloader()
    assert end.is_last.all() and not end.is_valid.any()
    return batches


def test_every_live_stream_ends_with_a_chunk_that_adds_no_frame_and_shows_the_last_one():
    data = predict_data(["0", "1"], classes=["walk"], frame_stride=1, frame_rate=1e6, max_frames=3, queue_frames=99)
    data.setup("predict")
    for number, stream in enumerate(data.stream.streams):
        stream.live = ScriptedSource([(0.01, None, np.full((32, 32, 3), number, np.uint8))] * 10)
    *_, one, other = data.predict_dataloader()
    assert {one.lanes, other.lanes} == {(0,), (1,)} and {one.video_ids, other.video_ids} == {
        ("camera_0",),
        ("camera_1",),
    }
    for end in (one, other):
        assert end.is_last.tolist() == [True] and end.is_valid.tolist() == [[False]] and not end.is_first.any()
        assert int(end.frames.amax()) == end.lanes[0] == int(end.pictures[0].max())


def test_a_live_source_that_is_lost_for_good_has_an_end_before_the_error():
    data = opened("0", frame_stride=1, frame_rate=1e6, queue_frames=99, reconnect_attempts=0)
    data.stream.live = ScriptedSource([(0.01, None, np.zeros((32, 32, 3), np.uint8))] * 2)
    batches = []
    with pytest.raises(VideoError, match="scripted: lost"):
        batches.extend(data.predict_dataloader())
    assert [bool(batch.is_last) for batch in batches] == [False, False, True]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("source", ["0", ["0", "1"]], ids=["one", "many"])
def test_ctrl_c_is_the_end_of_live_streams_and_sigterm_is_raised_at_it(source, number, interruptible):
    data = predict_data(source, classes=["walk"], frame_stride=1, frame_rate=1e6)
    data.setup("predict")
    for stream in getattr(data.stream, "streams", [data.stream]):
        stream.live = ScriptedSource([(0.01, None, np.zeros((32, 32, 3), np.uint8))] * 1000)
    seen = 0
    with nullcontext() if number == signal.SIGINT else pytest.raises(KeyboardInterrupt):
        for _ in data.predict_dataloader():
            seen += 1
            if seen == 3:
                os.kill(os.getpid(), number)
    assert 3 <= seen < 100


def test_a_live_frame_is_a_batch_that_says_how_it_came():
    picture = np.full((48, 64, 3), 7, np.uint8)
    batches = live([(0.01, None, picture)] * 5, max_frames=3, short_side=32)
    assert [batch.is_first.tolist() for batch in batches] == [[True], [False], [False]]
    assert [int(batch.frame_indices) for batch in batches] == [0, 1, 2]
    assert batches[0].video_ids == ("scripted",)
    assert batches[0].frames.shape == (1, 1, 3, 32, 64)
    received = torch.cat([batch.capture.received for batch in batches]).flatten()
    assert (received.diff() > 0).all()
    assert (batches[-1].capture.dropped, batches[-1].capture.reconnections) == (0, 0)


def test_a_live_stream_starts_anew_after_a_long_gap_and_with_another_size(caplog):
    small, large = np.zeros((32, 32, 3), np.uint8), np.zeros((64, 32, 3), np.uint8)
    steps = [(0, 0.0, small), (0, 0.1, small), (0.4, 0.5, small), (0, 0.6, small), (0, 0.7, large), (0, 0.8, large)]
    batches = live(steps, max_frames=6, max_gap_seconds=0.3)
    assert [bool(batch.is_first) for batch in batches] == [True, False, True, False, True, False]
    assert "scripted: starts anew after 0.1 s with 32x64 pixels" in caplog.text


def live_and_slow(steps, **settings) -> list:
    """The first two batches of a scripted source; the model takes half a second for the first."""
    data = opened("0", frame_stride=1, frame_rate=1e6, **settings)
    data.stream.live = ScriptedSource(steps)
    batches = iter(data.predict_dataloader())
    first = next(batches)
    time.sleep(0.5)
    second = next(batches)
    data.stream.stop.set()
    return [first, second]


def test_a_model_that_is_slower_than_the_longest_gap_does_not_start_a_stream_anew():
    batches = live_and_slow([(0.02, None, np.zeros((32, 32, 3), np.uint8))] * 1000, max_gap_seconds=0.3)
    assert float(batches[1].timestamps) > 0.3
    assert [bool(batch.is_first) for batch in batches] == [True, False]


def test_a_gap_starts_a_stream_anew_though_the_frame_behind_it_was_dropped():
    steps = [(wait, stamp, np.zeros((32, 32, 3), np.uint8)) for wait, stamp in ((0, 0.0), (0.1, 0.9), (0, 1.0))]
    batches = live_and_slow([*steps, (9, None, None)], max_gap_seconds=0.5)
    assert float(batches[1].timestamps) == 1.0 and batches[1].capture.dropped == 1
    assert [bool(batch.is_first) for batch in batches] == [True, True]


def test_a_short_loss_does_not_start_a_stream_anew(tmp_path):
    write_video(tmp_path / "film.mp4", numbered_frames(30), 20)
    with network_camera(Connection(tmp_path / "film.mp4", 0, 6), Connection(tmp_path / "film.mp4", 10, 20)) as address:
        data = opened(address, frame_stride=1, frame_rate=1e6, queue_frames=99, max_frames=15)
        batches = without_end(data)
    assert [bool(batch.is_first) for batch in batches] == [True] + [False] * 14
    assert batches[-1].capture.reconnections == 1
    assert batches[0].video_ids == ("127.0.0.1_live",)


def test_a_live_source_ends_after_its_time():
    assert len(live([(0, 0.0, np.zeros((32, 32, 3), np.uint8)), (9, None, None)], max_seconds=0.3)) == 1
