"""CVAT's export, written here by hand, through the csv and back."""

import collections
import errno
import itertools
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from datamodules.annotations.cvat.convert import add_to_csv, main
from datamodules.annotations.cvat.export import read_cvat
from datamodules.annotations.own_videos import OwnVideos
from datamodules.errors import UserError
from datamodules.frames.store import DecodedFrames, FrameScale
from datamodules.sampling.windows import time_video
from tests.datamodules.miniature import numbered_frames
from tests.datamodules.written_videos import write_video

ROOT = Path(__file__).parents[3]

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
    (('frame="7"', 'frame="10"'), "is a task of the frames 0 to 9 with a box on frame 10; delete start_frame"),
    (('frame="7"', 'frame="-1"'), "box of track 0 on frame -1: frames count from 0"),
    (('frame="7"', 'frame="7.5"'), "box of track 0 on frame 7.5: invalid literal"),
    (('frame="7"', f'frame="{"9" * 5000}"'), "box of track 0 on frame 9+: Exceeds the limit"),
    (('frame="7"', ""), "box of track 0 on frame None: it lacks 'frame'"),
    (('xtl="8.00"', 'xtl="nan"'), "box of track 0 on frame 2: corners and rotation must be finite"),
    (('xtl="8.00"', 'rotation="inf" xtl="8.00"'), "box of track 0 on frame 2: corners and rotation must be finite"),
    (('track id="0" label="walk"', 'track id="0"'), "track 0 has no label"),
    (('track id="0" label="walk"', 'track label="walk"'), "track None has no id"),
    (('track id="1"', 'track id="0"'), "two tracks have the id 0"),
    (('track id="0"', 'track id="left"'), "box of track left on frame 2: invalid literal"),
    (("<width>64</width>", "<width>wide</width>"), "the size of the video must be positive, got nanxnan"),
    (('encoding="utf-8"', 'encoding="none"'), "is not a readable export of CVAT: unknown encoding"),
    (('encoding="utf-8"', 'encoding="utf-16"'), "is not a readable export of CVAT: "),
    (("<labels>", "<x>" * 40 + "</x>" * 40 + "<labels>"), "has elements more than 32 deep"),
    (("<meta>", "<meta><job><id>1</id></job>"), "is a job that does not say its frames; export the whole task"),
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


def test_frames_that_the_video_has_not_are_refused(folder, capsys):
    other = TASK.replace('frame="7"', 'frame="10"').replace("<stop_frame>9<", "<stop_frame>10<")
    (folder / "task.xml").write_text(other)
    with pytest.raises(SystemExit):
        run(folder)
    assert "frame 10 of kitchen is annotated, but it has 10 frames; is this the video?" in capsys.readouterr().err


def refused(folder: Path, capsys, *more: str, **where: str) -> str:
    """Return the error of an export that is refused; nothing may be written."""
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".csv", ".txt")}
    with pytest.raises(SystemExit) as end:
        run(folder, *more, **where)
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1, said
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".csv", ".txt")}
    assert after == before
    return said


# ---------------------------------------------------------------------------------------------------------------------
# Jobs: CVAT cuts a task into parts, and people export them one by one.


def boxes(frames, label="walk", track=0) -> str:
    """A track with a box on each of the frames, which is ``frame`` pixels wide and so tells its frame."""
    rows = (f'<box frame="{f}" outside="0" xtl="0" ytl="0" xbr="{f + 1}" ybr="12"></box>' for f in frames)
    return f'<track id="{track}" label="{label}">{"".join(rows)}</track>'


def export(first: int, last: int, *tracks: str, kind: str = "job") -> str:
    return (
        f"<annotations><meta><{kind}><id>1</id><mode>interpolation</mode><start_frame>{first}</start_frame>"
        f"<stop_frame>{last}</stop_frame><original_size><width>64</width><height>48</height></original_size></{kind}>"
        f"</meta>{''.join(tracks)}</annotations>"
    )


