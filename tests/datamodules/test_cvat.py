"""CVAT's export, written here by hand, through the csv and back."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from datamodules.annotations.cvat import main
from datamodules.annotations.cvat_export import read_cvat
from datamodules.annotations.own_videos import OwnVideos
from datamodules.errors import UserError
from datamodules.frames import DecodedFrames, FrameScale
from datamodules.video import write_video
from datamodules.windows import time_video
from tests.datamodules.miniature import numbered_frames

ROOT = Path(__file__).parents[2]

TASK = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <task>
      <id>7</id><name>kitchen</name><size>10</size><mode>interpolation</mode><overlap>5</overlap>
      <start_frame>0</start_frame><stop_frame>9</stop_frame><frame_filter></frame_filter>
      <labels>
        <label><name>person</name><color>#ff0000</color><type>any</type>
          <attributes><attribute><name>action</name><mutable>True</mutable><input_type>text</input_type>
            <default_value></default_value><values></values></attribute></attributes></label>
      </labels>
      <original_size><width>64</width><height>48</height></original_size>
      <source>kitchen.mp4</source>
    </task>
    <dumped>2024-05-01 10:00:00.000000+00:00</dumped>
  </meta>
  <track id="0" label="walk" source="manual">
    <box frame="2" keyframe="1" outside="0" occluded="0" xtl="8.00" ytl="12.00" xbr="32.00" ybr="36.00" z_order="0">
      <attribute name="action">walk, carry</attribute><attribute name="alone">true</attribute></box>
    <box frame="3" keyframe="0" outside="0" occluded="1" xtl="10.00" ytl="12.00" xbr="34.00" ybr="36.00" z_order="0">
      <attribute name="action">walk</attribute><attribute name="alone">false</attribute></box>
    <box frame="4" keyframe="1" outside="1" occluded="0" xtl="10.00" ytl="12.00" xbr="34.00" ybr="36.00" z_order="0">
      <attribute name="action">walk</attribute><attribute name="alone">false</attribute></box>
    <box frame="7" keyframe="1" outside="0" occluded="0" xtl="-4.00" ytl="0.00" xbr="16.00" ybr="60.00" z_order="0">
      <attribute name="action">__undefined__</attribute><attribute name="alone">false</attribute></box>
  </track>
  <track id="1" label="wave" source="manual">
    <box frame="3" keyframe="1" outside="0" occluded="0" xtl="48.00" ytl="24.00" xbr="64.00" ybr="48.00" z_order="0">
      <attribute name="action">wave</attribute><attribute name="alone">false</attribute></box>
    <box frame="4" keyframe="1" outside="1" occluded="0" xtl="48.00" ytl="24.00" xbr="64.00" ybr="48.00" z_order="0">
      <attribute name="action">wave</attribute><attribute name="alone">false</attribute></box>
  </track>
  <track id="2" label="outline" source="manual">
    <polygon frame="3" keyframe="1" outside="0" occluded="0" points="1.0,1.0;2.0,2.0;3.0,1.0" z_order="0"></polygon>
    <polygon frame="4" keyframe="1" outside="1" occluded="0" points="1.0,1.0;2.0,2.0;3.0,1.0" z_order="0"></polygon>
  </track>
</annotations>
"""
WALKER = {2: [8 / 64, 12 / 48, 32 / 64, 36 / 48], 3: [10 / 64, 12 / 48, 34 / 64, 36 / 48], 7: [0, 0, 16 / 64, 1]}
WAVER = {3: [48 / 64, 24 / 48, 1, 1]}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "task.xml").write_text(TASK)
    for name in ("kitchen", "porch"):
        write_video(tmp_path / "videos" / f"{name}.mp4", numbered_frames(10, 48, 64), fps=8)
    return tmp_path


def run(folder: Path, *more: str, video: str = "kitchen", task: str = "task.xml") -> None:
    timing = [] if "--frame-rate" in more else ["--video-file", str(folder / "videos" / f"{video}.mp4")]
    files = ["--output", str(folder / "boxes.csv"), "--classes", str(folder / "classes.txt")]
    main([str(folder / task), "--video", video, *timing, *files, *more])


def read(folder: Path) -> dict:
    """Every frame with boxes of every video, by number: boxes and names of actions."""
    source = OwnVideos(folder / "videos", folder / "classes.txt", folder / "boxes.csv", val_fraction=0)
    names, store, found = source.class_names(), DecodedFrames(FrameScale(None)), {}
    for video in source.videos("train"):
        timed = time_video(video, store)
        found[video.video_id] = {
            frame: [
                (box.tolist(), {names[label] for label in row.nonzero()[0]})
                for box, row in zip(boxes, labels, strict=True)
            ]
            for frame, boxes, labels in zip(timed.frames.tolist(), timed.boxes, timed.labels, strict=True)
        }
    return found


