from pathlib import Path

import numpy as np
import pytest

from datamodules.annotations.ava import OwnVideos, read_ava_csv, video_name
from datamodules.video import write_video
from tests.datamodules.miniature import numbered_frames

DATA = Path(__file__).parents[3] / "shared/data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="real annotations are not on this machine")
CLASSES = ("stand", "walk", "wave")


def written(folder: Path, text: str, name: str = "boxes.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_rows_of_one_person_at_one_moment_are_one_box(tmp_path):
    path = written(tmp_path, "a,2.5,0.1,0.2,0.3,0.4,1,7\na,2.5,0.1,0.2,0.3,0.4,3,7\na,2.5,0.1,0.2,0.3,0.4,2,8\n")
    (keyframe,) = read_ava_csv(path, CLASSES)["a"]
    assert keyframe.timestamp == 2.5
    np.testing.assert_allclose(keyframe.boxes, [[0.1, 0.2, 0.3, 0.4]] * 2)
    assert keyframe.labels.tolist() == [[1, 0, 1], [0, 1, 0]]
    assert keyframe.boxes.dtype == np.float32 and keyframe.labels.dtype == np.uint8


def test_moments_are_in_order_of_time_however_they_are_written(tmp_path):
    path = written(tmp_path, "a,0903,0,0,1,1,1\nb,1,0,0,1,1,2\na,902.5,0,0,1,1,2\na,0902,0,0,1,1,3\na,902,0,0,1,1,1\n")
    read = read_ava_csv(path, CLASSES)
    assert [keyframe.timestamp for keyframe in read["a"]] == [902.0, 902.5, 903.0]
    assert read["a"][0].labels.tolist() == [[1, 0, 1]]
    assert len(read["b"]) == 1


def test_a_box_may_have_no_action_and_a_moment_no_box(tmp_path):
    path = written(
        tmp_path, "video,seconds,x1,y1,x2,y2,action,person\n\na,1,0,0,0.5,0.5,,1\na,2\na,3,0,0,0.5,0.5,2,1\n"
    )
    idle, empty, busy = read_ava_csv(path, CLASSES)["a"]
    assert idle.labels.tolist() == [[0, 0, 0]]
    assert empty.boxes.shape == (0, 4) and empty.labels.shape == (0, 3)
    assert busy.labels.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,1,0,0,1,1,0,1", r"line 2: action id 0 is not one of 1\.\.3, the 3 classes; ids count from 1"),
        ("a,1,0,0,1,1,4,1", r"line 2: action id 4 is not one of 1\.\.3"),
        ("a,1,0,0,1,1,walk,1", "line 2: action_id must be a number, got 'walk'"),
        ("a,1,0,0,1,1", "line 2: 6 columns"),
        ("a,one,0,0,1,1,1,1", "line 2: seconds must be a number"),
        ("a,1,0.5,0,0.4,1,1,1", r"line 2: box 0\.5,0,0\.4,1 is empty"),
        ("a,1,10,20,110,220,1,1", "line 2: box 10,20,110,220 looks like pixels; set box_units"),
        ("a,1,nan,0,1,1,1,1", "line 2: x1 must be a number"),
    ],
)
def test_mistakes_are_reported_with_file_and_line(tmp_path, row, message):
    path = written(tmp_path, f"a,0,0,0,1,1,1,1\n{row}\n")
    with pytest.raises(ValueError, match=r"boxes\.csv, " + message):
        read_ava_csv(path, CLASSES)


@pytest.fixture
def folder(tmp_path):
    for name, size in (("one", (48, 64)), ("two", (64, 48)), ("three", (48, 64))):
        write_video(tmp_path / "videos" / name[0] / f"{name}.mp4", numbered_frames(4, *size), fps=4)
    written(tmp_path, "stand\nwalk\nwave\n", "classes.txt")
    written(tmp_path, "one,0,8,12,32,36,1,0\ntwo.mp4,0.5,12,16,24,48,2,0\nsome/three.avi,0,1,1,2,2,3,0\n")
    return tmp_path


def own_videos(folder: Path, **arguments) -> OwnVideos:
    return OwnVideos(folder / "videos", folder / "classes.txt", folder / "boxes.csv", **arguments)


def names(source: OwnVideos, split) -> list[str]:
    return [video.video_id for video in source.videos(split)]


def test_boxes_in_pixels_are_divided_by_the_size_of_their_video(folder):
    videos = {video.video_id: video for video in own_videos(folder, box_units="absolute", val=["two"]).videos("train")}
    assert list(videos) == ["one", "three"]
    np.testing.assert_allclose(videos["one"].keyframes[0].boxes, [[8 / 64, 12 / 48, 32 / 64, 36 / 48]])
    two = own_videos(folder, box_units="absolute", val=["two"]).videos("val")[0]
    np.testing.assert_allclose(two.keyframes[0].boxes, [[12 / 48, 16 / 64, 24 / 48, 48 / 64]])
    assert two.path == folder / "videos/t/two.mp4"


