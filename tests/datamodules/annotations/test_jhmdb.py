"""JHMDB-21: its real ground truth on whatever holds the frames, names with every odd character included."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.annotations.jhmdb import JHMDB
from datamodules.annotations.pickles.safe_pickle import load_pickle
from datamodules.annotations.ucf101_24 import CLASSES
from datamodules.errors import UserError
from datamodules.frames.store import DecodedFrames, FrameScale
from datamodules.sampling.windows import time_video
from datamodules.video.picture_folder import PictureFolder
from lightning_modules.clip_detection import ClipDetectionModule
from tests.datamodules.miniature import numbered_frames, read_numbers, write_pictures
from tests.datamodules.miniature_tubes import write_ground_truth, write_videos
from tests.datamodules.written_videos import write_video
from tests.lightning_modules import tiny

REAL = Path(__file__).parents[4] / "shared/data/jhmdb/JHMDB-GT.pkl"
needs_data = pytest.mark.skipif(not REAL.exists(), reason="real annotations are not on this machine")
needs_videos = pytest.mark.skipif(not (REAL.parent / "videos").exists(), reason="real videos are not on this machine")
ODD = ("a b!", "#1 [x] @_{y}", "%d*?.avi_(z)+&", "ü'$-;", "[0-9]")


def names(source: JHMDB, split: str) -> list[str]:
    return [video.video_id for video in source.videos(split)]


def test_each_split_has_its_own_videos(tmp_path):
    write_videos(tmp_path / "videos")
    path = write_ground_truth(tmp_path / "JHMDB-GT.pkl", CLASSES, splits=3)
    for split, tested in ((1, "two"), (2, "three"), (3, "one")):
        source = JHMDB(tmp_path / "videos", path, split=split)
        assert names(source, "val") == names(source, "test") == [tested]
        assert sorted([*names(source, "train"), tested]) == ["one", "three", "two"]
    with pytest.raises(UserError, match="split must be 1, 2 or 3, got 4"):
        JHMDB(tmp_path / "videos", path, split=4)
    path = write_ground_truth(tmp_path / "JHMDB-GT.pkl", CLASSES, splits=2)
    with pytest.raises(UserError, match="has 2 splits, asked for split 3"):
        JHMDB(tmp_path / "videos", path, split=3).videos("val")


@pytest.mark.parametrize("kind", ["pictures", "files"])
def test_names_with_odd_characters_are_found_and_read(tmp_path, kind):
    names_of_videos = [f"brush_hair/{name}" for name in ODD]
    tube = np.asarray([(frame, 32, 24, 159, 119) for frame in (1, 2, 3)], np.float32)
    contents = {
        "labels": ["brush_hair", "catch"],
        "gttubes": {name: {0: [tube]} for name in names_of_videos},
        "nframes": dict.fromkeys(names_of_videos, 3),
        "resolution": dict.fromkeys(names_of_videos, (240, 320)),
        "train_videos": [names_of_videos],
        "test_videos": [[]],
    }
    (tmp_path / "gt.pkl").write_bytes(pickle.dumps(contents, 2))
    for name in ODD:
        if kind == "pictures":
            folder = write_pictures(tmp_path / "frames/brush_hair" / name, 3, "{:05d}.png", size=(120, 160))
            (folder / ".AppleDouble").touch()
            (folder / "Thumbs.db").touch()
        else:
            write_video(tmp_path / "frames/brush_hair" / "plain.mp4", numbered_frames(3, 120, 160), fps=30)
            shutil.move(tmp_path / "frames/brush_hair/plain.mp4", tmp_path / "frames/brush_hair" / f"{name}.avi")
    source = JHMDB(tmp_path / "frames", tmp_path / "gt.pkl")
    videos = source.videos("train")
    assert sorted(video.video_id for video in videos) == sorted(ODD)
    store = DecodedFrames(FrameScale(None))
    for video in videos:
        timed = time_video(video, store)
        assert isinstance(video.path, PictureFolder) == (kind == "pictures")
        assert read_numbers(store.get(video.path, timed.frames)) == [0, 1, 2]
        np.testing.assert_allclose(timed.boxes_in_pixels(1), [[16, 12, 79.5, 59.5]])
        assert video.keyframes[2].tracks.tolist() == [0]


@pytest.fixture(scope="module")
def two_real_videos(tmp_path_factory):
    """Numbered pictures in place of one training and one test video of the first split."""
    root = tmp_path_factory.mktemp("jhmdb")
    truth = load_pickle(REAL)
    chosen = [
        next(name for name in truth["train_videos"][0] if "!" in name),
        next(name for name in truth["test_videos"][0] if "@" in name),
    ]
    for name in chosen:
        write_pictures(root / name, truth["nframes"][name], "{:05d}.png", size=(120, 160))
    return root, truth, chosen


@needs_data
@pytest.mark.filterwarnings("ignore:.*videos are not in")
def test_the_real_ground_truth_gives_its_own_numbers_back(two_real_videos):
    root, truth, (training, _) = two_real_videos
    source = JHMDB(root, REAL)
    assert source.class_names() == tuple(truth["labels"]) and len(source.class_names()) == 21
    (video,) = source.videos("train")
    (label, (tube,)) = next(iter(truth["gttubes"][training].items()))
    assert len(video.keyframes) == truth["nframes"][training] == len(tube)
    for keyframe, (number, *corners) in zip(video.keyframes, tube.tolist(), strict=True):
        assert keyframe.timestamp == pytest.approx((number - 1) / 30)
        np.testing.assert_allclose(keyframe.boxes * [320, 240, 320, 240], [corners], atol=1e-4)
        assert keyframe.labels.nonzero()[1].tolist() == [label]


@needs_data
@pytest.mark.filterwarnings("ignore:.*videos are not in")
def test_a_detector_trains_and_evaluates_on_the_real_ground_truth(two_real_videos, tmp_path):
    root, truth, (_, tested) = two_real_videos
    module = ClipDetectionModule(
        tiny.teacher(num_classes=21), optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-4)
    )
    data = tiny.clips(JHMDB(root, REAL), None, batch_size=2, keyframe_grid=8)
    trainer = tiny.trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    trainer.fit(module, data)
    assert trainer.global_step == 1
    results = tiny.Results()
    tiny.trainer(tmp_path, callbacks=[results]).test(module, data, verbose=False)
    assert int(results.result["num_boxes"]) == -(-truth["nframes"][tested] // 8)


FRAMES_MISSING = {
    "clap/The_Slow_Clap_clap_u_nm_np1_fr_bad_20": (18, 25),
    "clap/The_Slow_Clap_clap_u_cm_np1_fr_med_4": (27, 33),
    "stand/BIG_FISH_stand_u_nm_np1_fr_med_27": (35, 36),
}
"""Videos that are shorter than the pickle says: frames there are, rows of the pickle."""


@pytest.fixture(scope="module")
def all_real_videos():
    """Both parts of the first split, and what was said while they were read."""
    source = JHMDB(REAL.parent / "videos", REAL)
    with pytest.warns(UserWarning) as warned:
        videos = {split: source.videos(split) for split in ("train", "val")}
    return videos, [str(warning.message) for warning in warned]


@pytest.mark.slow
@needs_videos
def test_all_928_videos_have_the_frames_of_their_headers_and_the_boxes_of_the_pickle(all_real_videos):
    import av

    with REAL.open("rb") as file:  # a file that is known, read in the ordinary way
        truth = pickle.load(file, encoding="latin1")
    videos, _ = all_real_videos
    assert {split: len(of_split) for split, of_split in videos.items()} == {"train": 660, "val": 268}
    seen, boxes = set(), 0
    for split, names in (("train", truth["train_videos"][0]), ("val", truth["test_videos"][0])):
        by_short_name = {Path(name).name: name for name in names}
        for video in videos[split]:
            name = by_short_name[video.video_id]
            seen.add(name)
            assert video.path == REAL.parent / "videos" / f"{name}.mp4"
            with av.open(str(video.path)) as container:
                in_header = container.streams.video[0].frames
            assert (len(video.keyframes), truth["nframes"][name]) == FRAMES_MISSING.get(name, (in_header, in_header))
            assert len(video.keyframes) == in_header
            ((label, (tube,)),) = truth["gttubes"][name].items()
            assert tube[:, 0].tolist() == list(range(1, truth["nframes"][name] + 1))
            found = np.concatenate([keyframe.boxes for keyframe in video.keyframes])
            np.testing.assert_allclose(found * [320, 240, 320, 240], tube[:in_header, 1:], rtol=0, atol=1e-4)
            assert np.isfinite(found).all() and (found >= 0).all() and (found <= 1).all()
            assert (found[:, 2:] > found[:, :2]).all()
            times = np.asarray([keyframe.timestamp for keyframe in video.keyframes])
            np.testing.assert_allclose(times, np.arange(in_header) / 30, atol=1e-4)
            assert all(keyframe.labels.nonzero()[1].tolist() == [label] for keyframe in video.keyframes)
            assert all(keyframe.tracks.tolist() == [0] for keyframe in video.keyframes)
            boxes += len(found)
    assert seen == truth["nframes"].keys() and len(seen) == 928
    assert boxes == sum(truth["nframes"].values()) - 14 == 31_838


@pytest.mark.slow
@needs_videos
def test_rows_of_the_pickle_without_a_frame_are_named_with_their_video_and_nothing_else_is_lost(all_real_videos):
    _, said = all_real_videos
    expected = {f"{Path(name).name} ({rows - frames} of {rows})" for name, (frames, rows) in FRAMES_MISSING.items()}
    named = set()
    for line in said:
        start, _, names = line.partition("videos have boxes on frames that are not there, which are left out: ")
        assert names, f"said besides: {line}"
        assert start.startswith(f"{REAL}: ")
        named |= set(names.split(", "))
    assert named == expected


def test_a_video_is_taken_from_the_folder_of_its_own_class(tmp_path):
    write_videos(tmp_path / "videos")
    path = write_ground_truth(tmp_path / "JHMDB-GT.pkl", CLASSES, splits=3)
    expected = {video.video_id: video.path for video in JHMDB(tmp_path / "videos", path).videos("train")}
    for group in ("Basketball", "Biking", "WalkingWithDog"):  # another video of the same name, longer than its own
        for name in ("one", "two", "three"):
            other = tmp_path / "videos" / group / f"{name}.avi"
            if not other.exists():
                shutil.copy(tmp_path / "videos/Basketball/one.avi", other)
    found = {video.video_id: video.path for video in JHMDB(tmp_path / "videos", path).videos("train")}
    assert found == expected


def test_a_video_that_is_there_twice_is_refused(tmp_path):
    write_videos(tmp_path / "videos")
    path = write_ground_truth(tmp_path / "JHMDB-GT.pkl", CLASSES)
    shutil.copy(tmp_path / "videos/Basketball/one.avi", tmp_path / "videos/Basketball/one.mp4")
    with pytest.raises(UserError, match=r"several videos are called one: .*one\.avi, .*one\.mp4; keep one of them"):
        JHMDB(tmp_path / "videos", path).videos("train")
    source = JHMDB(tmp_path / "videos", path)
    source.mistakes = []  # as where data are checked
    assert [video.video_id for video in source.videos("train")] == ["three"]
    assert [mistake.where for mistake in source.mistakes] == ["one"]


NAME = "Basketball/one"
NOT_TUBES = [
    ({"labels": 5}, "names are not where they should be"),
    ({"labels": [1, 2]}, "names are not where they should be"),
    ({"labels": ["walk", "walk"]}, "the class 'walk' is there 2 times"),
    ({"gttubes": []}, "names are not where they should be"),
    ({"nframes": {5: 6}}, "names are not where they should be"),
    ({"train_videos": "one"}, "names are not where they should be"),
    ({"test_videos": [["a"], ["b"]]}, "1 lists of training videos and 2 of test videos"),
    ({"nframes": {NAME: -1}}, "Basketball/one: no number of frames"),
    ({"nframes": {NAME: 2**40}}, "Basketball/one: no number of frames"),
    ({"nframes": {NAME: "six"}}, "Basketball/one: no number of frames"),
    ({"resolution": {NAME: (0, 320)}}, "Basketball/one: no height and width"),
    ({"resolution": {NAME: 320}}, "Basketball/one: no height and width"),
    ({"resolution": {}}, "Basketball/one: no height and width"),
    ({"gttubes": {NAME: [1]}}, "Basketball/one: no number of frames, or no tubes"),
    ({"gttubes": {NAME: {"0": []}}}, "Basketball/one: no list of tubes for each class id"),
    ({"gttubes": {NAME: {0: 5}}}, "Basketball/one: no list of tubes for each class id"),
    ({"gttubes": {NAME: {0: [np.zeros((3, 4))]}}}, r"Basketball/one: a tube is not \(n, 5\) numbers"),
    ({"gttubes": {NAME: {0: [np.full((3, 5), np.nan)]}}}, r"Basketball/one: a tube is not \(n, 5\) numbers"),
    ({"gttubes": {NAME: {0: [np.full((3, 5), 1e30)]}}}, r"Basketball/one: a tube is not \(n, 5\) numbers"),
    ({"gttubes": {NAME: {0: [[["a"] * 5]]}}}, r"Basketball/one: a tube is not \(n, 5\) numbers"),
    ({"gttubes": {NAME: {2**40: []}}}, "Basketball/one: no list of tubes for each class id"),
]


@pytest.mark.parametrize(("change", "message"), NOT_TUBES, ids=[str(change)[:40] for change, _ in NOT_TUBES])
def test_a_pickle_that_is_no_ground_truth_is_refused_in_one_line(tmp_path, change, message):
    contents = {
        "labels": ["walk", "run"],
        "gttubes": {NAME: {0: [np.asarray([[1, 2, 3, 40, 50]], np.float32)]}},
        "nframes": {NAME: 6},
        "resolution": {NAME: (240, 320)},
        "train_videos": [[NAME]],
        "test_videos": [[]],
    }
    write_pictures(tmp_path / "frames" / NAME, 6, "{:05d}.jpg")
    path = tmp_path / "gt.pkl"
    path.write_bytes(pickle.dumps(contents))
    assert names(JHMDB(tmp_path / "frames", path), "train") == ["one"]
    path.write_bytes(pickle.dumps(contents | change))
    with pytest.raises(UserError, match=message) as refused:
        JHMDB(tmp_path / "frames", path).videos("train")
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)


@needs_data
def test_the_real_splits_have_the_sizes_that_are_published(tmp_path):
    for split, sizes in ((1, (660, 268)), (2, (658, 270)), (3, (663, 265))):
        source = JHMDB(tmp_path, REAL, split=split)
        assert tuple(len(source._split(part)) for part in ("train", "val")) == sizes


AVI = REAL.parent / "avi"


@needs_data
@pytest.mark.skipif(not AVI.exists(), reason="the original files are not on this machine")
@pytest.mark.filterwarnings("ignore:.*videos are not in", "ignore:.*videos have boxes on frames that are not there")
def test_every_box_of_the_original_files_lies_on_the_frame_of_its_number():
    source, truth = JHMDB(AVI, REAL), load_pickle(REAL)
    store, seen = DecodedFrames(FrameScale(None)), 0
    for split in ("train", "val"):
        for video in source.videos(split):
            (name,) = (name for name in truth["nframes"] if name.endswith(f"/{video.video_id}"))
            length = len(store.facts(video.path).times)
            assert length in (truth["nframes"][name], 18, 27, 35)  # three files have fewer than the pickle says
            timed = time_video(video, store)
            assert timed.frames.tolist() == list(range(length))
            seen += 1
    assert seen == len(list(AVI.glob("*/*.avi"))) == 24
