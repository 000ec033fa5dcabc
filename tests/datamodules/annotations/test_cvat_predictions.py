"""Predictions written for CVAT, read back by our own reader, and as CVAT draws them between its keyframes."""

from __future__ import annotations

import errno
import json
import os
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from datamodules.annotations.cvat.convert import main
from datamodules.annotations.cvat.export import read_cvat
from datamodules.annotations.own_videos import OwnVideos
from tests.datamodules.miniature import numbered_frames
from tests.datamodules.written_videos import write_video

FRAMES, HEIGHT, WIDTH = 21, 48, 64
STRIDE = 2
CLASSES = ("walk", "carry/hold (an object)", "wave <both> & 'bow'")
"""With what xml must escape, and with brackets as AVA has them."""


def person(track: int, box: list[float], actions: dict[str, float], score: float = 0.9) -> dict:
    return {"track": track, "box": box, "person": score, "actions": actions}


def predicted() -> dict[int, list[dict]]:
    """By frame: one who walks evenly and begins to wave, one who jitters and is lost for two frames of the stream."""
    random = np.random.RandomState(0)
    frames: dict[int, list[dict]] = {}
    for frame in range(0, FRAMES, STRIDE):
        walker = {CLASSES[0]: 0.8} | ({CLASSES[2]: 0.4} if frame >= 10 else {})
        frames[frame] = [person(0, [2.0 + frame, 10.0, 12.0 + frame, 40.0], walker)]
        if frame in (0, 2, 4, 10, 12):
            corners = np.round(random.uniform([37, 2, 57, 41], [43, 8, 63, 47]), 1).tolist()
            frames[frame].append(person(7, corners, {CLASSES[1]: 0.3} if frame != 2 else {}, score=0.6))
    frames[16].append(person(8, [-5.0, -5.0, 20.0, 60.0], {CLASSES[0]: 0.25}))
    return frames


def write(path: Path, frames: dict[int, list[dict]], video: str = "kitchen") -> None:
    lines = ({"video": video, "timestamp": frame / 8, "frame": frame, "detections": d} for frame, d in frames.items())
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def folder(tmp_path):
    write_video(tmp_path / "videos" / "kitchen.mp4", numbered_frames(FRAMES, HEIGHT, WIDTH), fps=8)
    write(tmp_path / "kitchen.jsonl", predicted())
    return tmp_path


def convert(folder: Path, *more: str, output: str = "task.xml") -> None:
    video = [] if "--video" in more else ["--video", str(folder / "videos" / "kitchen.mp4")]
    main(["--from-predictions", str(folder / "kitchen.jsonl"), *video, "--output", str(folder / output), *more])


def error_of(folder: Path, capsys, *more: str) -> str:
    with pytest.raises(SystemExit) as end:
        convert(folder, *more)
    assert end.value.code == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    return said


def boxes_of(frames: dict[int, list[dict]]) -> dict[tuple[int, int], tuple[list[float], set[str]]]:
    """By frame and person: fractions of the frame, cut off at its edges, and actions."""
    return {
        (frame, found["track"]): (
            (np.asarray(found["box"]) / [WIDTH, HEIGHT, WIDTH, HEIGHT]).clip(0, 1).tolist(),
            set(found["actions"]),
        )
        for frame, detections in frames.items()
        for found in detections
    }


def read_back(path: Path) -> dict[tuple[int, int], tuple[list[float], set[str]]]:
    task = read_cvat(path, check_boxes=True)
    return {(box.frame, box.track): (list(box.corners), set(box.actions)) for box in task.boxes}


def assert_same(found, expected) -> None:
    assert found.keys() == expected.keys()
    for key, (corners, actions) in expected.items():
        assert found[key][0] == pytest.approx(corners, abs=1e-4), key
        assert found[key][1] == actions, key


@pytest.mark.parametrize("output", ["task.xml", "task.zip"])
def test_our_reader_gets_the_same_boxes_and_actions_of_the_same_people(folder, output, capsys):
    convert(folder, output=output)
    assert_same(read_back(folder / output), boxes_of(predicted()))
    said = capsys.readouterr().out
    assert f"{output}: 3 tracks of kitchen, 17 boxes" in said and "walk: 12" in said
    if output == "task.zip":
        assert zipfile.ZipFile(folder / output).namelist() == ["annotations.xml"]


