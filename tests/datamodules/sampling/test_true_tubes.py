"""The tubes of the ground truth, in the frames that a stream takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from datamodules.annotations.pickles.safe_pickle import load_pickle
from datamodules.annotations.source import AnnotatedVideo, DetectionSource, Keyframe
from datamodules.annotations.ucf101_24 import UCF101_24
from datamodules.puppets import Puppets
from datamodules.puppets.actions import CLASS_NAMES
from tests.datamodules.miniature import FPS, numbered_frames, write_video
from tests.flat_data import clip_data, stream_data

REAL = Path(__file__).parents[4] / "shared/data/ucf101_24"
LEFT, RIGHT = [0.0, 0.25, 0.25, 0.75], [0.5, 0.25, 1.0, 1.0]
NOTHING, WALK, WAVE, BOTH = [0, 0], [1, 0], [0, 1], [1, 1]


class OneVideo(DetectionSource):
    """A video of 96 x 128 pixels; each annotation is a frame and the boxes on it: (track, box, labels)."""

    def __init__(self, folder: Path, length: int, annotations: dict[int, list[tuple]], has_tracks: bool = True) -> None:
        self.folder, self.length, self.annotations, self.has_tracks = folder, length, annotations, has_tracks

    def prepare(self) -> None:
        write_video(self.folder / "video.mp4", numbered_frames(self.length), FPS)

    def class_names(self) -> tuple[str, ...]:
        return ("walk", "wave")

    def videos(self, split):
        keyframes = []
        for frame, people in self.annotations.items():
            tracks, boxes, labels = zip(*people, strict=True) if people else ((), np.empty((0, 4)), np.empty((0, 2)))
            known = np.asarray(tracks, np.int64) if self.has_tracks else None
            boxes, labels = np.asarray(boxes, np.float32), np.asarray(labels, np.uint8)
            keyframes.append(Keyframe(frame / FPS, boxes, labels, known))
        return (AnnotatedVideo("video", self.folder / "video.mp4", tuple(keyframes)),)


def tubes_of(folder, annotations, length=8, stride=1, **options):
    source = OneVideo(folder, length, annotations, **options)
    data = stream_data(source, frame_stride=stride, short_side=48, cache=None)
    data.prepare_data()
    data.setup("validate")
    return data.true_tubes("val")["video"]


def shown(video):
    return sorted((tube.label, tube.frames.tolist()) for tube in video.tubes)


def test_a_tube_is_one_person_doing_one_action(tmp_path):
    people = [(3, LEFT, WALK), (8, RIGHT, BOTH)]
    video = tubes_of(tmp_path, dict.fromkeys(range(4), people))
    assert shown(video) == [(0, [0, 1, 2, 3]), (0, [0, 1, 2, 3]), (1, [0, 1, 2, 3])]
    assert video.num_slots == 8 and list(video.annotated.values()) == [0, 1, 2, 3]
    # In pixels of the video, whatever size its frames have.
    assert {tuple(tube.boxes[0].tolist()) for tube in video.tubes} == {(0, 24, 32, 72), (64, 24, 128, 96)}


def test_it_ends_where_the_person_stops_leaves_or_is_not_annotated(tmp_path):
    walking, idle = [(1, LEFT, WALK)], [(1, LEFT, NOTHING)]
    assert shown(tubes_of(tmp_path, {0: walking, 1: walking, 2: idle, 3: walking})) == [(0, [0, 1]), (0, [3])]
    assert shown(tubes_of(tmp_path, {0: walking, 1: walking, 2: [], 3: walking})) == [(0, [0, 1]), (0, [3])]
    assert shown(tubes_of(tmp_path, {0: walking, 1: walking, 3: walking, 4: walking})) == [(0, [0, 1]), (0, [3, 4])]
    other = [(2, LEFT, WALK)]
    assert shown(tubes_of(tmp_path, {0: walking, 1: walking, 2: other, 3: other})) == [(0, [0, 1]), (0, [2, 3])]


def test_sampled_frames_count_and_not_those_of_the_file(tmp_path):
    walking = [(1, LEFT, WALK)]
    video = tubes_of(tmp_path, dict.fromkeys((0, 3, 4, 6, 7), walking), length=8, stride=2)
    assert shown(video) == [(0, [0, 1, 2, 3])] and video.num_slots == 4
    assert video.annotated == {0.0: 0, 3 / FPS: 1, 4 / FPS: 2, 6 / FPS: 3}


def test_the_first_of_several_boxes_of_a_person_counts(tmp_path):
    video = tubes_of(tmp_path, {frame: [(1, RIGHT, WALK), (1, LEFT, WALK)] for frame in range(2)})
    (tube,) = video.tubes
    assert tube.boxes[:, 0].tolist() == [64, 64]


def test_annotations_that_cannot_make_tubes_say_so(tmp_path):
    walking = [(1, LEFT, WALK)]
    with pytest.raises(ValueError, match="without person ids or tubes"):
        tubes_of(tmp_path, dict.fromkeys(range(4), walking), has_tracks=False)
    with pytest.raises(ValueError, match="one in 2 of the frames that a stream of stride 1 takes"):
        tubes_of(tmp_path, dict.fromkeys((0, 2, 4), walking))
    assert tubes_of(tmp_path, {0: [], 1: []}).tubes == ()


@pytest.mark.slow
@pytest.mark.parametrize("stride", [2, 4])
def test_puppets_agree_with_their_file_of_tubes(tiny_puppets, stride):
    puppets = Puppets(tiny_puppets, "tiny")
    data = stream_data(puppets, frame_stride=stride, cache=None)
    data.prepare_data()
    data.setup("validate")
    found = data.true_tubes("val")
    clips = clip_data(puppets, frame_stride=4, keyframe_grid=stride, cache=None)
    clips.prepare_data()
    clips.setup("validate")
    expected = json.loads((tiny_puppets / "tiny" / "val_tubes.json").read_text())
    assert found.keys() == expected.keys() == clips.true_tubes("val").keys()
    for name, video in expected.items():
        spans = []
        for tube in (tube for tubes in video["persons"].values() for tube in tubes):
            frames = np.arange(tube["start_frame"], tube["start_frame"] + len(tube["boxes"]))
            taken = frames % stride == 0
            if taken.any():
                boxes = np.asarray(tube["boxes"])[taken]
                spans.append((CLASS_NAMES.index(tube["label"]), (frames[taken] // stride).tolist(), boxes))
        mine = [(tube.label, tube.frames.tolist(), tube.boxes) for tube in found[name].tubes]
        assert len(mine) >= 3
        for ours, theirs in zip(sorted(mine, key=key), sorted(spans, key=key), strict=True):
            assert ours[:2] == theirs[:2]
            np.testing.assert_allclose(ours[2], theirs[2], atol=0.03)  # the csv has four digits
        of_clips = [(tube.label, tube.frames.tolist(), tube.boxes) for tube in clips.true_tubes("val")[name].tubes]
        assert [tube[:2] for tube in of_clips] == [tube[:2] for tube in mine]


@pytest.mark.skipif(not REAL.exists(), reason="real annotations are not on this machine")
def test_real_tubes_are_those_of_their_file():
    truth = load_pickle(REAL / "UCF101v2-GT.mini.pkl")
    data = stream_data(UCF101_24(REAL / "videos", REAL / "UCF101v2-GT.mini.pkl"), frame_stride=1, cache=None)
    data.prepare_data()
    data.setup("validate")
    found = data.true_tubes("val")
    assert found.keys() == {opened.video_id for opened in data.videos("val")}
    for opened in data.videos("val"):
        (name,) = (name for name in truth["gttubes"] if name.endswith(f"/{opened.video_id}"))
        # The file is about frames of 320 x 240 pixels, the videos are a little larger.
        scale = np.tile(np.divide(opened.facts.original_size, truth["resolution"][name])[::-1], 2)
        expected = [
            (label, (tube[:, 0] - 1).astype(int).tolist(), tube[:, 1:] * scale)
            for label, tubes in truth["gttubes"][name].items()
            for tube in tubes
        ]
        mine = [(tube.label, tube.frames.tolist(), tube.boxes) for tube in found[opened.video_id].tubes]
        for ours, theirs in zip(sorted(mine, key=key), sorted(expected, key=key), strict=True):
            assert ours[:2] == theirs[:2]
            np.testing.assert_allclose(ours[2], theirs[2], atol=1e-3)


def key(tube):
    return tube[0], tube[1], tube[2][0].round().tolist()
