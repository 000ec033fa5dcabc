import warnings
from pathlib import Path

import numpy as np
import pytest

from datamodules.annotations.own_videos import OwnVideos, video_name
from datamodules.annotations.places import videos_in
from datamodules.annotations.segment_source import find_videos
from datamodules.errors import UserError
from datamodules.video.source_files import VIDEO_ENDINGS, files_of
from tests.datamodules.miniature import numbered_frames
from tests.datamodules.written_videos import write_video

DATA = Path(__file__).parents[4] / "shared/data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="real annotations are not on this machine")


def written(folder: Path, text: str, name: str = "boxes.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


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
    with pytest.raises(UserError, match="in both train and val: one"):
        own_videos(folder, train=["one"], val=["one", "two"], box_units="absolute").videos("train")
    with pytest.raises(UserError, match="names no annotated video"):
        own_videos(folder, train=["five"], box_units="absolute").videos("train")


def test_listed_videos_that_are_not_there_are_told_once(folder):
    source = own_videos(folder, val=["two", "thre"], box_units="absolute")
    with pytest.warns(UserWarning, match=r"data.source.val: 1 listed videos are not under .*: thre$"):
        assert names(source, "val") == ["two"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert names(source, "train") == ["one", "three"]  # told once


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
    with pytest.raises(UserError, match="nowhere: no such folder"):
        OwnVideos(folder / "nowhere", folder / "classes.txt").videos("train")
    with pytest.raises(UserError, match=r"none\.txt: no such list of classes"):
        OwnVideos(folder / "videos", folder / "none.txt").class_names()
    with pytest.raises(UserError, match=r"empty\.txt: is empty"):
        OwnVideos(folder / "videos", written(folder, "\n", "empty.txt")).class_names()
    with pytest.raises(UserError, match="line 2 is empty"):
        OwnVideos(folder / "videos", written(folder, "stand\n\nwave\n", "gap.txt")).class_names()
    written(folder, "".join(f"v{n},0,0,0,1,1,1,0\n" for n in range(7)) + "one,0,0,0,1,1,1,0\n")
    with pytest.raises(ValueError, match=r"names 7 videos of 8 that are not under .*: v0, v1, v2, v3, v4 \.\.\."):
        own_videos(folder).prepare()


def test_two_videos_of_one_name_are_refused_if_they_are_needed(folder):
    write_video(folder / "videos" / "again" / "one.mp4", numbered_frames(2), fps=4)
    with pytest.raises(UserError, match="several videos are called one"):
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


NAMES = [
    "cam.front 1",
    "cam.front 12",
    "a.b.c 3",
    "v 2.0",
    "2024.01.05 13",
    "00012",
    "kitchen 07",
    "clip.ts",
    "take 1.mp4 2",
    "a, b",
    "größe.λ 5",
    "x.MTS 1",
]


@pytest.mark.parametrize("written_as", ["{}", " {} ", "folder/{}.mp4", "folder\\\\{}.MP4", "{}.mp4"])
def test_a_video_is_found_by_its_very_name_whatever_that_looks_like(tmp_path, written_as):
    (tmp_path / "videos").mkdir()
    for name in NAMES:
        (tmp_path / "videos" / f"{name}.mp4").write_bytes(b"not looked into")
    written(tmp_path, "walk\n", "classes.txt")
    rows = (f'"{written_as.format(name)}",0,0.1,0.1,0.5,0.5,1,0\n' for name in NAMES)
    written(tmp_path, "".join(rows))
    source = own_videos(tmp_path, val_fraction=0)
    assert {video.video_id: video.path.name for video in source.videos("train")} == {n: f"{n}.mp4" for n in NAMES}
    listing = written(tmp_path, "".join(f"{written_as.format(name)}\n" for name in NAMES[:5]), "l.txt")
    assert names(own_videos(tmp_path, val=listing), "val") == sorted(NAMES[:5])


def test_the_class_number_of_ucf101_lists_goes_only_from_behind_the_ending_of_a_video():
    assert video_name("Basketball/v_g07_c04.avi 1") == video_name("v_g07_c04.AVI 24") == "v_g07_c04"
    assert video_name("cam.front 1") == "cam.front 1"
    assert video_name("Basketball/v.avi 1", ["v.avi 1", "v"]) == "v"
    assert video_name("v.avi 1", ["v.avi 1", "v"]) == "v.avi 1"


@pytest.mark.parametrize("ending", sorted(VIDEO_ENDINGS))
def test_every_reader_finds_the_files_of_every_ending_in_upper_and_lower_case(tmp_path, ending):
    """Own videos, AVA, tubes, segments, and a folder to predict on have one list of endings."""
    folder = tmp_path / "videos"
    folder.mkdir()
    expected = {}
    for name, of_case in (("low", ending), ("up", ending.upper()), ("mixed", ending.title())):
        expected[name] = folder / f"{name}{of_case}"
        expected[name].write_bytes(b"not looked into")
    (folder / f"._low{ending}").write_bytes(b"what macOS leaves")
    (folder / f"sub{ending}").mkdir()
    (folder / "low.txt").touch()
    found = OwnVideos(folder, written(tmp_path, "walk\n", "classes.txt"), val_fraction=0).videos("train")
    assert {video.video_id: video.path for video in found} == expected
    assert find_videos(folder, expected) == expected
    assert dict(files_of(str(folder), 25)) == expected
    places = videos_in(folder, lambda name: 25.0)
    assert {name: places[name] for name in expected} == {name: [path] for name, path in expected.items()}


def some_videos(folder: Path, count: int) -> None:
    (folder / "videos").mkdir()
    for number in range(count):
        (folder / "videos" / f"v{number}.mp4").write_bytes(b"not looked into")
    written(folder, "walk\n", "classes.txt")
    written(folder, "".join(f"v{number},0,0.1,0.1,0.5,0.5,1,0\n" for number in range(count)))


@pytest.mark.parametrize(
    ("count", "fraction", "split", "said"),
    [
        (
            1,
            0.2,
            "val",
            "val_fraction=0.2 of 1 videos leaves none to validate on; annotate a second one; val",
        ),
        (2, 0.2, "val", "val_fraction=0.2 of 2 videos leaves none to validate on; set val_fraction to 0.5, or name"),
        (2, 0.2, "test", "val_fraction=0.2 of 2 videos leaves none to validate on; set val_fraction to 0.5"),
        (3, 0.1, "val", "val_fraction=0.1 of 3 videos leaves none to validate on; set val_fraction to 0.33, or"),
        (1, 0.9, "train", "val_fraction=0.9 of 1 videos leaves none to train on; annotate a second one"),
        (2, 0.9, "train", "val_fraction=0.9 of 2 videos leaves none to train on; set val_fraction to 0.5"),
    ],
)
def test_too_few_videos_for_the_fraction_are_refused_and_the_way_out_works(tmp_path, count, fraction, split, said):
    some_videos(tmp_path, count)
    with pytest.raises(UserError, match=rf"boxes\.csv: {said}"):
        own_videos(tmp_path, val_fraction=fraction).videos(split)
    if count > 1:
        advised = float(said.split("set val_fraction to ")[1].split(",")[0])
        for part in ("train", "val", "test"):
            assert own_videos(tmp_path, val_fraction=advised).videos(part)
    assert len(own_videos(tmp_path, val_fraction=0).videos("train")) == count
    assert len(own_videos(tmp_path, val_fraction=1).videos("val")) == count


def test_names_in_errors_are_printed_without_what_a_terminal_acts_upon(tmp_path):
    some_videos(tmp_path, 2)
    written(tmp_path, "cam\x1b[2J,0,0.1,0.1,0.5,0.5,1,0\n")
    with pytest.raises(UserError, match=r"that are not under .*: cam\\x1b\[2J$") as refused:
        own_videos(tmp_path).prepare()
    assert str(refused.value).isprintable()


def test_nothing_to_validate_on_is_no_error_where_it_is_asked_for(tmp_path):
    some_videos(tmp_path, 3)
    assert own_videos(tmp_path, val_fraction=0).videos("val") == ()
    assert own_videos(tmp_path, train=["v0", "v1", "v2"]).videos("val") == ()
    with pytest.raises(UserError, match="val_fraction must be from 0 to 1, got 20"):
        own_videos(tmp_path, val_fraction=20)


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