def test_predictions_become_annotation_of_ones_own_videos(folder):
    """Through CVAT's form and the csv, as corrected ones do."""
    convert(folder)
    files = {"--video-file": "videos/kitchen.mp4", "--output": "boxes.csv", "--classes": "classes.txt"}
    paths = [part for option, name in files.items() for part in (option, str(folder / name))]
    main([str(folder / "task.xml"), "--video", "kitchen", "--check-boxes", *paths])
    source = OwnVideos(folder / "videos", folder / "classes.txt", folder / "boxes.csv", val_fraction=0)
    (video,) = source.videos("train")
    expected = boxes_of(predicted())
    names = source.class_names()
    found = {
        (round(moment.timestamp * 8), tuple(np.round(box, 3).tolist())): {names[k] for k in labels.nonzero()[0]}
        for moment in video.keyframes
        for box, labels in zip(moment.boxes, moment.labels, strict=True)
    }
    assert found == {
        (frame, tuple(np.round(np.asarray(corners, np.float32), 3).tolist())): actions
        for (frame, _), (corners, actions) in expected.items()
    }


class Cvat:
    """CVAT's rules: keyframes alone count, boxes lie on the line between two of them, actions stay until the next."""

    def __init__(self, path: Path) -> None:
        self.tracks = {}
        for track in ElementTree.parse(path).getroot().iter("track"):
            shapes = [box for box in track.iter("box") if box.get("keyframe") == "1"]
            frames = [int(box.get("frame")) for box in shapes]
            assert frames == sorted(set(frames)) and frames[-1] < FRAMES
            self.tracks[int(track.get("id"))] = dict(zip(frames, shapes, strict=True))

    def drawn(self, track: int, frame: int) -> tuple[np.ndarray, set[str]] | None:
        """Corners and actions that it shows in a frame; None where the track is outside."""
        shapes = self.tracks[track]
        before = max((f for f in shapes if f <= frame), default=None)
        if before is None or shapes[before].get("outside") == "1":
            return None
        after = min((f for f in shapes if f >= frame), default=before)
        low, high = (
            np.asarray([float(shapes[f].get(s)) for s in ("xtl", "ytl", "xbr", "ybr")]) for f in (before, after)
        )
        share = (frame - before) / max(after - before, 1)
        checked = {each.get("name") for each in shapes[before].iter("attribute") if each.text == "true"}
        return low + share * (high - low), checked


@pytest.mark.parametrize("tolerance", [0.0, 2.0])
def test_what_cvat_draws_is_what_was_predicted(folder, tolerance):
    convert(folder, "--tolerance", str(tolerance))
    cvat = Cvat(folder / "task.xml")
    frames = predicted()
    for frame, detections in frames.items():
        by_track = {found["track"]: found for found in detections}
        for track in cvat.tracks:
            drawn = cvat.drawn(track, frame)
            assert (drawn is None) == (track not in by_track), (frame, track)
            if drawn is not None:
                np.testing.assert_allclose(drawn[0], by_track[track]["box"], rtol=0, atol=tolerance + 0.006)
                assert drawn[1] == set(by_track[track]["actions"])
    # A sampled frame stands for those until the next one: track 7 is lost at 6, not at 5; at 10 it is back.
    assert cvat.drawn(7, 5) is not None
    assert [cvat.drawn(7, frame) for frame in (6, 7, 8, 9, 14, 20)] == [None] * 6


def test_few_keyframes_are_left_to_correct(folder):
    """The even walk has three: its ends, and the frame at which the wave begins."""
    convert(folder, "--tolerance", "0.01")
    assert list(Cvat(folder / "task.xml").tracks[0]) == [0, 10, 20]


def test_a_track_that_lasts_until_the_end_has_no_box_beyond_it(folder):
    convert(folder)
    cvat = Cvat(folder / "task.xml")
    assert all(box.get("outside") == "0" for box in cvat.tracks[0].values())
    assert [frame for frame, box in cvat.tracks[7].items() if box.get("outside") == "1"] == [6, 14]


@pytest.mark.parametrize(
    ("more", "keep"),
    [
        (["--score", "0.35"], lambda track, found: True),
        (["--person-score", "0.7"], lambda track, found: found["person"] >= 0.7),
        (["--shortest-track", "2"], lambda track, found: track != 8),
    ],
)
def test_weak_actions_people_and_short_tracks_are_left_out(folder, more, keep):
    convert(folder, *more)
    frames = {
        frame: [
            found
            | {"actions": {k: v for k, v in found["actions"].items() if more[0] != "--score" or v >= float(more[1])}}
            for found in detections
            if keep(found["track"], found)
        ]
        for frame, detections in predicted().items()
    }
    assert_same(read_back(folder / "task.xml"), boxes_of(frames))


