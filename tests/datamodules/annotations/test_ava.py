"""AVA as it is published: label map with holes, exclusions, pictures or files, and whatever of it is there."""

import csv
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from datamodules.annotations.ava import Ava, read_label_map, read_moments
from datamodules.errors import UserError
from datamodules.video.picture_folder import PictureFolder
from tests.datamodules.miniature import encode, numbered_frames, read_numbers, write_pictures
from tests.datamodules.miniature_ava import SCORED, arguments, write_ava
from tests.datamodules.written_videos import write_video
from tests.flat_data import clip_data

DATA = Path(__file__).parents[4] / "shared/data"
REAL = DATA / "ava/annotations"
EXCLUDED = "ava_val_excluded_timestamps_v2.1.csv"
needs_data = pytest.mark.skipif(not REAL.exists(), reason="real annotations are not on this machine")


@pytest.fixture
def root(tmp_path):
    return write_ava(tmp_path)


def ava(root: Path, **changes) -> Ava:
    return Ava(**{**arguments(root), **changes})


def seconds(source: Ava, split: str) -> dict[str, list[float]]:
    return {video.video_id: [k.timestamp for k in video.keyframes] for video in source.videos(split)}


def test_annotated_seconds_count_from_the_beginning_of_the_pictures(root):
    source = ava(root)
    source.prepare()
    assert seconds(source, "train") == {"one": [2.0, 3.0]}
    (video,) = source.videos("train")
    assert video.path == PictureFolder(root / "frames/one", 10)
    standing, bending = video.keyframes[0].labels
    assert np.flatnonzero(standing).tolist() == [1, 11] and np.flatnonzero(bending).tolist() == [0]
    np.testing.assert_allclose(video.keyframes[0].boxes, [[0.125, 0.25, 0.375, 0.75], [0.5, 0.25, 0.875, 1]])


def test_excluded_seconds_are_left_out_of_evaluation_alone(root):
    assert seconds(ava(root), "val") == seconds(ava(root), "test") == {"two": [2.0]}
    assert seconds(ava(root), "train") == {"one": [2.0, 3.0]}
    assert seconds(ava(root, excluded=None), "val") == {"two": [2.0, 3.0]}


def test_all_80_actions_are_trained_and_those_of_the_list_are_scored(root):
    source = ava(root)
    names = source.class_names()
    assert len(names) == 80
    assert {number: names[number - 1] for number in SCORED} == SCORED
    assert names[1] == "action 2"
    assert source.evaluated_classes() == (0, 11, 16, 79)


def test_actions_that_are_not_scored_may_be_named_too(root):
    everything = root / "all.pbtxt"
    everything.write_text('label {\n  name: "crawl"\n  label_id: 2\n  label_type: PERSON_MOVEMENT\n}\n')
    source = ava(root, action_names=everything)
    assert source.class_names()[1] == "crawl" and source.class_names()[11] == "stand"
    assert source.evaluated_classes() == (0, 11, 16, 79)


def test_the_keyframe_is_found_by_its_time_at_any_frame_rate(root):
    for rate, name in ((10.0, "one"), (25.0, "fast"), (29.97, "ntsc")):
        write_pictures(root / "frames" / name, round(4 * rate), f"{name}_{{:06d}}.jpg")
    write_video(root / "frames" / "file.mkv", numbered_frames(96), fps=24)
    rows = [f"{name},{second},0,0,1,1,12,0\n" for name in ("one", "fast", "ntsc", "file") for second in (902, 903)]
    (root / "annotations/train.csv").write_text("".join(rows))
    source = ava(root, frame_rates={"fast": 25.0, "ntsc": 29.97})
    data = clip_data(source, num_frames=4, frame_stride=2, batch_size=1, cache=None, horizontal_flip=0)
    data.setup("fit")
    shown = {}
    for batch in data.train_dataloader():
        clip = batch.frames[0].permute(0, 2, 3, 1).numpy()
        shown[batch.video_ids[0], float(batch.timestamps[0, 0])] = read_numbers(clip[..., :128, :])
    keyframes = {"one": (20, 30), "fast": (50, 75), "ntsc": (60, 90), "file": (48, 72)}  # 29.97 * 2 = 59.94
    assert shown == {
        (name, float(second)): [frame - 4, frame - 2, frame, frame + 2]
        for name, frames in keyframes.items()
        for second, frame in zip((2, 3), frames, strict=True)
    }