def assert_boxes(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for frame in expected:
        assert [actions for _, actions in found[frame]] == [actions for _, actions in expected[frame]]
        np.testing.assert_allclose(
            [box for box, _ in found[frame]], [box for box, _ in expected[frame]], rtol=0, atol=1e-6
        )


BY_LABEL = {
    2: [(WALKER[2], {"walk"})],
    3: [(WALKER[3], {"walk"}), (WAVER[3], {"wave"})],
    7: [(WALKER[7], {"walk"})],
}


def test_the_boxes_of_every_task_come_back_from_the_csv_on_their_frames(folder, capsys):
    run(folder)
    printed = capsys.readouterr().out
    assert "boxes.csv: 4 boxes of 2 people in kitchen\n  walk: 3 (new)\n  wave: 1 (new)" in printed
    assert "left out: 1 shapes that are no boxes" in printed
    (folder / "task.xml").write_text(TASK.replace('label="walk"', 'label="jump"'))
    run(folder, video="porch")
    found = read(folder)
    assert (folder / "classes.txt").read_text().split() == ["walk", "wave", "jump"]
    assert_boxes(found["kitchen"], BY_LABEL)
    jumping = {
        frame: [(box, {"jump"} if "walk" in actions else actions) for box, actions in boxes]
        for frame, boxes in BY_LABEL.items()
    }
    assert_boxes(found["porch"], jumping)


def test_persons_keep_their_number_and_boxes_their_corners_in_the_csv(folder):
    run(folder)
    assert (folder / "boxes.csv").read_text().splitlines() == [
        "kitchen,0.250000,0.125000,0.250000,0.500000,0.750000,1,0",
        "kitchen,0.375000,0.156250,0.250000,0.531250,0.750000,1,0",
        "kitchen,0.375000,0.750000,0.500000,1.000000,1.000000,2,1",
        "kitchen,0.875000,0.000000,0.000000,0.250000,1.000000,1,0",
    ]


def test_attributes_hold_one_action_or_several_or_none(folder):
    run(folder, "--attribute", "action", "--attribute", "alone", video="porch")
    run(folder, "--attribute", "action")
    found = read(folder)
    expected = {
        2: [(WALKER[2], {"walk", "carry"})],
        3: [(WALKER[3], {"walk"}), (WAVER[3], {"wave"})],
        7: [(WALKER[7], set())],
    }
    assert_boxes(found["kitchen"], expected)
    assert_boxes(found["porch"], expected | {2: [(WALKER[2], {"walk", "carry", "alone"})]})
    with pytest.raises(UserError, match=r"track 0 \(walk\) has no attribute verb on frame 2; it has action, alone"):
        read_cvat(folder / "task.xml", ["verb"])


def test_a_task_read_again_replaces_its_video_and_leaves_the_rest_and_the_ids(folder):
    run(folder, video="porch")
    (folder / "task.xml").write_text(TASK.replace('label="wave"', 'label="bow"'))
    run(folder)
    before = (folder / "boxes.csv").read_text()
    run(folder)
    assert sorted((folder / "boxes.csv").read_text().splitlines()) == sorted(before.splitlines())
    assert (folder / "classes.txt").read_text().split() == ["walk", "wave", "bow"]
    (folder / "task.xml").write_text(TASK)
    run(folder)
    assert_boxes(read(folder)["kitchen"], BY_LABEL)
    assert (folder / "classes.txt").read_text().split() == ["walk", "wave", "bow"]


def test_the_zip_of_cvat_is_read_and_a_frame_rate_does_in_place_of_the_video(folder):
    with zipfile.ZipFile(folder / "task.zip", "w") as archive:
        archive.writestr("annotations.xml", TASK)
    run(folder, "--frame-rate", "8", task="task.zip")
    assert_boxes(read(folder)["kitchen"], BY_LABEL)


def test_a_rotated_box_becomes_its_outer_bounds(folder):
    turned = TASK.replace('xtl="8.00" ytl="12.00"', 'rotation="90.00" xtl="8.00" ytl="18.00"').replace(
        'xbr="32.00" ybr="36.00"', 'xbr="32.00" ybr="30.00"'
    )
    (folder / "task.xml").write_text(turned)
    box = next(box for box in read_cvat(folder / "task.xml").boxes if box.frame == 2)
    # 24 x 12 around (20, 24), turned by a right angle.
    assert box.corners == pytest.approx((14 / 64, 12 / 48, 26 / 64, 36 / 48))


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]>'
MISTAKES = [
    (("<annotations>", f"{BOMB}<annotations>"), "it declares a document type, which CVAT never writes"),
    (("</annotations>", ""), "not a readable export of CVAT: no element found"),
    (('<track id="0"', '<image id="0"/><track id="0"'), 'is no task of a video; export it .* as "CVAT for video'),
    (("<task>", "<project><tasks><task><id>1</id></task></tasks></project><task>"), "a project of several tasks"),
    (("original_size>", "size_of_pictures>"), "does not say the size of the video"),
    (("<width>64</width>", "<width>0</width>"), "the size of the video must be positive, got 0x48"),
    (('xtl="8.00"', 'xtl="left"'), "box of track 0 on frame 2: could not convert string to float: 'left'"),
    (('xbr="32.00"', ""), "box of track 0 on frame 2: it lacks 'xbr'"),
    (('frame="7"', 'frame="10"'), "frame 10 of kitchen is annotated, but it has 10 frames"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES, ids=[message[:30] for _, message in MISTAKES])
def test_mistakes_are_named_and_leave_no_file(folder, change, message, capsys):
    (folder / "task.xml").write_text(TASK.replace(*change))
    with pytest.raises(SystemExit) as end:
        run(folder)
    said = capsys.readouterr().err
    assert end.value.code == 1
    assert re.search(message, said), said
    assert sorted(path.name for path in folder.iterdir()) == ["task.xml", "videos"]


def test_boxes_outside_the_frame_are_left_out_and_counted(folder, capsys):
    moved = TASK.replace('xtl="48.00" ytl="24.00" xbr="64.00"', 'xtl="70.00" ytl="24.00" xbr="80.00"')
    (folder / "task.xml").write_text(moved)
    run(folder)
    assert "left out: 1 boxes without area" in capsys.readouterr().out
    assert set(read(folder)["kitchen"]) == {2, 3, 7}


def test_the_command_runs_as_a_module(folder):
    command = [sys.executable, "-m", "datamodules.annotations.cvat", str(folder / "none.xml"), "--video", "kitchen"]
    command += ["--frame-rate", "8", "--output", str(folder / "b.csv"), "--classes", str(folder / "c.txt")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (1, f"error: {folder / 'none.xml'}: no such export of CVAT\n")
