"""Tubes in files: what is written comes back, scores as it did, and what cannot be meant is named."""

import json

import numpy as np
import pytest

from datamodules.errors import UserError
from lightning_modules.metrics.tube_results import of_true_videos, read_tubes, score_tubes, write_tubes
from lightning_modules.metrics.video_map import VideoMeanAveragePrecision

NAMES = ("jump", "throw")


def some_videos(seed=0):
    generator = np.random.default_rng(seed)
    videos = {}
    for video, count in (("first", 6), ("nothing found", 0), ("second", 3)):
        tubes = []
        for _ in range(count):
            length, start = (int(value) for value in generator.integers(1, 9, 2))
            corner = generator.uniform(0, 60, (length, 2))
            boxes = np.concatenate([corner, corner + generator.uniform(8, 40, (length, 2))], axis=1)
            tube = {"label": int(generator.integers(0, 2)), "score": float(generator.random())}
            tubes.append(tube | {"frames": np.arange(start, start + length), "boxes": boxes})
        videos[video] = tubes
    return videos


def test_what_was_written_is_read_again_to_the_last_bit(tmp_path):
    videos = some_videos()
    write_tubes(tmp_path / "folder" / "found.json", videos, NAMES, 3, "online", {"weights": "a.pt"})
    again, stride, linker = read_tubes(tmp_path / "folder" / "found.json", NAMES)
    assert (list(again), stride, linker) == (list(videos), 3, "online")
    for video, tubes in videos.items():
        for one, other in zip(tubes, again[video], strict=True):
            assert (one["label"], one["score"]) == (other["label"], other["score"])
            np.testing.assert_array_equal(one["frames"], other["frames"])
            np.testing.assert_array_equal(one["boxes"], other["boxes"])
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["found.json"]


def test_frames_in_the_file_are_those_of_the_video(tmp_path):
    tube = {"label": 1, "score": 0.5, "frames": np.array([2, 3]), "boxes": np.array([[0, 0, 4, 8], [1, 0, 5, 8.5]])}
    write_tubes(tmp_path / "found.json", {"x": [tube]}, NAMES, 4, "act")
    record = json.loads((tmp_path / "found.json").read_text())
    assert record == {
        "version": "onlooker",
        "linker": "act",
        "frame_stride": 4,
        "tubes": {"x": [{"label": "throw", "score": 0.5, "start_frame": 8, "boxes": [[0, 0, 4, 8], [1, 0, 5, 8.5]]}]},
        "external_data": {},
    }


@pytest.mark.parametrize("protocol", ["act", "multisports"])
def test_saved_tubes_score_as_they_did_whatever_their_order(tmp_path, protocol):
    found = some_videos()
    truth = {name: [tube | {"boxes": tube["boxes"] + 1} for tube in tubes[:2]] for name, tubes in found.items()}
    metric = VideoMeanAveragePrecision(2, protocol=protocol)
    metric.update([{"tubes": tubes} for tubes in found.values()], [{"tubes": tubes} for tubes in truth.values()])
    before = metric.compute()
    write_tubes(tmp_path / "found.json", {name: found[name][::-1] for name in reversed(found)}, NAMES, 2, "online")
    after = score_tubes(read_tubes(tmp_path / "found.json", NAMES).videos, truth, metric)
    assert after["map_50"] == before["map_50"] > 0 and after["map_50_95"] == before["map_50_95"]
    assert after["num_other_videos"] == 0 and after["num_videos"] == 3


def test_the_ground_truth_chooses_the_videos():
    found = some_videos()
    truth = dict.fromkeys(("first", "not in the file"), found["first"])
    with pytest.warns(UserWarning, match="1 of 2 videos of the ground truth are not in the file"):
        scored = score_tubes(found, truth, VideoMeanAveragePrecision(2, protocol="multisports"))
    assert (scored["num_videos"], scored["num_other_videos"]) == (2, 2)
    # All of the first video is found and none of the other: half of each class, at precision 1.
    assert scored["map_75"].item() == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"none of the 1 videos to evaluate .* called third there and first here"):
        score_tubes(found, {"third": []}, VideoMeanAveragePrecision(2))