def test_a_clip_is_evads_16_frames_from_32_before_to_28_after_its_keyframe_clamped_to_the_video(tmp_path):
    root = write_ava(tmp_path, seconds=5, frame_rate=30)
    data = clip_data(ava(root, frame_rate=30.0, excluded=None), num_frames=16, frame_stride=4, batch_size=1, cache=None)
    data.setup("validate")
    by_time = {float(batch.timestamps[0, 0]): batch for batch in data.val_dataloader()}
    assert list(by_time) == [2, 3, 4]
    for time, batch in by_time.items():
        assert batch.keyframes == (8,)
        centre = round(time) * 30
        expected = [min(max(index, 0), 149) for index in range(centre - 32, centre + 29, 4)]
        assert read_numbers(batch.frames[0].permute(0, 2, 3, 1).numpy()) == expected
    assert len(expected) == 16 and expected[-1] == 148
    first = clip_data(ava(root, frame_rate=30.0, start_seconds=902), num_frames=16, batch_size=1, cache=None)
    first.setup("validate")
    batch = next(iter(first.val_dataloader()))
    assert read_numbers(batch.frames[0].permute(0, 2, 3, 1).numpy()) == [0] * 9 + list(range(4, 29, 4))


def test_missing_videos_are_named_once_and_the_rest_is_used(root):
    with (root / "annotations/train.csv").open("a") as file:
        file.writelines(f"{name},0902,0.1,0.1,0.9,0.9,12,0\n" for name in ("gone", "-away"))
    source = ava(root)
    with pytest.warns(UserWarning) as warned:
        for _ in range(2):
            assert list(seconds(source, "train")) == ["one"]
    assert len(warned) == 1
    assert "train.csv: 2 of 3 videos are not in" in str(warned[0].message)
    assert str(warned[0].message).endswith(": -away, gone")


def test_nothing_missing_is_nothing_said(root):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = ava(root)
        assert len(source.videos("train")) == len(source.videos("val")) == 1


def test_unreadable_videos_are_named_and_the_rest_is_used(root):
    (root / "frames/broken.mp4").write_text("no video")
    (root / "frames/empty").mkdir()
    with (root / "annotations/train.csv").open("a") as file:
        file.writelines(f"{name},0902,0.1,0.1,0.9,0.9,12,0\n" for name in ("broken", "empty"))
    with pytest.warns(UserWarning, match=r"2 videos cannot be read .*broken\.mp4: not a readable.*empty: holds no"):
        assert list(seconds(ava(root), "train")) == ["one"]


def test_seconds_after_the_last_frame_are_left_out_and_their_video_is_named(root):
    with (root / "annotations/train.csv").open("a") as file:
        file.writelines(f"one,{second},0.1,0.1,0.9,0.9,12,0\n" for second in (904, 905))
    # The last of 40 pictures is shown at 3.9 s, near enough to second 4.
    with pytest.warns(UserWarning, match=r"1 videos have .*frame_rates\): one \(1 of 4, has frames until 4 s\)"):
        assert seconds(ava(root), "train") == {"one": [2.0, 3.0, 4.0]}


def test_seconds_within_a_gap_of_the_pictures_are_left_out(root):
    for number in range(12, 29):  # 1.1 s to 2.7 s
        (root / "frames/one" / f"one_{number:06d}.jpg").unlink()
    with pytest.warns(UserWarning) as warned:
        assert seconds(ava(root), "train") == {"one": [3.0]}
    pictures, moments = (str(warning.message) for warning in warned)
    assert "17 of 40 pictures are missing" in pictures and "one_000012.jpg" in pictures
    assert "one (1 of 2, has frames until 4 s)" in moments


def test_a_whole_film_read_as_if_it_were_cut_is_refused(root):
    folder = root / "frames/one"
    (folder / "one_018001.jpg").write_bytes((folder / "one_000001.jpg").read_bytes())  # at 1,800 s
    with pytest.warns(UserWarning, match="pictures are missing"), pytest.raises(UserError, match="start_seconds to 0"):
        ava(root).videos("train")
    with (
        pytest.warns(UserWarning, match=r"two \(1 of 1"),
        pytest.raises(UserError, match="start_seconds=0 must be the time in the csv"),
    ):
        ava(root, start_seconds=0).videos("val")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("videos", "nowhere: no such folder of videos, or of folders of pictures"),
        ("label_map", "nowhere: no such file; AVA's annotations"),
        ("train", "nowhere: no such file"),
        ("val", "nowhere: no such file"),
        ("excluded", "nowhere: no such file"),
    ],
)
def test_a_file_that_is_not_there_is_named_before_anything_else(root, argument, message):
    with pytest.raises(UserError, match=message):
        ava(root, **{argument: "nowhere"}).prepare()


