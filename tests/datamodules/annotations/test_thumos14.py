"""THUMOS14 in every form of its annotation: written here, and the real files where they are."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest

from datamodules.annotations.features import FeatureFolder
from datamodules.annotations.thumos14 import CLASS_NAMES, Thumos14, read_per_frame, read_thumos14
from datamodules.errors import UserError
from datamodules.video.picture_folder import PictureFolder

DATA = Path(__file__).parents[4] / "shared/data/thumos14"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the real annotation in {DATA}")
FORMS = {
    "ActionFormer": "thumos14.actionformer.json",
    "G-TAD": "thumos_gt.gtad.json",
    "OpenTAD": "thumos_14_anno.opentad.mini.json",
    "texts": "txt",
}
METADATA = [DATA / f"thumos14_{split}_metadata.csv" for split in ("test", "valid")]
DIVING, CLIFF_DIVING = CLASS_NAMES.index("Diving"), CLASS_NAMES.index("CliffDiving")
pytestmark = pytest.mark.filterwarnings("ignore:.*begin after their end")


@pytest.fixture
def quiet():
    """Whatever is warned of fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def by_name(source, split):
    return {video.video_id: video for video in source.videos(split)}


# --- the real annotation ---------------------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_real_annotation_has_the_same_segments(form):
    reference, other = (Thumos14(DATA / FORMS[name], test_list=213) for name in ("ActionFormer", form))
    for split, at_least in (("train", 8), ("test", 8)):
        ours, theirs = by_name(reference, split), by_name(other, split)
        common = ours.keys() & theirs.keys()
        assert len(common) >= at_least and all(len(ours[name].segments) for name in common - {"video_test_0001292"})
        for name in common:
            np.testing.assert_array_equal(theirs[name].segments, ours[name].segments)
            np.testing.assert_array_equal(theirs[name].labels, ours[name].labels)


@needs_data
@pytest.mark.parametrize(("test_list", "segments"), [(213, 3358), (212, 3358), (211, 3329), (210, 3311)])
def test_the_test_list_is_chosen_and_named(test_list, segments):
    for form in ("ActionFormer", "texts"):
        source = Thumos14(DATA / FORMS[form], test_list=test_list)
        videos = source.videos("test")
        assert len(videos) == test_list and sum(len(video.segments) for video in videos) == segments
        assert source.evaluated_on() == f"THUMOS14 test list {test_list}"
        assert source.videos("val") is videos and len(source.videos("train")) == 200
    gtad = Thumos14(DATA / FORMS["G-TAD"], test_list=test_list)
    assert (
        gtad.evaluated_on()
        == {
            213: "THUMOS14 test list 213, 211 of its videos",
            212: "THUMOS14 test list 212, 210 of its videos",
            211: "THUMOS14 test list 211, 210 of its videos",
            210: "THUMOS14 test list 210",
        }[test_list]
    )


@needs_data
def test_all_real_cliff_diving_is_annotated_as_diving_too():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        source = Thumos14(DATA / FORMS["ActionFormer"])
        videos = source.videos("test")
    assert not any("CliffDiving" in str(warning.message) for warning in said)
    pairs = 0
    for video in videos:
        dives = {tuple(segment) for segment in video.segments[video.labels == DIVING].tolist()}
        cliffs = video.segments[video.labels == CLIFF_DIVING].tolist()
        pairs += len(cliffs)
        assert dives >= {tuple(segment) for segment in cliffs}
    assert pairs == 217


@needs_data
def test_real_segments_beyond_the_end_are_told_once_and_stay():
    source = Thumos14(DATA / FORMS["ActionFormer"], test_list=212)
    with pytest.warns(UserWarning, match=r"3 videos have segments .*video_test_0000270 \(22 of 29, ends at 176.25 s\)"):
        video = by_name(source, "test")["video_test_0000270"]
    assert len(video.segments) == 29
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source.videos("test")
    with pytest.warns(UserWarning, match="0000814"):
        Thumos14(DATA / FORMS["G-TAD"], test_list=210, metadata=METADATA).videos("test")


@needs_data
def test_real_ambiguous_spans_come_with_the_texts():
    videos = by_name(Thumos14(DATA / "txt", test_list=213, metadata=METADATA), "test")
    assert videos["video_test_0000293"].ambiguous.tolist()[0] == [50.6, 54.6]
    nothing_sure = videos["video_test_0001292"]
    assert len(nothing_sure.segments) == 0 and len(nothing_sure.ambiguous) == 3
    assert nothing_sure.duration == pytest.approx(182.3, abs=60)


