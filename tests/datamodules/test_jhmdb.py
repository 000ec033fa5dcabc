"""JHMDB-21: its real ground truth on whatever holds the frames, names with every odd character included."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.annotations.jhmdb import JHMDB
from datamodules.annotations.safe_pickle import load_pickle
from datamodules.annotations.ucf101_24 import CLASSES
from datamodules.frames import DecodedFrames, FrameScale
from datamodules.picture_folder import PictureFolder
from datamodules.video import write_video
from datamodules.windows import time_video
from lightning_modules.clip_detection import ClipDetectionModule
from tests.datamodules.miniature import numbered_frames, read_numbers, write_pictures
from tests.datamodules.miniature_tubes import write_ground_truth, write_videos
from tests.lightning_modules import tiny

REAL = Path(__file__).parents[3] / "shared/data/jhmdb/JHMDB-GT.pkl"
needs_data = pytest.mark.skipif(not REAL.exists(), reason="real annotations are not on this machine")
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
    with pytest.raises(ValueError, match="split must be 1, 2 or 3, got 4"):
        JHMDB(tmp_path / "videos", path, split=4)
    path = write_ground_truth(tmp_path / "JHMDB-GT.pkl", CLASSES, splits=2)
    with pytest.raises(ValueError, match="has 2 splits, asked for split 3"):
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