def rows_of(folder: Path, video: str = "kitchen") -> list[tuple[int, int, str, str]]:
    """Frame by its time, frame by its box, action and person of every row, by frame."""
    names = (folder / "classes.txt").read_text().splitlines()
    rows = [line.split(",") for line in (folder / "boxes.csv").read_text().splitlines()]
    found = [
        (round(float(row[1]) * 8), round(float(row[4]) * 64) - 1, names[int(row[6]) - 1], row[7])
        for row in rows
        if row[0] == video
    ]
    assert len(set(found)) == len(found)
    return sorted(found)


JOBS = {
    "one": export(0, 3, boxes([0, 1, 3], "walk")),
    "two": export(4, 6, boxes([4, 5], "run"), boxes([5, 6], "walk", track=3)),
    "three": export(7, 9, boxes([7, 8, 9], "jump")),
}
EXPECTED = [
    (f, a) for f, a in [(0, "walk"), (1, "walk"), (3, "walk"), (4, "run"), (5, "run"), (5, "walk"), (6, "walk")]
]
EXPECTED += [(7, "jump"), (8, "jump"), (9, "jump")]


@pytest.mark.parametrize("order", list(itertools.permutations(JOBS)), ids=" ".join)
@pytest.mark.parametrize("timing", ["video", "rate"])
def test_jobs_exported_one_by_one_are_joined_in_any_order(folder, order, timing, capsys):
    run(folder, video="porch")  # another video is left alone
    others = [line for line in (folder / "boxes.csv").read_text().splitlines() if line.startswith("porch,")]
    for job in order:
        (folder / "job.xml").write_text(JOBS[job])
        run(folder, *(["--frame-rate", "8"] if timing == "rate" else []), task="job.xml")
    found = rows_of(folder)
    assert sorted((frame, action) for frame, _, action, _ in found) == sorted(EXPECTED)
    assert all(by_time == by_box for by_time, by_box, *_ in found)
    people = {(frame, action): person for frame, _, action, person in found}
    assert len(set(people.values())) == 4  # nobody of one job is taken for somebody of another
    assert people[0, "walk"] == people[3, "walk"] and people[5, "walk"] == people[6, "walk"]
    assert [line for line in (folder / "boxes.csv").read_text().splitlines() if line.startswith("porch,")] == others
    assert "joined with 7 rows of other frames" in capsys.readouterr().out or order[-1] != "three"


def test_a_job_that_was_corrected_replaces_its_own_frames_alone(folder, capsys):
    for job in JOBS:
        (folder / "job.xml").write_text(JOBS[job])
        run(folder, task="job.xml")
    before = rows_of(folder)
    (folder / "job.xml").write_text(export(4, 6, boxes([4], "wave")))
    capsys.readouterr()
    run(folder, task="job.xml")
    said = capsys.readouterr().out
    assert "1 boxes of 1 people in kitchen, frames 4 to 6\n" in said
    assert "replaced: 4 rows of these frames\n  joined with 6 rows of other frames" in said
    after = rows_of(folder)
    assert [row for row in after if not 4 <= row[0] <= 6] == [row for row in before if not 4 <= row[0] <= 6]
    assert [(frame, action) for frame, _, action, _ in after if 4 <= frame <= 6] == [(4, "wave")]
    (folder / "job.xml").write_text(export(7, 9))  # everybody has gone
    run(folder, task="job.xml")
    assert max(frame for frame, *_ in rows_of(folder)) == 4


def test_the_whole_task_takes_the_place_of_its_jobs(folder, capsys):
    for job in JOBS:
        (folder / "job.xml").write_text(JOBS[job])
        run(folder, task="job.xml")
    capsys.readouterr()
    run(folder)
    assert "replaced: 10 rows of these frames" in capsys.readouterr().out
    assert [(frame, action) for frame, _, action, _ in rows_of(folder)] == [
        (2, "walk"), (3, "walk"), (3, "wave"), (7, "walk")
    ]  # fmt: skip


