"""UCF101-24 in each of the forms people have it in: the same boxes on the same frames, whatever the videos are."""

import pickle
import warnings
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.annotations.own_videos import OwnVideos
from datamodules.annotations.source import DetectionSource
from datamodules.annotations.ucf101_24 import CLASSES, UCF101_24
from datamodules.errors import UserError
from datamodules.frames.store import DecodedFrames, FrameScale
from datamodules.sampling.windows import annotated_samples, time_video
from datamodules.video.picture_folder import PictureFolder
from lightning_modules.clip_detection import ClipDetectionModule
from tests.datamodules.annotations.hostile_pickles import FORGED_DTYPES, OBJECTS, array, dtype
from tests.datamodules.miniature import numbered_frames, read_numbers, write_pictures
from tests.datamodules.miniature_tubes import (
    CORNERS,
    LENGTHS,
    TEST,
    TUBES,
    write_ground_truth,
    write_labels,
    write_pyannot,
    write_videos,
)
from tests.lightning_modules import tiny

REAL = Path(__file__).parents[4] / "shared/data/ucf101_24"
needs_data = pytest.mark.skipif(not REAL.exists(), reason="real annotations are not on this machine")
FORMS = ("pyannot", "ground_truth", "labels")
PIXELS = np.asarray([320, 240, 320, 240])


@pytest.fixture
def root(tmp_path):
    write_videos(tmp_path / "videos")
    return tmp_path


def annotated(root: Path, form: str) -> Path:
    if form == "pyannot":
        return write_pyannot(root / "pyannot.pkl")
    if form == "ground_truth":
        return write_ground_truth(root / "UCF101v2-GT.pkl", CLASSES)
    return write_labels(root / "labels")


def ucf(root: Path, form: str = "pyannot", **changes) -> UCF101_24:
    return UCF101_24(root / "videos", annotated(root, form), **{"val": TEST, **changes})


def names(source: DetectionSource, split: str) -> list[str]:
    return [video.video_id for video in source.videos(split)]


def everything(source: DetectionSource) -> dict:
    return {video.video_id: video for split in ("train", "val") for video in source.videos(split)}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_boxes_worked_out_by_hand(root, form):
    videos = everything(ucf(root, form))
    assert {name: len(video.keyframes) for name, video in videos.items()} == LENGTHS
    for name, video in videos.items():
        for frame, keyframe in enumerate(video.keyframes):
            expected = np.asarray(CORNERS.get((name, frame), [])).reshape(-1, 4)
            assert keyframe.boxes.dtype == np.float32 and keyframe.labels.dtype == np.uint8
            np.testing.assert_allclose(keyframe.boxes * PIXELS, expected, atol=1e-4)
            np.testing.assert_array_equal(keyframe.labels.sum(axis=1), np.ones(len(expected)))
            label = {"one": 0, "two": 2, "three": 23}[name]
            assert keyframe.labels[:, label].all()
            assert keyframe.timestamp == pytest.approx(frame / 25)


@pytest.mark.parametrize("form", FORMS)
def test_a_person_keeps_a_number_through_the_video_where_tubes_are_kept(root, form):
    tracks = [keyframe.tracks for keyframe in everything(ucf(root, form))["one"].keyframes]
    if form == "labels":
        assert tracks == [None] * 6
    else:
        assert [track.tolist() for track in tracks] == [[], [0], [0, 1], [], [], []]
        assert tracks[1].dtype == np.int64


@pytest.mark.parametrize("form", FORMS)
def test_frames_outside_all_tubes_are_annotated_as_empty_or_not_at_all(root, form):
    one = everything(ucf(root, form, every_frame=False))["one"]
    assert [round(keyframe.timestamp * 25) for keyframe in one.keyframes] == [1, 2]
    assert [len(keyframe.boxes) for keyframe in one.keyframes] == [1, 2]


def test_training_takes_the_frames_with_a_box_of_all_that_are_annotated(root):
    store = DecodedFrames(FrameScale(None))
    timed = [time_video(video, store) for video in ucf(root).videos("train")]
    assert annotated_samples(timed, min_boxes=1).tolist() == [[0, 1], [0, 2], [1, 3]]