def test_a_folder_without_any_of_the_videos_is_named_with_what_it_should_hold(root):
    (root / "other").mkdir()
    with pytest.raises(UserError, match=r"other: holds none of the 1 videos of .*train\.csv, neither a folder one"):
        ava(root, videos=root / "other").videos("train")
    with pytest.raises(UserError, match=r"set data\.init_args\.source\.init_args\.train"):
        ava(root, train=None).videos("train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('item { name: "a" id: 81 }', r"action id 81 \(a\) is not one of 1\.\.80"),
        ('item { name: "a" id: 3 } item { name: "b" id: 3 }', r"action id 3 \(b\) is there twice"),
        ('item { name: "a" }', r'lacks its name or its id: name: "a"'),
        ("walk\nrun\n", "holds no action"),
    ],
)
def test_a_label_map_that_cannot_be_meant_is_refused(tmp_path, text, message):
    (tmp_path / "map.pbtxt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_label_map(tmp_path / "map.pbtxt")


def test_actions_of_one_name_are_told_apart_by_their_ids(tmp_path):
    (tmp_path / "map.pbtxt").write_text('item { name: "a" id: 3 } item { name: "b" id: 4 } item { name: "a" id: 80 }')
    names = Ava(tmp_path, tmp_path / "map.pbtxt").class_names()
    assert (names[2], names[3], names[79]) == ("a (3)", "b", "a (80)")
    assert len(set(names)) == 80


def test_a_video_that_is_there_as_two_files_is_refused_and_pictures_come_before_files(root):
    (video,) = ava(root).videos("train")
    assert isinstance(video.path, PictureFolder)
    folder = video.path.path.parent
    for ending in (".mp4", ".webm"):
        (folder / f"{video.video_id}{ending}").touch()
    assert ava(root).videos("train")[0].path == video.path
    video.path.path.rename(root / "elsewhere")
    with pytest.raises(UserError, match=r"several videos are called one: .*one\.mp4, .*one\.webm; keep one of them"):
        ava(root).videos("train")


@needs_data
def test_the_real_label_map_has_60_of_80_actions():
    actions = read_label_map(REAL / "ava_action_list_v2.1_for_activitynet_2018.pbtxt")
    listed = json.loads((REAL / "ava_actions_80.json").read_text())
    assert actions == {entry["id"]: entry["name"] for entry in listed if entry["evaluated"]}
    assert len(actions) == 60
    fixture = read_label_map(DATA / "mmaction2_fixtures/ava_dataset/action_list.txt")
    assert list(fixture) == [12, 17, 79, 80]


@needs_data
def test_the_real_exclusions_are_read():
    moments = read_moments(REAL / EXCLUDED)
    assert len(moments) == 37
    assert ("5BDj0ow5hnA", 1038.0) in moments


@needs_data
def test_the_real_rows_of_a_video_become_its_keyframes(tmp_path):
    name = "1j20qq1JyX4"
    write_pictures(tmp_path / name, 3, name + "_{:06d}.jpg", first=26_938)  # the last second, 1798, at 898 s
    file = REAL / "ava_val_v2.1_head27163.csv"
    source = Ava(tmp_path, REAL / "ava_action_list_v2.1_for_activitynet_2018.pbtxt", val=file)
    with pytest.warns(UserWarning) as warned:
        (video,) = source.videos("val")
    assert any("7 of 8 videos are not in" in str(warning.message) for warning in warned)
    (keyframe,) = video.keyframes
    assert keyframe.timestamp == 1798 - 900
    rows = [row for row in csv.reader(file.open()) if row[:2] == [name, "1798"]]
    assert len(keyframe.boxes) == len({tuple(row[2:6]) for row in rows})
    found = {
        (*np.round(box, 3).tolist(), action + 1)
        for box, label in zip(keyframe.boxes.astype(float), keyframe.labels, strict=True)
        for action in np.flatnonzero(label).tolist()
    }
    assert found == {(*map(float, row[2:6]), int(row[6])) for row in rows}


@needs_data
def test_the_fixture_of_mmaction2_is_read_as_it_is(tmp_path):
    fixture = DATA / "mmaction2_fixtures/ava_dataset"
    for name in ("0f39OWEqJ24", "_-Z6wFjXtGQ"):
        write_pictures(tmp_path / name, 100, "img_{:05d}.jpg", size=(24, 32))
    source = Ava(
        tmp_path,
        fixture / "action_list.txt",
        val=fixture / "ava_sample.csv",
        excluded=fixture / "ava_excluded_timestamps_sample.csv",
    )
    assert seconds(source, "val") == {"0f39OWEqJ24": [2.0]}  # 0903 of one and 0902 of the other are excluded
    (keyframe,) = source.videos("val")[0].keyframes
    assert (np.flatnonzero(keyframe.labels[0]) + 1).tolist() == [12, 17, 79]


@needs_data
def test_all_real_rows_are_there_but_those_of_excluded_seconds(tmp_path):
    file = REAL / "ava_val_v2.1_head27163.csv"
    rows = [row for row in csv.reader(file.open()) if row]
    names = sorted({row[0] for row in rows})
    picture = next(write_pictures(tmp_path / "one", 1, "{}.jpg", size=(24, 32)).iterdir())
    for name in names:  # one picture a second, as PySlowFast and as mmaction2 name them in turn
        pattern = f"{name}_{{:06d}}.jpg" if len(list(tmp_path.iterdir())) % 2 else "img_{:05d}.jpg"
        (tmp_path / "frames" / name).mkdir(parents=True)
        for number in range(1, 903):
            os.link(picture, tmp_path / "frames" / name / pattern.format(number))
    excluded = {(video, int(time)) for video, time in csv.reader((REAL / EXCLUDED).open())}
    source = Ava(
        tmp_path / "frames",
        REAL / "ava_action_list_v2.1_for_activitynet_2018.pbtxt",
        val=file,
        excluded=REAL / EXCLUDED,
        frame_rate=1.0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # everything is there
        videos = source.videos("val")
    found = {
        (video.video_id, keyframe.timestamp + 900, *np.round(box.astype(float), 3).tolist(), action + 1)
        for video in videos
        for keyframe in video.keyframes
        for box, label in zip(keyframe.boxes, keyframe.labels, strict=True)
        for action in np.flatnonzero(label).tolist()
    }
    expected = {
        (row[0], int(row[1]), *map(float, row[2:6]), int(row[6]))
        for row in rows
        if (row[0], int(row[1])) not in excluded and float(row[4]) > float(row[2]) and float(row[5]) > float(row[3])
    }
    assert found == expected and len(rows) == 27_163
    assert [video.video_id for video in videos] == names


@pytest.mark.slow
def test_videos_are_found_under_any_ending(root):
    rows = []
    for ending in ("mkv", "webm", "mp4"):
        codec = {"codec": "libvpx", "cpu-used": "8", "deadline": "realtime"} if ending == "webm" else {}
        encode(root / "frames" / f"a_{ending}.{ending}", 96, g="10", **codec)
        rows.append(f"a_{ending},0902,0.125,0.25,0.375,0.75,12,0\n")
    (root / "annotations/train.csv").write_text("".join(rows))
    data = clip_data(ava(root), num_frames=2, frame_stride=1, batch_size=1, cache=None, horizontal_flip=0)
    data.setup("fit")
    shown = {b.video_ids[0]: read_numbers(b.frames[0].permute(0, 2, 3, 1).numpy()) for b in data.train_dataloader()}
    assert shown == {f"a_{ending}": [59, 60] for ending in ("mkv", "webm", "mp4")}  # 2 s at 30 frames a second


@pytest.mark.parametrize("cached", [False, True])
def test_a_picture_missing_in_the_middle_is_named_once_and_the_run_goes_on(root, tmp_path, cached, capfd):
    (root / "frames/one/one_000021.jpg").unlink()  # the keyframe at second 902
    cache = tmp_path / "cache" if cached else None
    data = clip_data(
        ava(root), num_frames=2, frame_stride=1, batch_size=1, num_workers=2, cache=cache, horizontal_flip=0
    )
    with pytest.warns(UserWarning) as warned:
        data.setup("fit")
        loader = data.train_dataloader()
        batches = [*loader, *loader]
    told = [str(warning.message) for warning in warned]
    assert sum("1 of 40 pictures are missing" in text and "one_000021.jpg" in text for text in told) == len(told) == 1
    assert "pictures are missing" not in capfd.readouterr().err  # of the workers
    # The picture before is shown instead: it carries 19.
    shown = {float(b.timestamps[0, 0]): read_numbers(b.frames[0].permute(0, 2, 3, 1).numpy()) for b in batches}
    assert shown == {2.0: [19, 19], 3.0: [29, 30]}
