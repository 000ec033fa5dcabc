"""``check`` finds each planted mistake under its name, goes on after it, and finds nothing in good data."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.annotations.activitynet import ActivityNet
from datamodules.annotations.ava import Ava
from datamodules.annotations.features import FeatureFolder
from datamodules.annotations.mistakes import Mistake
from datamodules.annotations.own_videos import OwnVideos
from datamodules.annotations.ucf101_24 import UCF101_24
from datamodules.check import check_data
from datamodules.check.contact_sheet import COLUMNS, GAP, HEIGHT, SEAM, choose_keyframes
from datamodules.check.report import Report
from datamodules.errors import UserError
from datamodules.frames.store import FrameFacts
from datamodules.predict import PredictDataModule
from datamodules.puppets import Puppets
from datamodules.sampling.windows import TimedVideo
from tests.datamodules.miniature import numbered_frames
from tests.datamodules.miniature_ava import arguments, write_ava
from tests.datamodules.miniature_tubes import TEST, write_pyannot
from tests.datamodules.miniature_tubes import write_videos as write_tube_videos
from tests.datamodules.written_videos import write_video
from tests.flat_data import clip_data, segment_data, stream_data

UCF = Path(__file__).parents[4] / "shared" / "data" / "ucf101_24"
GOOD = (
    "one,0.5,0.1,0.1,0.5,0.9,1,0\none,1.0,0.2,0.1,0.6,0.9,2,0\ntwo,0.5,0.3,0.2,0.9,0.8,3,0\n"
    "three,0.5,0.1,0.1,0.5,0.9,1,0\nthree,0.75,0.1,0.1,0.5,0.9,2,0\nthree,1.0,0.1,0.1,0.5,0.9,3,0\n"
)
"""Three videos of 8 frames, 4 a second, three classes."""


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name in ("one", "two", "three"):
        write_video(folder / f"{name}.mp4", numbered_frames(8, 48, 64), fps=4)
    return folder


def check_own(videos: Path, folder: Path, rows: str, *, stream: bool = False, **arguments) -> Report:
    (folder / "classes.txt").write_text("stand\nwalk\nwave\n")
    (folder / "boxes.csv").write_text(rows)
    source = OwnVideos(videos, folder / "classes.txt", folder / "boxes.csv", **({"val": ["three"]} | arguments))
    module = (
        stream_data(source, frame_stride=1, train_past_frames=2, cache=None)
        if stream
        else clip_data(source, num_frames=4, frame_stride=1, cache=None)
    )
    return check_data(module)


def kinds(mistakes: Sequence[Mistake]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for mistake in mistakes:
        found.setdefault(mistake.kind, []).append(mistake.line)
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_is_wrong_with_good_data_and_all_of_it_is_counted(videos, tmp_path, stream):
    report = check_own(videos, tmp_path, GOOD, stream=stream)
    assert report.mistakes == report.remarks == []
    assert list(report.counts["train"].values()) == [2, 16, 3, 3, 3, 0]
    assert list(report.counts["val"].values()) == [1, 8, 3, 3, 3, 0]
    assert {split: labels.tolist() for split, labels in report.labels.items()} == {"train": [1, 1, 1], "val": [1, 1, 1]}
    assert "Nothing is wrong." in report.text()


@pytest.mark.parametrize(
    ("row", "kind", "seen"),
    [
        ("one,0.5,0.5,0.1,0.4,0.9,1,0", "boxes without area", "line 7: box 0.5,0.1,0.4,0.9 is empty"),
        ("one,0.5,0.1,0.9,0.4,0.9,1,0", "boxes without area", "line 7: box 0.1,0.9,0.4,0.9 is empty"),
        ("one,0.5,8,9,32,36,1,0", "boxes in pixels where fractions are expected", "line 7: box 8,9,32,36"),
        ("one,0.5,0.1,0.1,0.4,0.9,0,0", "action ids that are 0", r"line 7: action id 0 is not one of 1\.\.3"),
        ("one,0.5,0.1,0.1,0.4,0.9,4,0", "action ids without a class", r"line 7: action id 4 is not one of 1\.\.3"),
        ("one,0.5,0.1,0.1,0.4", "rows that cannot be read", "line 7: 5 columns"),
        ("one,soon,0.1,0.1,0.4,0.9,1", "rows that cannot be read", "line 7: seconds must be a number, got 'soon'"),
        ("one,3.5,0.1,0.1,0.4,0.9,1", "videos with time stamps outside them", r"one: 1 of 3, such as 3\.50 s.* 1\.75"),
        ("one,-1,0.1,0.1,0.4,0.9,1", "videos with time stamps outside them", r"one: 1 of 3, such as -1\.00 s"),
        (
            "one,0.5,0.5,0.1,1.1,0.9,1,0",
            "videos with boxes outside their frames",
            r"one: 1 of 3, such as 0\.500, 0\.100, 1\.100, 0\.900 at 0\.50 s",
        ),
        ("one,0.5,-0.1,0.1,0.5,0.9,1,0", "videos with boxes outside their frames", "one: 1 of 3"),
        ("four,0.5,0.1,0.1,0.4,0.9,1", "annotated videos that are not there", "four: not under"),
        ("sub/one.mp4,0.5,0.1,0.1,0.4,0.9,1", "videos named in two ways", "names one in two ways"),
    ],
)
def test_a_row_with_a_mistake_is_named_and_the_rest_is_read(videos, tmp_path, row, kind, seen):
    report = check_own(videos, tmp_path, f"{GOOD}{row}\n")
    ((found, (line,)),) = kinds(report.mistakes).items()
    assert found == kind
    assert re.search(seen, line)
    assert report.counts["val"]["boxes"] == 3
    text = report.text()
    assert f"  {kind}: 1" in text and line in text and "Nothing is wrong" not in text


def test_a_box_half_a_pixel_outside_its_frame_is_no_mistake(videos, tmp_path):
    assert check_own(videos, tmp_path, f"{GOOD}one,0.5,-0.005,0,1.005,1,1,0\n").mistakes == []


def test_every_mistake_of_a_file_is_found_and_so_many_are_named(videos, tmp_path):
    report = check_own(videos, tmp_path, GOOD + "one,0.5,0.5,0.1,0.4,0.9,1,0\n" * 7 + "one,0.5,0,0,1,1,0,0\n" * 2)
    assert {kind: len(lines) for kind, lines in kinds(report.mistakes).items()} == {
        "boxes without area": 7,
        "action ids that are 0": 2,
    }
    text = report.text(names_shown=3)
    assert text.count("is empty") == 3 and "and 4 more" in text
    assert text.count("-> ids count from 1, these seem to count from 0") == 1


def test_all_videos_that_do_not_open_are_listed(videos, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in videos.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is no video\n" * 50)
    (folder / "cut.mp4").write_bytes((videos / "one.mp4").read_bytes()[:1000])
    names = [f"broken{number}" for number in range(12)]
    for name in names:
        (folder / f"{name}.avi").write_bytes(b"nothing")
    rows = GOOD + "".join(f"{name},0.5,0.1,0.1,0.4,0.9,1\n" for name in ("empty", "text", "cut", *names))
    for units, scaled in (("relative", rows), ("absolute", rows.replace("0.9,", "40,"))):
        report = check_own(folder, tmp_path, scaled, box_units=units)
        ((kind, lines),) = kinds(report.mistakes).items()
        assert kind == "videos that cannot be read"
        assert len(lines) == 15
        assert all(line in report.text(names_shown=1) for line in lines)
        assert report.counts["train"]["videos"] == 2


def test_a_video_that_opens_but_ends_in_damage_is_found(videos, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in videos.iterdir():
        (folder / path.name).symlink_to(path)
    write_video(folder / "four.mp4", numbered_frames(64, 48, 64), fps=4)
    whole = bytearray((folder / "four.mp4").read_bytes())
    data = whole.index(b"mdat")
    table = whole.index(b"moov")
    whole[data + (table - data) // 2 : table - 4] = bytes(table - 4 - data - (table - data) // 2)
    (folder / "four.mp4").write_bytes(whole)
    report = check_own(folder, tmp_path, f"{GOOD}four,0.5,0.1,0.1,0.4,0.9,1\n")
    assert list(kinds(report.mistakes)) == ["videos that cannot be read"]
    assert "four.mp4: corrupt" in report.text()


def test_fractions_that_are_read_as_pixels_are_found(videos, tmp_path):
    report = check_own(videos, tmp_path, GOOD, box_units="absolute")
    assert list(kinds(report.mistakes)) == ["splits with boxes of no size"]
    assert "set box_units to relative" in report.text()


def test_boxes_of_smaller_frames_are_remarked_on(videos, tmp_path):
    rows = "".join(
        f"{name},{frame / 4},0.{frame + 1},0.1,0.4,0.{frame % 3 + 2},{frame % 3 + 1}\n"
        for name in ("one", "two", "three")
        for frame in range(3)
    )
    many = "".join(rows.replace("0.1,0.4", f"0.1{digit},0.4{digit}") for digit in range(8))
    report = check_own(videos, tmp_path, many)
    assert {remark.kind for remark in report.remarks} == {"splits with boxes in the upper left of the frames alone"}


def test_a_video_in_both_splits_and_a_split_without_boxes_are_found(videos, tmp_path):
    report = check_own(videos, tmp_path, GOOD, train=["one", "three"], val=["three"])
    assert list(kinds(report.mistakes)) == ["videos in both train and val"]
    assert kinds(report.mistakes)["videos in both train and val"][0].startswith("three: ")
    report = check_own(videos, tmp_path, GOOD.split("three")[0] + "three,0.5\n")
    assert kinds(report.mistakes) == {"splits without boxes": ["val: 1 videos, 1 annotated frames"]}
    report = check_own(videos, tmp_path, GOOD, val=["nobody"])
    assert "names no annotated video" in kinds(report.mistakes)["splits that cannot be read"][0]


def test_boxes_that_fall_beside_the_stride_are_found(videos, tmp_path):
    # At stride 2 frame 2 stands for frame 3, and of the two annotations the nearer one, which is empty, is scored.
    rows = "one,0.5,0.1,0.1,0.5,0.9,1\ntwo,0.5,0.1,0.1,0.5,0.9,2\nthree,0.5\nthree,0.75,0.1,0.1,0.5,0.9,3\n"
    assert check_own(videos, tmp_path, rows).mistakes == []
    source = OwnVideos(videos, tmp_path / "classes.txt", tmp_path / "boxes.csv", val=["three"])
    report = check_data(stream_data(source, frame_stride=2, cache=None))
    assert kinds(report.mistakes) == {
        "splits without a box on the stride's grid": ["val: 1 boxes, none of them scored"]
    }


def test_classes_are_compared_with_those_that_are_used(videos, tmp_path):
    report = check_own(videos, tmp_path, GOOD.replace(",3,0", ",2,0"))
    (remark,) = report.remarks
    assert (remark.kind, remark.where) == ("classes that are never used", "wave (id 3)")
    assert "only ids 1 to 2 are used; are ids and names shifted by one" in remark.way_out
    report = check_own(videos, tmp_path, GOOD.replace("two,0.5,0.3,0.2,0.9,0.8,3,0\n", ""))
    (remark,) = report.remarks
    assert (remark.kind, remark.where) == ("classes that val has and train has not", "wave (id 3)")
    assert "Nothing is wrong." in report.text()


def test_videos_shorter_than_a_clip_are_remarked_on(videos, tmp_path):
    (tmp_path / "classes.txt").write_text("stand\nwalk\nwave\n")
    (tmp_path / "boxes.csv").write_text(GOOD)
    source = OwnVideos(videos, tmp_path / "classes.txt", tmp_path / "boxes.csv", val=["three"])
    report = check_data(clip_data(source, num_frames=5, frame_stride=2, cache=None))  # 0, 2, 4, 6, 8
    assert [(remark.kind, remark.where) for remark in report.remarks] == [
        ("train videos shorter than a clip of 9 frames", "one"),
        ("train videos shorter than a clip of 9 frames", "two"),
        ("val videos shorter than a clip of 9 frames", "three"),
    ]
    # Frames 2 and 4 of `one`; of 2, 3 and 4 of `three` the second has no sampled frame of its own.
    assert report.counts["train"]["of them at stride 2"] == 3
    assert report.counts["val"]["of them at stride 2"] == 2


def test_missing_and_unreadable_pictures_and_absent_films_of_ava_are_found(tmp_path, recwarn):
    root = write_ava(tmp_path / "ava")
    for number in (5, 7):
        (root / "frames" / "one" / f"one_{number:06d}.jpg").unlink()
    (root / "frames" / "two" / "img_00040.jpg").write_bytes(b"no picture")
    with (root / "annotations" / "train.csv").open("a") as file:
        file.write("three,0902,0.1,0.1,0.5,0.9,12,0\nfour,0902,0.1,0.1,0.5,0.9,12,0\n")
    report = check_data(clip_data(Ava(**arguments(root)), num_frames=4, frame_stride=2, cache=None))
    found = kinds(report.mistakes)
    assert found.pop("folders with missing pictures")[0].endswith("2 of 40, the numbers 5, 7")
    (unreadable,) = found.pop("pictures that cannot be read")
    assert "img_00040.jpg" in unreadable and not found
    kind, lines = next(iter(kinds(report.remarks).items()))  # a part of AVA will do
    assert "videos are not in" in kind and [line[-6:].strip(": ") for line in lines] == ["four", "three"]


def test_a_picture_in_the_middle_that_cannot_be_read_is_found_where_every_frame_is_decoded(tmp_path):
    root = write_ava(tmp_path / "ava")
    (root / "frames" / "two" / "img_00020.jpg").write_bytes(b"no picture")
    found = [
        kinds(check_data(clip_data(Ava(**arguments(root)), cache=None), every_frame=every_frame).mistakes)
        for every_frame in (False, True)
    ]
    assert found[0] == {}
    assert list(found[1]) == ["pictures that cannot be read"]


def test_labels_in_another_class_than_their_folder_are_found(tmp_path):
    import pickle

    write_tube_videos(tmp_path)
    path = write_pyannot(tmp_path / "pyannot.pkl")
    contents = pickle.loads(path.read_bytes())
    for video in contents.values():
        for tube in video["annotations"]:
            tube["label"] = (tube["label"] + 1) % 24
    path.write_bytes(pickle.dumps(contents, protocol=2))
    report = check_data(clip_data(UCF101_24(tmp_path, path, val=TEST), num_frames=4, frame_stride=1, cache=None))
    lines = kinds(report.mistakes)["videos labelled as another class than their folder's"]
    assert [line[-len("two: labelled CliffDiving") :] for line in lines if "two" in line] == [
        "two: labelled CliffDiving"
    ]
    assert len(lines) == 3
    assert "label ids count from another number than expected" in report.text()


def test_the_page_is_a_picture_of_the_size_of_its_strips(videos, tmp_path):
    (tmp_path / "classes.txt").write_text("stand\nwalk\nwave\n")
    (tmp_path / "boxes.csv").write_text(GOOD)
    source = OwnVideos(videos, tmp_path / "classes.txt", tmp_path / "boxes.csv", val=["three"])
    page = tmp_path / "pages" / "page.png"
    report = check_data(clip_data(source, frame_stride=1, cache=None), page, page_clips=5)
    assert report.page == page and str(page) in report.text()
    strip = (3 * (192 + SEAM) - SEAM, HEIGHT + 17)  # 64 x 48 pixels are drawn 192 x 144
    with Image.open(page) as picture:
        assert picture.size == (COLUMNS * (strip[0] + GAP) - GAP, 3 * (strip[1] + GAP) - GAP)
        pixels = np.asarray(picture.convert("RGB"), np.int64)
    # Film is grey here: colour belongs to boxes, and those to the second of a strip's three pictures.
    coloured = (np.ptp(pixels, axis=2) > 60).any(axis=0)[: strip[0]]
    assert coloured[192 + SEAM : 2 * 192 + SEAM].any()
    assert not coloured[:192].any() and not coloured[2 * (192 + SEAM) :].any()


def video_of(name: str, labels: list[list[int]]) -> TimedVideo:
    count = len(labels)
    facts = FrameFacts(np.arange(count) / 4, (48, 64), (48, 64))
    boxes = tuple(np.asarray([[0, 0, 1, 1]], np.float32) for _ in labels)
    rows = tuple(np.asarray([row], np.uint8) for row in labels)
    return TimedVideo(name, Path(name), facts, np.arange(count), np.arange(count) / 4, boxes, rows, (None,) * count)


def test_a_page_shows_every_video_once_and_then_again_and_new_classes_first():
    videos = [
        video_of("a", [[1, 0, 0, 0]] * 3),
        video_of("b", [[1, 0, 0, 0], [0, 1, 1, 0]]),
        video_of("c", [[1, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]]),
    ]
    chosen = list(choose_keyframes(videos, 4))
    assert len(set(chosen)) == len(chosen) == 8
    assert chosen[0] == (1, 1)
    assert (2, 1) in chosen[:3]
    assert {number for number, _ in chosen[:3]} == {number for number, _ in chosen[3:6]} == {0, 1, 2}
    assert list(choose_keyframes(videos, 4)) == chosen


def test_a_mistake_travels_between_processes():
    import pickle

    mistake = Mistake("boxes", "line 3", "is empty", "fill it")
    again = pickle.loads(pickle.dumps(mistake))
    assert (str(again), again.kind, again.line) == ("line 3: is empty; fill it", "boxes", "line 3: is empty")


def test_segments_outside_their_video_or_without_length_are_found(videos, tmp_path):
    segments = {
        "one": [[0.0, 1.0, "wave"], [1.5, 1.0, "walk"]],
        "two": [[0.5, 1.5, "walk"], [1.0, 9.0, "wave"]],
        "three": [[0.5, 2.0, "wave"]],
        "four": [[0.5, 2.0, "wave"]],
    }
    database = {
        name: {
            "subset": "validation" if name == "three" else "training",
            "annotations": [{"segment": row[:2], "label": row[2]} for row in rows],
        }
        for name, rows in segments.items()
    }
    (tmp_path / "segments.json").write_text(json.dumps({"database": database}))
    module = segment_data(ActivityNet(tmp_path / "segments.json", videos=videos))
    report = check_data(module)
    found = kinds(report.mistakes)
    assert found.pop("videos with segments outside them") == [
        "two: 1 of 2, such as 1.00 s to 9.00 s, but it ends at 1.75 s"
    ]
    assert found.pop("segments do not end after their start and are left out")[0].endswith("one at 1.5 s")
    assert not found
    ((kind, lines),) = kinds(report.remarks).items()
    assert "videos are not on disk" in kind and lines[0].endswith("four")
    assert report.labels["train"].tolist() == [1, 2]
    assert report.counts["val"] == {"videos": 1, "frames or features": 8, "segments": 1}


@pytest.mark.slow
def test_nothing_is_wrong_with_the_puppets(tiny_puppets):
    report = check_data(clip_data(Puppets(tiny_puppets, "tiny"), num_frames=8, frame_stride=2, cache=None))
    assert report.mistakes == []
    assert [report.counts[split]["videos"] for split in ("train", "val")] == [4, 2]


@pytest.mark.slow
@pytest.mark.skipif(not UCF.is_dir(), reason="real clips are not on this machine")
@pytest.mark.parametrize("form", ["own videos", "pyannot", "ground truth", "labels"])
def test_nothing_is_wrong_with_the_real_clips(form, tmp_path):
    lists = (UCF / "trainlist.txt", UCF / "testlist.txt")
    if form == "own videos":
        source = OwnVideos(UCF / "videos", UCF / "classes.txt", UCF / "own_videos.csv", *lists)
    else:
        with zipfile.ZipFile(UCF / "labels.zip") as archive:
            archive.extractall(tmp_path)
        kept = {"pyannot": UCF / "pyannot.mini.pkl", "ground truth": UCF / "UCF101v2-GT.mini.pkl"}
        source = UCF101_24(UCF / "videos", kept.get(form, tmp_path / "labels"), *lists)
    report = check_data(clip_data(source, short_side=64, cache=None), tmp_path / "page.png")
    assert report.mistakes == []
    rows = (UCF / "own_videos.csv").read_text().splitlines()
    assert sum(report.counts[split]["boxes"] for split in ("train", "val")) == len(rows)
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size[0] > 1000 and picture.size[1] > 900


def test_a_page_without_the_ending_of_a_picture_is_refused_before_anything_is_read(tmp_path):
    source = OwnVideos(tmp_path / "nowhere", tmp_path / "no_classes.txt")
    for name in ("page", "page.txt", "page.csv"):
        with pytest.raises(UserError, match=rf"{name}: is no name of a picture: .*; call it something\.png"):
            check_data(clip_data(source, frame_stride=1, cache=None), tmp_path / name)


def test_too_few_videos_to_validate_on_are_found_with_the_way_out(videos, tmp_path):
    rows = "".join(line for line in GOOD.splitlines(keepends=True) if not line.startswith("three"))
    found = kinds(check_own(videos, tmp_path, rows, val=None).mistakes)
    (line,) = found["splits that cannot be read"]
    said = "val_fraction=0.2 of 2 videos leaves none to validate on; set val_fraction to 0.5, or name the videos in"
    assert line.endswith(f"{said} train and val")


def test_two_classes_of_one_name_are_refused(videos, tmp_path):
    with pytest.raises(UserError, match=r"classes\.txt: the class 'walk' is there 2 times"):
        (tmp_path / "classes.txt").write_text("stand\nwalk\nwalk\n")
        (tmp_path / "boxes.csv").write_text(GOOD)
        check_data(clip_data(OwnVideos(videos, tmp_path / "classes.txt", tmp_path / "boxes.csv"), cache=None))


def test_names_are_printed_without_what_a_terminal_acts_upon(videos, tmp_path):
    (tmp_path / "classes.txt").write_text("stand\nwalk\x1b[2J\nwave\n")
    (tmp_path / "boxes.csv").write_text(GOOD + "cam\x1b[2J,0.5,0.1,0.1,0.5,0.9,1,0\n")
    source = OwnVideos(videos, tmp_path / "classes.txt", tmp_path / "boxes.csv", val=["three"])
    text = check_data(clip_data(source, num_frames=4, frame_stride=1, cache=None)).text()
    assert "\x1b" not in text and "walk\\x1b[2J" in text and "cam\\x1b[2J" in text


def test_data_of_another_kind_are_refused():
    with pytest.raises(UserError, match="not through PredictDataModule"):
        check_data(PredictDataModule.__new__(PredictDataModule))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("none", None),
        ("rate", "features stand for 4.00 times the duration of their videos"),
        ("width", "c has features of 16 channels, other videos of 8"),
        ("empty", "c.npy: holds no feature"),
        ("values", "c.npy: holds values that are not finite; compute the features of this video again"),
        ("absent", "a has neither frames nor features"),
    ],
)
def test_features_that_training_refuses_are_found(tmp_path, harm, said):
    folder = tmp_path / "features"
    folder.mkdir()
    for name in "abc":
        array = np.zeros((0 if (harm, name) == ("empty", "c") else 40, 16 if (harm, name) == ("width", "c") else 8))
        if (harm, name) == ("values", "c"):
            array[3, 3] = np.nan
        np.save(folder / f"{name}.npy", array.astype(np.float32))
    database = {
        name: {
            "subset": "validation" if name == "b" else "training",
            "duration": 20.0,
            "annotations": [{"segment": [1.0, 3.0], "label": "wave"}],
        }
        for name in "abc"
    }
    (tmp_path / "segments.json").write_text(json.dumps({"database": database}))
    rate = 8.0 if harm != "rate" else 2.0
    features = None if harm == "absent" else FeatureFolder(folder, stride_frames=4, window_frames=4, frame_rate=rate)
    found = kinds(
        check_data(segment_data(ActivityNet(tmp_path / "segments.json", features=features)), every_frame=True).mistakes
    )
    lines = [line for of_kind in found.values() for line in of_kind]
    assert not lines if said is None else any(said in line for line in lines)