def shown_with_a_box(video) -> list[int]:
    """The numbers that frames with a box carry in their pixels."""
    store = DecodedFrames(FrameScale(None))
    timed = time_video(video, store)
    rows = [frame for frame, boxes in zip(timed.frames, timed.boxes, strict=True) if len(boxes)]
    return read_numbers(store.get(video.path, rows))


@pytest.mark.parametrize("frame_rate", [25.0, 29.97])
def test_pictures_of_another_size_carry_the_boxes_of_their_number(tmp_path, frame_rate):
    for name, length in (("Basketball/one", 6), ("Biking/two", 5)):
        write_pictures(tmp_path / "videos" / name, length, "{:05d}.jpg", size=(256, 340))
    source = ucf(tmp_path, frame_rate=frame_rate)
    (one,) = source.videos("train")
    assert one.path == PictureFolder(tmp_path / "videos/Basketball/one", frame_rate)
    assert [keyframe.timestamp for keyframe in one.keyframes] == [frame / frame_rate for frame in range(6)]
    assert shown_with_a_box(one) == [1, 2]
    timed = time_video(one, DecodedFrames(FrameScale(None)))
    scale = np.asarray([340 / 320, 256 / 240] * 2)
    np.testing.assert_allclose(timed.boxes_in_pixels(2), CORNERS["one", 2] * scale, rtol=1e-6)