@needs_data
def test_real_labels_of_frames_agree_with_the_segments_to_two_rows():
    exact = by_name(Thumos14(DATA / "txt", test_list=213), "test")
    rows = read_per_frame(DATA / "perframe_oadtr.mini.npz")
    assert len(rows) == 6
    for name, entry in rows.items():
        assert [label for *_, label in sorted(entry.annotations)] == [CLASS_NAMES[c] for c in exact[name].labels]
        ends = np.asarray([row[:2] for row in sorted(entry.annotations)])
        # A row lasts 0.2 s; the published ones are up to two off.
        assert np.abs(ends - exact[name].segments).max() < 0.4
        spans = np.asarray(entry.ambiguous).reshape(-1, 2)
        assert spans.shape == exact[name].ambiguous.shape and (np.abs(spans - exact[name].ambiguous) < 0.4).all()


# --- small files -----------------------------------------------------------------------------------------------------

SEGMENTS = [[1.0, 2.5, "Billiards"], [4.0, 6.0, "Diving"]]


def write_json(path, videos, **more):
    database = {
        name: {"annotations": [{"segment": segment[:2], "label": segment[2]} for segment in segments]} | more
        for name, segments in videos.items()
    }
    path.write_text(json.dumps({"database": database}))
    return path


@pytest.fixture
def annotation(tmp_path):
    names = [f"video_validation_{n:07d}" for n in (51, 52)] + [f"video_test_{n:07d}" for n in (4, 270)]
    return write_json(tmp_path / "thumos.json", dict.fromkeys(names, SEGMENTS), duration=8.0, fps=25.0)


def test_splits_follow_from_names_whatever_subsets_are_called(annotation, quiet):
    text = json.loads(annotation.read_text())
    for name, entry in text["database"].items():
        entry["subset"] = "validation" if "test" in name else "training"  # as OpenTAD has it
    annotation.write_text(json.dumps(text))
    source = Thumos14(annotation)
    assert [video.video_id for video in source.videos("train")] == [
        "video_validation_0000051",
        "video_validation_0000052",
    ]
    assert [video.video_id for video in source.videos("val")] == ["video_test_0000004", "video_test_0000270"]
    video = source.videos("val")[0]
    assert video.segments.tolist() == [[1, 2.5], [4, 6]] and video.segments.dtype == np.float64
    assert video.labels.tolist() == [2, 7] and video.labels.dtype == np.int64
    assert video.media is None and video.duration == 8 and video.ambiguous.shape == (0, 2)


def test_cliff_diving_alone_becomes_diving_too(tmp_path):
    path = write_json(
        tmp_path / "a.json", {"video_test_0000004": [[1, 2, "CliffDiving"], [3, 4, "CliffDiving"], [3, 4, "Diving"]]}
    )
    with pytest.warns(UserWarning, match=r"1 segments of CliffDiving .*video_test_0000004 at 1 s"):
        (video,) = Thumos14(path).videos("test")
    assert sorted(zip(video.segments[:, 0].tolist(), video.labels.tolist(), strict=True)) == [
        (1, 4),
        (1, 7),
        (3, 4),
        (3, 7),
    ]


def test_segments_without_length_are_left_out_and_told(tmp_path):
    path = write_json(
        tmp_path / "a.json", {"video_test_0000004": [[1, 1, "Diving"], [5, 3, "Diving"], [3, 4, "Diving"]]}
    )
    with pytest.warns(UserWarning, match="2 segments do not end after their start.*at 1 s.*at 5 s"):
        (video,) = Thumos14(path).videos("test")
    assert video.segments.tolist() == [[3, 4]]


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.uint8, np.int64, bool])
def test_pickles_of_frames_are_read_without_running_them(tmp_path, quiet, kind):
    rows = np.zeros((10, 22), kind)
    rows[:, 0] = 1
    rows[2:5, [0, 8]] = 0, 1
    rows[7:10, [0, 21]] = 0, 1
    path = tmp_path / "anno.pickle"
    path.write_bytes(pickle.dumps({"video_test_0000004": {"anno": rows, "feature_length": 10}}))
    (entry,) = read_thumos14(path).values()
    assert entry.annotations == [(pytest.approx(0.4), pytest.approx(1.0), "Diving")]
    assert entry.ambiguous == ((pytest.approx(1.4), pytest.approx(2.0)),) and entry.duration == pytest.approx(2.0)
    path.write_bytes(pickle.dumps({"video_test_0000004": Path("anything")}))
    with pytest.raises(UserError, match="refused: it asks for"):
        read_thumos14(path)