def test_lists_of_videos_may_be_written_in_many_ways(folder):
    listing = written(
        folder, "walk/one.avi\n\nlabels/walk/three/00012.txt\nlabels/walk/three/00013.txt\nunknown\n", "l.txt"
    )
    source = own_videos(folder, train=listing, box_units="absolute")
    assert names(source, "train") == ["one", "three"]
    assert names(source, "val") == names(source, "test") == ["two"]
    with pytest.raises(ValueError, match="in both train and val: one"):
        own_videos(folder, train=["one"], val=["one", "two"], box_units="absolute").videos("train")
    with pytest.raises(ValueError, match="names no annotated video"):
        own_videos(folder, train=["five"], box_units="absolute").videos("train")


def test_videos_in_neither_list_are_left_out(folder):
    source = own_videos(folder, train=["one"], val=["two"], box_units="absolute")
    assert names(source, "train") == ["one"]
    assert names(source, "val") == ["two"]


def test_without_lists_a_fraction_is_held_out_always_the_same(folder):
    splits = [own_videos(folder, val_fraction=1 / 3, box_units="absolute") for _ in range(2)]
    assert names(splits[0], "val") == names(splits[1], "val")
    assert len(names(splits[0], "val")) == 1
    assert sorted(names(splits[0], "train") + names(splits[0], "val")) == ["one", "three", "two"]


def test_seconds_may_count_from_before_the_file(folder):
    written(folder, "one,900.75,0,0,1,1,1,0\ntwo,900,0,0,1,1,1,0\n")
    source = own_videos(folder, start_seconds=900, train=["one"])
    assert source.videos("train")[0].keyframes[0].timestamp == 0.75


def test_missing_pieces_are_named(folder):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        OwnVideos(folder / "nowhere", folder / "classes.txt").videos("train")
    with pytest.raises(FileNotFoundError, match=r"none\.txt: no such file"):
        OwnVideos(folder / "videos", folder / "none.txt").class_names()
    with pytest.raises(ValueError, match=r"empty\.txt is empty"):
        OwnVideos(folder / "videos", written(folder, "\n", "empty.txt")).class_names()
    with pytest.raises(ValueError, match="line 2 is empty"):
        OwnVideos(folder / "videos", written(folder, "stand\n\nwave\n", "gap.txt")).class_names()
    written(folder, "".join(f"v{n},0,0,0,1,1,1,0\n" for n in range(7)) + "one,0,0,0,1,1,1,0\n")
    with pytest.raises(
        FileNotFoundError, match=r"names 7 videos of 8 that are not under .*: v0, v1, v2, v3, v4 \.\.\."
    ):
        own_videos(folder).prepare()


def test_two_videos_of_one_name_are_refused_if_they_are_needed(folder):
    write_video(folder / "videos" / "again" / "one.mp4", numbered_frames(2), fps=4)
    with pytest.raises(ValueError, match="several videos are called one"):
        own_videos(folder, box_units="absolute").prepare()


def test_videos_without_annotation_can_be_listed(folder):
    source = OwnVideos(folder / "videos", folder / "classes.txt", val_fraction=1.0)
    assert [(video.video_id, video.keyframes) for video in source.videos("val")] == [
        ("one", ()),
        ("three", ()),
        ("two", ()),
    ]


def test_names_keep_their_dots():
    assert video_name("a.b.c") == "a.b.c"
    assert video_name("x/a.b.MP4") == "a.b"


@needs_data
def test_the_ucf101_24_excerpt_is_read_with_its_split_lists():
    root = DATA / "ucf101_24"
    source = OwnVideos(
        root / "videos", root / "classes.txt", root / "own_videos.csv", root / "trainlist.txt", root / "testlist.txt"
    )
    assert len(source.class_names()) == 24
    train, val = source.videos("train"), source.videos("val")
    assert [video.video_id.split("_")[1] for video in train] == [
        "Basketball",
        "Biking",
        "Fencing",
        "SalsaSpin",
        "SoccerJuggling",
    ]
    assert [video.video_id.split("_")[1] for video in val] == ["CliffDiving", "HorseRiding"]
    basketball = train[0].keyframes
    assert len(basketball) == 50  # frames 14..63
    assert basketball[0].timestamp == pytest.approx(14 / 29.97, abs=1e-3)
    rows = (root / "own_videos.csv").read_text().splitlines()
    assert sum(len(frame.boxes) for video in train + val for frame in video.keyframes) == len(rows)
    for video in train + val:
        action = source.class_names().index(video.video_id.split("_")[1])
        assert all((frame.labels.argmax(1) == action).all() for frame in video.keyframes)


@needs_data
def test_real_ava_rows_are_all_read():
    path = DATA / "ava/annotations/ava_val_v2.1_head27163.csv"
    read = read_ava_csv(path, [f"class {n}" for n in range(80)])
    rows = {tuple(line.split(",")) for line in path.read_text().split()}
    assert sum(int(frame.labels.sum()) for frames in read.values() for frame in frames) == len(
        {(video, float(second), *rest) for video, second, *rest in rows}
    )
    assert all(frame.timestamp in range(902, 1799) for frames in read.values() for frame in frames)