def test_a_video_of_variable_frame_rate_carries_boxes_by_number_of_frame(tmp_path):
    import av

    path = tmp_path / "videos/Basketball/one.mp4"
    path.parent.mkdir(parents=True)
    milliseconds = [0, 40, 52, 500, 520, 900]
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for pixels, at in zip(numbered_frames(6), milliseconds, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    (one,) = ucf(tmp_path, train=["one"]).videos("train")
    assert [keyframe.timestamp for keyframe in one.keyframes] == pytest.approx(np.asarray(milliseconds) / 1000)
    assert shown_with_a_box(one) == [1, 2]


def test_lists_name_the_videos_in_many_ways(root):
    official = root / "testlist01.txt"
    official.write_text("ApplyEyeMakeup/v_x.avi 1\nBiking/two.avi 11\nWalkingWithDog/three\n")
    source = ucf(root, val=official)
    assert names(source, "val") == names(source, "test") == ["two", "three"]
    assert names(source, "train") == ["one"]
    frames = root / "trainlist.txt"
    frames.write_text("labels/Basketball/one/00002.txt\nlabels/Basketball/one/00003.txt\n")
    assert names(ucf(root, val=None, train=frames), "val") == ["two", "three"]
    assert names(ucf(root, train=frames, val=["two"]), "train") == ["one"]
    with pytest.raises(UserError, match="in both train and val: one"):
        ucf(root, train=frames, val=["one"]).videos("val")


def test_the_ground_truth_has_a_split_of_its_own_and_the_others_ask_for_one(root):
    source = ucf(root, "ground_truth", val=None)
    assert (names(source, "train"), names(source, "val")) == (["one", "three"], ["two"])
    assert names(ucf(root, "ground_truth", val=["one"]), "train") == ["two", "three"]
    path = write_ground_truth(root / "renamed.pkl", [f"sport {number}" for number in range(24)])
    assert UCF101_24(root / "videos", path).class_names()[::23] == ("sport 0", "sport 23")
    for form in ("pyannot", "labels"):
        with pytest.raises(UserError, match=r"does not say which videos are for training; set .*\.val to the list"):
            ucf(root, form, val=None).videos("val")


def test_missing_and_unreadable_videos_are_named_once_and_the_rest_is_used(root):
    (root / "videos/Basketball/one.avi").write_bytes(b"")
    (root / "videos/WalkingWithDog/three.avi").unlink()
    source = ucf(root, val=["one"])
    with pytest.warns(UserWarning, match=r"1 of 2 train videos are not in .*: WalkingWithDog/three$"):
        assert names(source, "train") == ["two"]
    with pytest.warns(UserWarning, match=r"1 videos cannot be read and are left out: .*one\.avi: the file is empty"):
        assert names(source, "val") == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source.videos("train")
    with pytest.raises(UserError, match=r"holds none of the 1 val videos .*WalkingWithDog/three of pictures"):
        ucf(root, val=["three"]).videos("val")


def test_boxes_on_frames_that_are_not_there_are_left_out_and_their_video_is_named(tmp_path):
    write_pictures(tmp_path / "videos/Biking/two", 4, "{:05d}.jpg")  # of 5
    (tmp_path / "videos/Biking/two/00002.jpg").unlink()
    with pytest.warns(UserWarning, match=r"1 videos have boxes on frames that are not there, .*: two \(2 of 5\)"):
        (two,) = ucf(tmp_path).videos("val")
    assert [round(keyframe.timestamp * 25) for keyframe in two.keyframes] == [0, 2, 3]
    assert [len(keyframe.boxes) for keyframe in two.keyframes] == [1, 1, 1]


def test_boxes_without_area_are_left_out_and_their_video_is_named(root):
    path = write_labels(root / "labels")
    (path / "Biking/two/00003.txt").write_text("3 50 60 51 90\n3 11 21 41 61\n")
    with pytest.warns(UserWarning, match=r"1 videos have boxes without area, which are left out: two \(1 of 6\)"):
        (two,) = UCF101_24(root / "videos", path, val=TEST).videos("val")
    np.testing.assert_allclose(two.keyframes[2].boxes * PIXELS, [[10, 20, 39, 59]], atol=1e-4)


def test_labels_that_count_from_elsewhere_are_noticed_by_the_folder_of_their_class(root):
    path = write_labels(root / "labels")
    (path / "Biking/two/00003.txt").write_text("2 11 21 41 61\n")
    with pytest.raises(UserError, match="Biking/two: labelled BasketballDunk; label ids count from another number"):
        UCF101_24(root / "videos", path, val=TEST).videos("val")
    (path / "Biking/two/00003.txt").write_text("25 11 21 41 61\n")
    with pytest.raises(UserError, match="Biking/two: label 24, but there are 24, from 0"):
        UCF101_24(root / "videos", path, val=TEST).videos("val")
    (path / "Biking/two/00003.txt").write_text("3 11 21 41\n")
    source = UCF101_24(root / "videos", path, val=TEST)
    with pytest.raises(UserError, match=r"00003\.txt: a line must be class x1 y1 x2 y2"):
        source.videos("val")
    source.mistakes = []  # as where data are checked: all of them are wanted
    assert source.videos("val") == ()
    assert [mistake.kind for mistake in source.mistakes] == ["label texts that cannot be read"]


def test_annotations_that_are_none_are_named(root):
    other = root / "other.pkl"
    other.write_bytes(pickle.dumps({"video": [1, 2]}))
    with pytest.raises(UserError, match=r"other\.pkl: is neither pyannot\.pkl .* nor a ground truth of tubes"):
        UCF101_24(root / "videos", other).class_names()
    other.write_bytes(pickle.dumps({"gttubes": {}, "labels": []}))
    with pytest.raises(UserError, match="lacks nframes, resolution, train_videos, test_videos"):
        UCF101_24(root / "videos", other).class_names()
    with pytest.raises(UserError, match=r"boxes\.csv: boxes in AVA's column order are read by the source OwnVideos"):
        UCF101_24(root / "videos", root / "boxes.csv").class_names()
    with pytest.raises(UserError, match="videos: holds no folders <class>/<video> of label texts"):
        UCF101_24(root / "videos", root / "videos").class_names()
    for changes, message in (
        ({"videos": root / "none"}, "none: no such folder of videos"),
        ({"annotations": root / "none.pkl"}, r"none\.pkl: no such annotation"),
        ({"val": root / "none.txt"}, r"none\.txt: no such list"),
    ):
        arguments = {"videos": root / "videos", "annotations": write_pyannot(root / "pyannot.pkl")}
        with pytest.raises(UserError, match=message):
            UCF101_24(**{**arguments, **changes}).prepare()
    with pytest.raises(UserError, match="frame_rate must be positive, got 0"):
        UCF101_24(root / "videos", other, frame_rate=0)


TUBE = {"label": 0, "sf": 1, "ef": 3, "boxes": np.asarray([[11, 21, 30, 40]] * 2, np.uint8)}
NOT_PYANNOT = [
    ({"numf": -1}, "no number of frames"),
    ({"numf": 1e10}, "no number of frames"),
    ({"numf": 6.5}, "no number of frames"),
    ({"numf": float("nan")}, "no number of frames"),
    ({"annotations": {0: TUBE}}, "no list of tubes"),
    ({"annotations": [5]}, "a tube lacks its label"),
    ({"annotations": [{}]}, "a tube lacks its label"),
    ({"annotations": [TUBE | {"label": "Basketball"}]}, "a tube lacks its label"),
    ({"annotations": [TUBE | {"sf": None}]}, "a tube lacks its label, first and last frame"),
    ({"annotations": [TUBE | {"ef": 4}]}, "a tube has 2 boxes for 3 frames"),
    ({"annotations": [TUBE | {"sf": 3, "ef": 1}]}, "a tube has 2 boxes for -2 frames"),
    ({"annotations": [TUBE | {"sf": 0, "ef": 2**30}]}, "a tube has 2 boxes for 1073741824 frames"),
    ({"annotations": [TUBE | {"boxes": np.ones((2, 3))}]}, r"or \(n, 4\) boxes"),
    ({"annotations": [TUBE | {"boxes": [[1, 2, np.inf, 4]] * 2}]}, r"or \(n, 4\) boxes"),
    ({"annotations": [TUBE | {"boxes": "none"}]}, r"or \(n, 4\) boxes"),
]


@pytest.mark.parametrize(("change", "message"), NOT_PYANNOT, ids=[message for _, message in NOT_PYANNOT])
def test_a_video_of_pyannot_that_cannot_be_is_refused_in_one_line(root, change, message):
    video = {"numf": 6, "label": 0, "annotations": [TUBE]}
    path = root / "pyannot.pkl"
    path.write_bytes(pickle.dumps({"Basketball/one": video}))
    as_floats = TUBE | {"label": 0.0, "sf": np.float64(1), "ef": 3.0, "boxes": TUBE["boxes"].tolist()}
    for known in (video, {"numf": 6.0, "label": 0, "annotations": (as_floats,)}):
        path.write_bytes(pickle.dumps({"Basketball/one": known}))
        (one,) = UCF101_24(root / "videos", path, train=["one"]).videos("train")
        assert [len(keyframe.boxes) for keyframe in one.keyframes] == [0, 1, 1, 0, 0, 0]
    path.write_bytes(pickle.dumps({"Basketball/one": video | change}))
    with pytest.raises(UserError, match=rf"pyannot\.pkl, Basketball/one: .*{message}") as refused:
        UCF101_24(root / "videos", path, train=["one"]).videos("train")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("form", ["pyannot", "ground_truth"])
@pytest.mark.parametrize("forged", [*FORGED_DTYPES.values(), dtype("O8", OBJECTS)])
def test_boxes_of_a_forged_dtype_are_refused_with_the_name_of_the_file(root, form, forged):
    path = annotated(root, form)
    contents = pickle.loads(path.read_bytes())
    if form == "pyannot":
        contents["Basketball/one"]["annotations"][0]["boxes"] = array(forged)
    else:
        contents["gttubes"]["Basketball/one"][0][0] = array(forged)
    path.write_bytes(pickle.dumps(contents, 2))
    source = UCF101_24(root / "videos", path, val=TEST)
    with pytest.raises(UserError, match=rf"{path.name}: refused: it (asks for|holds) ") as refused:
        source.videos("train")
    assert "\n" not in str(refused.value)


def test_two_videos_of_one_name_are_refused(root):
    path = write_labels(root / "labels")
    (path / "Fencing/two").mkdir(parents=True)
    with pytest.raises(UserError, match="two classes have a video of the same name"):
        UCF101_24(root / "videos", path, val=TEST).videos("val")


def test_videos_may_lie_in_one_folder_without_classes(root):
    for name in TUBES:
        (root / "videos" / f"{name}.avi").rename(root / "videos" / f"{Path(name).name}.avi")
    assert names(ucf(root), "train") == ["one", "three"]


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> dict[str, DetectionSource]:
    """The real clips from each of the four forms, five for training and two for evaluation."""
    folder = tmp_path_factory.mktemp("ucf101_24")
    with zipfile.ZipFile(REAL / "labels.zip") as archive:
        archive.extractall(folder)
    lists = {"train": REAL / "trainlist.txt", "val": REAL / "testlist.txt"}
    return {
        "pyannot": UCF101_24(REAL / "videos", REAL / "pyannot.mini.pkl", **lists),
        "ground_truth": UCF101_24(REAL / "videos", REAL / "UCF101v2-GT.mini.pkl"),
        "labels": UCF101_24(REAL / "videos", folder / "labels", **lists),
        "csv": OwnVideos(REAL / "videos", REAL / "classes.txt", REAL / "own_videos.csv", **lists),
    }


@needs_data
@pytest.mark.parametrize("form", ["ground_truth", "labels", "csv"])
def test_the_real_clips_have_equal_boxes_to_within_a_pixel_from_each_form(real, form):
    ours, theirs = everything(real["pyannot"]), everything(real[form])
    assert list(ours) == list(theirs) and len(ours) == 7
    assert real[form].class_names() == CLASSES
    store, boxes = DecodedFrames(FrameScale(None)), 0
    for name in ours:
        both = [time_video(videos[name], store) for videos in (ours, theirs)]
        by_frame = [
            {frame: rows for frame, *rows in zip(video.frames.tolist(), video.boxes, video.labels, strict=True)}
            for video in both
        ]
        with_box = [sorted(frame for frame in frames if len(frames[frame][0])) for frames in by_frame]
        assert with_box[0] == with_box[1]
        for frame in with_box[0]:
            (one, labels), (other, other_labels) = (frames[frame] for frames in by_frame)
            np.testing.assert_array_equal(labels, other_labels)
            one, other = (sorted((rows * PIXELS).tolist()) for rows in (one, other))
            # The csv takes x2 = x1 + width, a pixel more, and is rounded to four digits: 0.016 pixels.
            np.testing.assert_allclose(one, other, rtol=0, atol=1.02 if form == "csv" else 1e-3)
            boxes += len(one)
    assert boxes == 1231


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("form", ["pyannot", "ground_truth", "labels", "csv"])
def test_a_detector_trains_evaluates_and_predicts_on_the_real_clips_from_each_form(real, form, tmp_path):
    network = tiny.teacher(num_classes=24)
    module = ClipDetectionModule(network, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-4))
    data = tiny.clips(real[form], None, batch_size=2, eval_batch_size=8, keyframe_grid=40)
    trainer = tiny.trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    trainer.fit(module, data)
    assert trainer.global_step == 1
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    results = tiny.Results()
    tiny.trainer(tmp_path, callbacks=[results]).test(module, data, verbose=False)
    counts = (int(results.result["num_frames"]), int(results.result["num_boxes"]))
    # Frames 0, 40 and 80 of both clips, of which the dive has a box on 40 alone. The csv has no frames without a box:
    # instead of frame 0 the dive is scored on the first that has one, and not at all in its last third.
    assert counts == ((5, 5) if form == "csv" else (6, 4))
    found = [entry for batch in tiny.trainer(tmp_path).predict(module, data) for entry in batch]
    assert len(found) == 6 and {frame.video_id for frame in found} == set(names(real[form], "val"))
    for frame in found:
        height, width = frame.size
        boxes = np.array([person.box for person in frame.people])
        assert (height, width) == (256, 340) and len(boxes)
        assert all(np.isfinite([*person.actions.values()]).all() for person in frame.people)
        assert (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()


@needs_data
def test_the_real_pictures_of_a_clip_carry_the_boxes_of_its_file(real, tmp_path):
    """As people have them: 320 x 240, the size of the annotation, where the file is 340 x 256."""
    with zipfile.ZipFile(REAL / "rgb-images_CliffDiving.zip") as archive:
        archive.extractall(tmp_path)
    name = "v_CliffDiving_g03_c01"
    source = UCF101_24(tmp_path / "rgb-images", REAL / "pyannot.mini.pkl", val=[name])
    (pictures,) = source.videos("val")
    assert isinstance(pictures.path, PictureFolder)
    file = everything(real["pyannot"])[name]
    assert len(pictures.keyframes) == len(file.keyframes) == 92
    for one, other in zip(pictures.keyframes, file.keyframes, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
    store = DecodedFrames(FrameScale(64))
    shown = [store.get(video.path, [0, 45, 91]).astype(float) for video in (pictures, file)]
    same = np.abs(shown[0] - shown[1][:, :, : shown[0].shape[2]]).mean(axis=(1, 2, 3))
    turned = np.abs(shown[0] - shown[1][[1, 2, 0], :, : shown[0].shape[2]]).mean(axis=(1, 2, 3))
    assert (same < turned).all()
