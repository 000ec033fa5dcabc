from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from datamodules.annotations.activitynet import ActivityNet, read_segment_json
from datamodules.annotations.features import FeatureFolder
from datamodules.errors import UserError

FIXTURES = Path(__file__).parents[4] / "shared/data/mmaction2_fixtures"
needs_data = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"needs {FIXTURES}")


def entry(subset, *segments, duration=100.0):
    return {
        "duration": duration,
        "subset": subset,
        "resolution": "320x240",
        "url": "https://www.youtube.com/watch?v=x",
        "annotations": [{"segment": [start, end], "label": label} for start, end, label in segments],
    }


DATABASE = {
    "sJFgo9H6zNo": entry("training", (0, 10, "Zumba"), (20, 30.5, "Archery")),
    "v_begins_so": entry("training", (1, 2, "Archery")),
    "bYUmtLBL7W4": entry("validation", (5, 105, "Zumba")),
    "gone": entry("validation", (5, 10, "Zumba")),
    "hidden": entry("testing"),
}


@pytest.fixture
def annotation(tmp_path):
    path = tmp_path / "activity_net.v1-3.min.json"
    path.write_text(json.dumps({"database": DATABASE, "taxonomy": [], "version": "VERSION 1.3"}))
    return path


def names(videos):
    return [video.video_id for video in videos]


def test_one_file_holds_both_splits(annotation):
    source = ActivityNet(annotation)
    assert source.class_names() == ("Archery", "Zumba")
    assert names(source.videos("train")) == ["sJFgo9H6zNo", "v_begins_so"]
    assert names(source.videos("val")) == names(source.videos("test")) == ["bYUmtLBL7W4", "gone"]
    video = source.videos("train")[0]
    assert video.segments.tolist() == [[0, 10], [20, 30.5]] and video.labels.tolist() == [1, 0]
    assert video.duration == 100 and video.media is None
    assert source.evaluated_on() == "activity_net.v1-3.min, 2 videos"


def test_files_have_a_prefix_and_may_be_missing(annotation, tmp_path):
    for name in ("v_sJFgo9H6zNo.mp4", "v_bYUmtLBL7W4.mkv", "v_begins_so.webm"):
        (tmp_path / name).touch()
    source = ActivityNet(annotation, videos=tmp_path)
    train = source.videos("train")
    assert [video.media.name for video in train] == ["v_sJFgo9H6zNo.mp4", "v_begins_so.webm"]
    with pytest.warns(UserWarning, match="1 of 2 videos are not on disk and are left out: gone"):
        (video,) = source.videos("val")
    assert video.media.name == "v_bYUmtLBL7W4.mkv"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert source.evaluated_on() == "activity_net.v1-3.min, 1 of 2 videos"


@pytest.mark.parametrize("form", ["list", "json", "txt"])
def test_blocked_videos_are_not_missed(annotation, tmp_path, form):
    (tmp_path / "v_bYUmtLBL7W4.mp4").touch()
    blocked = ["v_gone", "another"]
    if form == "json":
        (tmp_path / "blocked.json").write_text(json.dumps(blocked))
        blocked = tmp_path / "blocked.json"
    elif form == "txt":
        (tmp_path / "blocked.txt").write_text("gone\nanother\n")
        blocked = tmp_path / "blocked.txt"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = ActivityNet(annotation, videos=tmp_path, blocked_videos=blocked)
        assert names(source.videos("val")) == ["bYUmtLBL7W4"]
        assert source.evaluated_on() == "activity_net.v1-3.min, 1 videos"


def test_classes_may_be_listed(annotation, tmp_path):
    (tmp_path / "classes.txt").write_text("Zumba\nBungee jumping\nArchery\n")
    source = ActivityNet(annotation, classes=tmp_path / "classes.txt")
    assert source.class_names() == ("Zumba", "Bungee jumping", "Archery")
    assert source.videos("train")[0].labels.tolist() == [0, 2]
    (tmp_path / "classes.txt").write_text("Zumba\n")
    with pytest.raises(UserError, match="class 'Archery', which is not in the list"):
        ActivityNet(annotation, classes=tmp_path / "classes.txt").videos("train")