def test_the_label_of_a_new_task_has_a_check_box_for_each_class(folder):
    (folder / "classes.txt").write_text("\n".join((*CLASSES, "sit")))
    convert(folder, "--labels", str(folder / "labels.json"), "--classes", str(folder / "classes.txt"))
    (label,) = json.loads((folder / "labels.json").read_text())
    assert label["name"] == "person"
    assert [each["name"] for each in label["attributes"]] == [*CLASSES, "sit"]
    assert {(each["input_type"], each["mutable"], *each["values"]) for each in label["attributes"]} == {
        ("checkbox", True, "false")
    }
    meta = ElementTree.parse(folder / "task.xml").find("meta/task")
    assert [each.findtext("name") for each in meta.iter("attribute")] == [*CLASSES, "sit"]
    assert {each.findtext("mutable") for each in meta.iter("attribute")} == {"True"}


LINE = {"video": "kitchen", "timestamp": 0.0, "frame": 0, "detections": [person(0, [0, 0, 9, 9], {"walk": 0.5})]}
MISTAKES = [
    ("{", "line 1 is no line of predict's jsonl; give a jsonl file of predict"),
    ("kitchen,1.0,0.1,0.1,0.2,0.2,1,0.5", "line 1 is no line of predict's jsonl"),
    ("[1]", "line 1 is no line of predict's jsonl"),
    ({"frame": None}, "line 1 has no frame number, as of a detector that does not track; predict with a student"),
    ({"frame": 1.5}, "line 1 has a bad frame"),
    ({"detections": [{"box": [0, 0, 9, 9], "person": 1, "actions": {}}]}, "line 1 detection 1 has no track, box"),
    ({"detections": [person(0, [0, 0, 9], {})]}, "line 1 detection 1 has no track, box"),
    ({"detections": [person(0, [0, 0, 9, float("nan")], {})]}, "line 1 detection 1 has no track, box"),
    ({"detections": [person(0, [0, 0, 9, 9], {})] * 2}, "line 1 has track 0 twice"),
    ({"detections": [person(0, [0, 0, 9, 9], {"a\nb": 1})]}, "a name holds the line break"),
    ({"detections": [person(0, [0, 0, 9, 9], {"a\x01b": 1})]}, "xml cannot hold the name"),
    ({"video": "porch"}, "kitchen.jsonl: is about 'porch', not about "),
    ({"frame": FRAMES}, f"has a frame {FRAMES}, but "),
    ([LINE, LINE], "line 2 is about frame 0, the line before about frame 0"),
    ([LINE, LINE | {"video": "porch"}], "line 2 is about 'porch', the lines before about 'kitchen'"),
    ("", "holds no predictions; give a jsonl file of predict"),
]


@pytest.mark.parametrize(("change", "says"), MISTAKES, ids=[says[:40] for _, says in MISTAKES])
def test_other_files_are_refused_in_one_line(folder, capsys, change, says):
    lines = [change] if isinstance(change, str) else [LINE | change] if isinstance(change, dict) else change
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "kitchen.jsonl").write_text(text)
    assert says in error_of(folder, capsys)
    assert not (folder / "task.xml").exists() and not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--output", "task.json"], "task.json: must end in .xml or .zip"),
        (["--score", "1.5"], "action_score: must be from 0 to 1, got 1.5"),
        (["--shortest-track", "0"], "shortest_track: must be at least 1, got 0"),
        (["--video", "none.mp4"], "none.mp4: no such video file"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_in_one_line(folder, capsys, monkeypatch, more, says):
    monkeypatch.chdir(folder)
    assert says in error_of(folder, capsys, *more)


def test_classes_that_lack_an_action_are_refused(folder, capsys):
    (folder / "classes.txt").write_text("sit\n")
    assert "classes.txt: lacks the action 'walk'" in error_of(folder, capsys, "--classes", str(folder / "classes.txt"))


def test_a_file_is_whole_or_as_it_was_where_the_disk_is_full(folder, capsys, monkeypatch):
    convert(folder)
    before = (folder / "task.xml").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "task.xml: cannot be written: No space left on device" in error_of(folder, capsys, "--score", "0.9")
    assert (folder / "task.xml").read_bytes() == before and not list(folder.glob(".*"))