def test_two_tasks_of_parts_of_a_video_are_joined_as_jobs_are(folder):
    for first, last in ((0, 4), (5, 9)):
        (folder / "part.xml").write_text(export(first, last, boxes(range(first, last + 1)), kind="task"))
        run(folder, task="part.xml")
    assert [frame for frame, *_ in rows_of(folder)] == list(range(10))


def test_a_job_with_boxes_on_frames_of_another_is_refused(folder, capsys):
    (folder / "job.xml").write_text(export(0, 4, boxes([3, 5])))
    assert "is a job of the frames 0 to 4 with a box on frame 5; export the whole task" in refused(
        folder, capsys, task="job.xml"
    )


def test_frames_of_variable_length_belong_to_the_job_that_shows_them(tmp_path):
    times = np.asarray([0, 0.04, 0.05, 0.5, 0.52, 0.9])
    for first, last in ((0, 1), (2, 3), (4, 5), (2, 3)):
        (tmp_path / "job.xml").write_text(export(first, last, boxes(range(first, last + 1))))
        add_to_csv(read_cvat(tmp_path / "job.xml"), "v", times, tmp_path / "b.csv", tmp_path / "c.txt")
    found = sorted(float(line.split(",")[1]) for line in (tmp_path / "b.csv").read_text().splitlines())
    assert found == times.tolist()


# ---------------------------------------------------------------------------------------------------------------------
# Labels.


@pytest.mark.parametrize("character", ["&#10;", "&#13;", "&#133;", "&#x2028;", "&#x2029;"])
@pytest.mark.parametrize("place", ["label", "attribute"])
def test_a_label_with_a_line_break_is_refused_by_its_name(folder, capsys, character, place):
    run(folder)  # names that are there already
    old, new = {"label": ('label="wave"', 'label="wave{}run"'), "attribute": (">wave<", ">wave{}run<")}[place]
    (folder / "task.xml").write_text(TASK.replace(old, new.format(character)))
    more = ["--attribute", "action"] if place == "attribute" else []
    said = refused(folder, capsys, *more)
    assert re.search(r"holds the line break '.*' within the name 'wave.*run'; give it a name of one line", said), said