def test_a_file_a_split_without_subsets_as_mmaction2_has_them(tmp_path):
    video = {"duration_second": 10, "duration_frame": 300, "feature_frame": 288}
    for split, label in (("train", "A"), ("val", "B")):
        rows = [{"segment": [1.0, 2.0], "label": label}]
        (tmp_path / f"anet_anno_{split}.json").write_text(json.dumps({f"v_{split}": video | {"annotations": rows}}))
    source = ActivityNet(tmp_path / "anet_anno_train.json", tmp_path / "anet_anno_val.json")
    assert source.class_names() == ("A", "B")
    assert names(source.videos("train")) == ["train"] and names(source.videos("val")) == ["val"]
    assert source.videos("val")[0].duration == 10 and source.videos("val")[0].labels.tolist() == [1]
    (entry,) = read_segment_json(tmp_path / "anet_anno_val.json").values()
    assert entry.frame_rate == 30


def test_train_and_test_alone_make_the_two_splits(tmp_path):
    database = {"a": entry("train", ("1.5", "2", "A")), "b": entry("Test", (1, 2, "A"))}
    (tmp_path / "a.json").write_text(json.dumps({"database": database}))
    source = ActivityNet(tmp_path / "a.json")
    assert source.videos("train")[0].segments.tolist() == [[1.5, 2]] and names(source.videos("val")) == ["b"]


def test_features_spread_over_the_video_know_their_times(annotation, tmp_path):
    for name in ("sJFgo9H6zNo", "v_begins_so", "bYUmtLBL7W4", "gone"):
        np.save(tmp_path / f"{name}.npy", np.zeros((50, 4), np.float32))
    source = ActivityNet(annotation, features=FeatureFolder(tmp_path, stride_frames=None))
    array = source.videos("train")[0].media
    assert (array.first_seconds, array.step_seconds) == (1.0, 2.0)


@needs_data
def test_the_published_fixtures_load():
    (first, second) = ActivityNet(FIXTURES / "action_test_anno.json").videos("train")
    assert first.video_id == "test1" and first.duration == 1 and first.segments.tolist() == [[0.3, 0.6]]
    assert second.video_id == "test2" and second.labels.tolist() == [0]
    source = ActivityNet(FIXTURES / "eval_localization/gt.json", classes=None)
    with pytest.raises(UserError, match="no video for train; its subsets are val"):
        source.videos("train")
    truth = read_segment_json(FIXTURES / "eval_localization/gt.json")
    assert truth.keys() == {"bYUmtLBL7W4", "hDPLy21Yyuk"} and truth["hDPLy21Yyuk"].subset == "validation"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not json"),
        ("[1]", "a list"),
        ('{"results": {}}', "results"),
        ('{"database": {"x": {"annotations": [{"segment": [1], "label": "A"}]}}}', "entry x"),
        ('{"database": {"x": {"annotations": [{"segment": ["a", 2], "label": "A"}]}}}', "entry x"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, words):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError, match=words) as error:
        read_segment_json(tmp_path / "bad.json")
    assert "bad.json" in str(error.value)


def test_other_mistakes_are_named(annotation, tmp_path):
    with pytest.raises(UserError, match="blocked"):
        ActivityNet(annotation, blocked_videos=tmp_path / "blocked.json").videos("val")
    with pytest.raises(UserError, match=r"classes\.txt"):
        ActivityNet(annotation, classes=tmp_path / "classes.txt").class_names()
    (tmp_path / "odd.json").write_text(json.dumps({"database": {"a": entry("holdout", (1, 2, "A"))}}))
    with pytest.raises(UserError, match="subset 'holdout'"):
        ActivityNet(tmp_path / "odd.json").videos("train")
    (tmp_path / "nan.json").write_text(
        json.dumps({"database": {"a": entry("training", (float("nan"), 2, "A")), "b": entry("validation")}})
    )
    with pytest.raises(UserError, match="segment of a has no finite"):
        ActivityNet(tmp_path / "nan.json").videos("train")
