from pathlib import Path

import numpy as np
import pytest

from datamodules.annotations.ava_csv import read_ava_csv
from datamodules.errors import UserError

DATA = Path(__file__).parents[4] / "shared/data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="real annotations are not on this machine")
CLASSES = ("stand", "walk", "wave")


def written(folder: Path, text: str) -> Path:
    (folder / "boxes.csv").write_text(text)
    return folder / "boxes.csv"


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
    with pytest.raises(UserError, match=r"boxes\.csv, " + message):
        read_ava_csv(path, CLASSES)


def test_boxes_without_area_may_be_left_out(tmp_path):
    path = written(tmp_path, "a,1,0.5,0,0.4,1,1,1\na,1,0,0,1,1,2,2\nb,1,0.2,0.3,0.2,0.4,1,1\n")
    read = read_ava_csv(path, CLASSES, skip_empty_boxes=True)
    assert read["a"][0].labels.tolist() == [[0, 1, 0]]
    assert read["b"][0].boxes.shape == (0, 4)


def test_person_ids_become_tracks(tmp_path):
    text = "a,2,0,0,1,1,1,7\na,2,0,0,0.5,1,2,-3\na,3,0,0,1,1,1,7\na,4\n"
    path = written(tmp_path, text + "b,1,0,0,1,1,1,tom\nb,1,0,0,0.5,1,1,ann\nb,2,0,0,1,1,1,tom\n")
    read = read_ava_csv(path, CLASSES)
    assert [keyframe.tracks.tolist() for keyframe in read["a"]] == [[7, -3], [7], []]
    assert [keyframe.tracks.tolist() for keyframe in read["b"]] == [[1, 0], [1]]  # names in order
    assert all(keyframe.tracks.dtype == np.int64 for keyframes in read.values() for keyframe in keyframes)


def test_a_moment_with_a_box_of_nobody_has_no_tracks(tmp_path):
    path = written(tmp_path, "a,1,0,0,1,1,1\na,2,0,0,1,1,1,\na,3,0,0,1,1,1,5\na,3,0,0,0.5,1,1,\na,4,0,0,1,1,1,5\n")
    tracks = [keyframe.tracks for keyframe in read_ava_csv(path, CLASSES)["a"]]
    assert tracks[:3] == [None, None, None] and tracks[3].tolist() == [5]


@needs_data
def test_real_ava_rows_are_all_read():
    path = DATA / "ava/annotations/ava_val_v2.1_head27163.csv"
    read = read_ava_csv(path, [f"class {n}" for n in range(80)])
    rows = {tuple(line.split(",")) for line in path.read_text().split()}
    assert sum(int(frame.labels.sum()) for frames in read.values() for frame in frames) == len(
        {(video, float(second), *rest) for video, second, *rest in rows}
    )
    assert all(frame.timestamp in range(902, 1799) for frames in read.values() for frame in frames)
    assert all(len(frame.tracks) == len(frame.boxes) for frames in read.values() for frame in frames)