@pytest.mark.parametrize("character", ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e"])
def test_characters_that_xml_forbids_are_refused_too(folder, capsys, character):
    (folder / "task.xml").write_text(TASK.replace('label="wave"', f'label="wave{character}run"'))
    assert "is not a readable export of CVAT: not well-formed" in refused(folder, capsys)


def test_labels_can_be_left_out(folder, capsys):
    ball = '<track id="9" label="ball"><box frame="3" outside="0" xtl="1" ytl="1" xbr="5" ybr="5"></box></track>'
    ball = TASK.replace("</annotations>", f"{ball}</annotations>")
    (folder / "task.xml").write_text(ball)
    said = refused(folder, capsys, "--attribute", "action")
    assert "track 9 (ball) has no attribute action on frame 3; it has none; name" in said
    assert 'leave the label out by --leave-out "ball"' in said
    run(folder, "--attribute", "action", "--leave-out", "ball")
    assert "left out: 1 shapes of labels that are not wanted" in capsys.readouterr().out
    run(folder, "--leave-out", "ball", "--leave-out", "wave", video="porch")
    assert "ball" not in (folder / "classes.txt").read_text()
    found = read(folder)
    assert_boxes(found["porch"], {frame: rows[:1] for frame, rows in BY_LABEL.items()})
    assert found["kitchen"][3][1][1] == {"wave"}
    said = refused(folder, capsys, "--leave-out", "bal")
    assert "has no label 'bal' to leave out; it has walk, wave, outline, ball" in said


# ---------------------------------------------------------------------------------------------------------------------
# Tasks made of pictures.


PICTURES = (
    "<annotations><meta><task><id>5</id><size>5</size><mode>annotation</mode></task></meta>"
    f"{boxes(range(5))}</annotations>"
)


def test_a_task_of_pictures_asks_for_their_size_and_rate_and_is_read_with_them(folder, capsys):
    (folder / "task.xml").write_text(PICTURES)
    said = refused(folder, capsys)
    assert "is a task made of pictures, whose size CVAT does not write; give it by --size WIDTHxHEIGHT, and by" in said
    said = refused(folder, capsys, "--size", "64x48")
    assert "is a task of 5 pictures, but " in said and "has 10 frames; give by --frame-rate how many" in said
    run(folder, "--size", "64x48", "--frame-rate", "4")  # every other frame
    assert [(frame, box) for frame, box, *_ in rows_of(folder)] == [(0, 0), (2, 1), (4, 2), (6, 3), (8, 4)]
    (folder / "task.xml").write_text(PICTURES.replace("<size>5<", "<size>10<"))
    run(folder, "--size", "64x48")  # every frame of the video
    assert [(frame, box) for frame, box, *_ in rows_of(folder)] == [(frame, frame) for frame in range(5)]


@pytest.mark.parametrize("size", ["64", "64x", "0x48", "64x-48", "6.4x48", "axb"])
def test_a_size_that_is_none_is_refused(folder, capsys, size):
    with pytest.raises(SystemExit):
        run(folder, "--size", size)
    assert f"expected WIDTHxHEIGHT in pixels, such as 640x480, got '{size}'" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# Damaged and hostile files.


def test_a_zip_that_is_cut_off_anywhere_or_has_a_wrong_byte_is_refused_in_one_line_or_read_whole(folder):
    with zipfile.ZipFile(folder / "task.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations.xml", TASK)
    whole, expected = (folder / "task.zip").read_bytes(), read_cvat(folder / "task.zip")
    damaged = [whole[:length] for length in range(0, len(whole), 7)]
    damaged += [whole[:at] + bytes([whole[at] ^ 0x5A]) + whole[at + 1 :] for at in range(0, len(whole), 3)]
    ends = collections.Counter()
    for contents in damaged:
        (folder / "task.zip").write_bytes(contents)
        try:
            assert read_cvat(folder / "task.zip") == expected
            ends["read"] += 1
        except UserError as error:
            assert "\n" not in str(error) and "task.zip" in str(error)
            ends["refused"] += 1
    assert ends["refused"] > 300, ends


def test_an_xml_that_is_cut_off_anywhere_is_refused_in_one_line(folder):
    for length in range(0, len(TASK.rstrip()), 11):
        (folder / "task.xml").write_text(TASK[:length])
        with pytest.raises(UserError, match=r"task\.xml: is not a readable export of CVAT: ") as refused:
            read_cvat(folder / "task.xml")
        assert "\n" not in str(refused.value)


def test_other_zips_are_refused_in_one_line(folder):
    with zipfile.ZipFile(folder / "task.zip", "w") as archive:
        archive.writestr("instances.json", "{}")
    with pytest.raises(UserError, match=r"task\.zip: is not a readable export of CVAT: .*no item named 'annotations"):
        read_cvat(folder / "task.zip")
    with zipfile.ZipFile(folder / "task.zip", "w") as archive:
        archive.writestr("annotations.xml", TASK)
    locked = bytearray((folder / "task.zip").read_bytes())
    for header, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[locked.index(header) + offset] |= 1
    (folder / "task.zip").write_bytes(locked)
    with pytest.raises(UserError, match=r"task\.zip: is not a readable export of CVAT: .*is encrypted"):
        read_cvat(folder / "task.zip")


def bomb(path: Path, megabytes: int, piece: str) -> None:
    block = piece.encode() * (2**20 // len(piece))
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("annotations.xml", "w") as file,
    ):
        file.write(b'<annotations><track id="0" label="walk">')
        for _ in range(megabytes):
            file.write(block)
        file.write(b"</track></annotations>")


BOX = '<box frame="0" outside="0" xtl="0" ytl="0" xbr="9" ybr="9"></box>'


@pytest.mark.slow
@pytest.mark.parametrize("piece", [BOX, f"<!-- {'x' * 2000} -->", '<box outside="1"/>', " "])
@pytest.mark.parametrize("says", ["its size", "less"])
def test_a_small_zip_that_unpacks_to_much_is_refused_and_takes_little_memory(tmp_path, piece, says):
    path = tmp_path / "task.zip"
    bomb(path, 100, piece)
    contents = bytearray(path.read_bytes())
    assert len(contents) < 2_000_000
    if says == "less":  # the length in the zip's list of contents
        place = contents.rindex(b"PK\x01\x02") + 24
        contents[place : place + 4] = (1000).to_bytes(4, "little")
        path.write_bytes(contents)
    code = (
        "import sys\n"
        "from datamodules.annotations.cvat.export import read_cvat\n"
        "from tests.datamodules.annotations.hostile_pickles import peak_mib\n"
        "before = peak_mib()\n"
        "try:\n    read_cvat(sys.argv[1])\nexcept ValueError as error:\n    print(error)\n"
        "print(peak_mib() - before)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    said, mebibytes = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    limit = {"its size": r"holds \d+ MiB of xml, and no more than \d+ MiB are read", "less": "is not a readable export"}
    assert re.search(rf"task\.zip: {limit[says]}", said), said
    assert int(mebibytes) < 100, mebibytes


@pytest.mark.slow
def test_the_zip_of_a_long_task_is_read(tmp_path):
    frames = "".join(BOX.replace('frame="0"', f'frame="{frame}"') for frame in range(100_000))
    with zipfile.ZipFile(tmp_path / "task.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations.xml", export(0, 99_999, f'<track id="0" label="walk">{frames}</track>'))
    assert len(read_cvat(tmp_path / "task.zip").boxes) == 100_000


@pytest.mark.parametrize("full", ["boxes.csv", "classes.txt"])
def test_files_are_whole_or_as_they_were_where_the_disk_is_full(folder, monkeypatch, capsys, full):
    run(folder)
    (folder / "task.xml").write_text(TASK.replace('label="wave"', 'label="bow"'))
    before = {name: (folder / name).read_text() for name in ("boxes.csv", "classes.txt")}
    sync = os.fsync

    def fail(descriptor: int) -> None:
        text = Path(f"/proc/self/fd/{descriptor}").resolve().read_text()
        if ("," in text) == (full == "boxes.csv"):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(SystemExit) as end:
        run(folder)
    assert end.value.code == 1
    assert f"{full}: cannot be written: No space left on device" in capsys.readouterr().err
    assert (folder / "boxes.csv").read_text() == before["boxes.csv"]
    assert (folder / "classes.txt").read_text().startswith(before["classes.txt"])
    assert not list(folder.glob(".*"))


def test_boxes_outside_the_frame_are_left_out_and_counted(folder, capsys):
    moved = TASK.replace('xtl="48.00" ytl="24.00" xbr="64.00"', 'xtl="70.00" ytl="24.00" xbr="80.00"')
    (folder / "task.xml").write_text(moved)
    run(folder)
    assert "left out: 1 boxes without area" in capsys.readouterr().out
    assert set(read(folder)["kitchen"]) == {2, 3, 7}


def test_the_command_runs_as_a_module(folder):
    command = [
        sys.executable,
        "-m",
        "datamodules.annotations.cvat",
        str(folder / "none.xml"),
        "--video",
        "kitchen",
    ]
    command += ["--frame-rate", "8", "--output", str(folder / "b.csv"), "--classes", str(folder / "c.txt")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (1, f"error: {folder / 'none.xml'}: no such export of CVAT\n")