def test_metadata_fills_what_the_annotation_lacks(tmp_path, quiet):
    path = write_json(tmp_path / "a.json", {"video_test_0000004": SEGMENTS})
    (tmp_path / "facts.csv").write_text(
        "filename,video-duration,fps,video-frames\nvideo_test_0000004.mp4,20.5,25,512\n"
    )
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    np.save(tmp_path / "one" / "video_test_0000004.npy", np.zeros((126, 3), np.float32))
    features = FeatureFolder(tmp_path / "one")
    (video,) = Thumos14(path, features=features, metadata=[tmp_path / "facts.csv"]).videos("test")
    assert video.duration == 20.5
    assert video.media.step_seconds == 4 / 25 and video.media.first_seconds == 8 / 25
    with pytest.raises(UserError, match=r"set features\.frame_rate"):
        Thumos14(path, features=features).videos("test")
    (tmp_path / "facts.csv").write_text("name,seconds\nx,1\n")
    with pytest.raises(UserError, match=r"facts\.csv: needs the columns"):
        Thumos14(path, metadata=[tmp_path / "facts.csv"]).videos("test")


def test_videos_and_folders_of_pictures_are_found_at_any_depth_and_missing_ones_told_once(annotation, tmp_path):
    (tmp_path / "raw" / "validation").mkdir(parents=True)
    (tmp_path / "raw" / "validation" / "video_validation_0000051.mp4").touch()
    (tmp_path / "raw" / "frames" / "video_test_0000004").mkdir(parents=True)
    source = Thumos14(annotation, videos=tmp_path / "raw")
    with pytest.warns(UserWarning, match="1 of 2 videos are not on disk and are left out: video_validation_0000052"):
        (video,) = source.videos("train")
    assert video.media == tmp_path / "raw" / "validation" / "video_validation_0000051.mp4"
    with pytest.warns(UserWarning, match="0000270"):
        (video,) = source.videos("test")
    assert video.media == PictureFolder(tmp_path / "raw" / "frames" / "video_test_0000004", 25.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert source.evaluated_on() == "THUMOS14 test list 212, 1 of its videos"
    with pytest.raises(UserError, match="none of 2 annotated videos"):
        Thumos14(annotation, videos=tmp_path / "raw" / "frames" / "video_test_0000004").videos("test")


def test_mistakes_are_named(annotation, tmp_path):
    with pytest.raises(UserError, match="test_list must be one of 213, 212, 211, 210, got 209"):
        Thumos14(annotation, test_list=209)
    with pytest.raises(UserError, match="not from both"):
        Thumos14(annotation, videos="a", features=FeatureFolder("b"))
    with pytest.raises(UserError, match=r"absent\.json"):
        Thumos14(tmp_path / "absent.json").prepare()
    (tmp_path / "texts").mkdir()
    with pytest.raises(UserError, match=r"Diving_test\.txt"):
        Thumos14(tmp_path / "texts").prepare()
    (tmp_path / "texts" / "Diving_test.txt").write_text("video_test_0000004 1.0 2.0\nvideo_test_0000004 1.0\n")
    with pytest.raises(UserError, match=r"Diving_test\.txt: line 2"):
        Thumos14(tmp_path / "texts").prepare()
    (tmp_path / "texts" / "Diving_test.txt").unlink()
    (tmp_path / "texts" / "Surfing_test.txt").write_text("video_test_0000004 1.0 2.0\n")
    with pytest.raises(UserError, match="'Surfing', which is not in the list"):
        Thumos14(tmp_path / "texts").videos("test")
    with pytest.raises(UserError, match="no video whose name begins with video_validation_"):
        Thumos14(tmp_path / "texts").videos("train")
    np.savez(tmp_path / "frames.npz", video_test_0000004=np.zeros((4, 21)))
    with pytest.raises(UserError, match=r"video_test_0000004 must be \(T, 22\) one-hot rows"):
        Thumos14(tmp_path / "frames.npz").prepare()