def test_tubes_of_other_programs_are_read(tmp_path):
    rows = [
        {"label": "jump", "score": "0.5", "start_frame": 7, "boxes": [[0, 0, 1, 1]]},
        {"label": "dive", "score": 1, "start_frame": 0, "boxes": [[0, 0, 1, 1]]},
    ]
    (tmp_path / "found.json").write_text(json.dumps({"tubes": {"x": rows}}))
    with pytest.warns(UserWarning, match=r"found\.json: 1 of 2 detections are left out: 1 class names .* \(dive\)"):
        found = read_tubes(tmp_path / "found.json", NAMES)
    (tube,) = found.videos["x"]
    assert (tube["label"], tube["score"], tube["frames"].tolist()) == (0, 0.5, [7])
    assert (found.frame_stride, found.linker) == (1, "unknown")


def test_videos_that_a_file_lacks_are_counted_and_named_and_those_without_tubes_are_not():
    truth = {f"v{number}": [] for number in range(8)}
    with pytest.warns(UserWarning) as said:
        of_true_videos({"v1": [], "other": []}, truth, "found.json")
    assert [str(warning.message) for warning in said] == [
        "found.json: 7 of 8 videos of the ground truth are not in the file and count as missed: v0, v2, v3, v4, v5, ..."
    ]


def row(**changes):
    return {"label": "jump", "score": 1, "start_frame": 0, "boxes": [[0, 0, 1, 1]]} | changes


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ([], 'has no "tubes"'),
        ({"results": {}}, 'has no "tubes"'),
        ({"tubes": {"x": [{"label": "jump", "score": 1}]}}, "a tube of x"),
        ({"tubes": {"x": [row(boxes=[])]}}, "a tube of x"),
        ({"tubes": {"x": [row(boxes=[[0, 0, 1]])]}}, r"boxes must be \(T, 4\)"),
        ({"tubes": {"x": [row(boxes=[[0, 0, 1, float("nan")]])]}}, "finite"),
        ({"tubes": {"x": [row(score=float("inf"))]}}, "score inf"),
        (
            {"tubes": {"x": [row(boxes=[[5, 0, 9, 9], [5, 0, 4, 9]])]}},
            "a box of x has x2 < x1 .*write x1,y1,x2,y2, not w",
        ),
        ({"tubes": {"x": [row(start_frame=3)]}, "frame_stride": 2}, "no frame of a stream of stride 2"),
        ({"tubes": {"x": [row(start_frame=-2)]}, "frame_stride": 2}, "start_frame -2"),
        ({"tubes": {"x": [row(start_frame=1e400)]}}, "a tube of x"),
        ({"tubes": {"x": [row(label=["jump"])]}}, "is no text"),
        ({"tubes": {}, "frame_stride": 0}, "frame_stride must be a positive"),
        ({"tubes": {"x": [row(label="7")]}}, "none of the 2 classes"),
    ],
)
def test_a_broken_file_is_named(tmp_path, record, words):
    (tmp_path / "found.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=words) as error:
        read_tubes(tmp_path / "found.json", NAMES)
    assert "found.json" in str(error.value)


def test_what_is_no_json_or_not_there_is_named(tmp_path):
    (tmp_path / "found.json").write_text("{")
    with pytest.raises(UserError, match=r"found\.json: is not json"):
        read_tubes(tmp_path / "found.json", NAMES)
    with pytest.raises(UserError, match=r"absent\.json: no such file"):
        read_tubes(tmp_path / "absent.json", NAMES)


def test_a_score_that_is_no_number_is_not_written(tmp_path):
    tube = {"label": 0, "score": float("nan"), "frames": np.array([0]), "boxes": np.ones((1, 4))}
    with pytest.raises(ValueError, match="JSON"):
        write_tubes(tmp_path / "found.json", {"x": [tube]}, NAMES, 1, "online")
    assert list(tmp_path.iterdir()) == []
