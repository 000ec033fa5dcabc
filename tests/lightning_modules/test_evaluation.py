"""The protocol of an evaluation is an argument; what was evaluated is said, and why nothing was found."""

import logging
import warnings

import pytest

from lightning_modules.clip_detection import ClipDetectionModule
from lightning_modules.detection_base import DetectionSettings
from lightning_modules.metrics.frame_ap import FrameMapSettings
from lightning_modules.stream_detection import StreamDetectionModule
from tests.lightning_modules import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def data(folder):
    return tiny.clips(tiny.videos(folder), folder / "cache")


def module(metric: FrameMapSettings | None = None) -> ClipDetectionModule:
    network = tiny.teacher()
    tiny.place_proposals(network)
    return ClipDetectionModule(network, detection=DetectionSettings(metric=metric or FrameMapSettings()))


def test_the_metric_is_that_of_the_settings_also_where_only_some_classes_are_scored(data, tmp_path, monkeypatch):
    settings = FrameMapSettings("act", 0.3, "ignore", 2)
    tested = module(metric=settings)
    tiny.trainer(tmp_path).test(tested, datamodule=data, verbose=False)
    assert tested.evaluator.metric.settings == settings
    assert tested.protocol == "act frame mAP@0.3, labelled frames only, best 2 rows a frame, stride 2"
    monkeypatch.setattr(type(data.source), "evaluated_classes", lambda source: (1,))
    tiny.trainer(tmp_path).test(tested, datamodule=data, verbose=False)
    assert tested.evaluator.metric.settings == settings
    assert tested.protocol.endswith("best 2 rows a frame, 1 of 2 classes, stride 2")


def test_act_counts_the_pixels_of_the_original_video(data, tmp_path):
    """Frames are read at 64 pixels, videos have 96: a pixel more a side is not the same share of a box."""
    maps = {}
    for threshold in (0.9, 0.95):
        for protocol in ("pascal", "act"):
            tested, results = module(metric=FrameMapSettings(protocol, threshold)), tiny.Results()
            tiny.trainer(tmp_path, callbacks=[results]).test(tested, datamodule=data, verbose=False)
            maps[protocol, threshold] = float(results.result["map"])
    assert any(maps["pascal", threshold] != maps["act", threshold] for threshold in (0.9, 0.95))


def test_an_evaluation_says_what_it_saw(data, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        tiny.trainer(tmp_path).validate(module(), datamodule=data, verbose=False)
    said = "val: ava frame mAP@0.5, stride 2; ground truth of 28 frames 84 boxes 2 classes"
    assert [record.getMessage() for record in caplog.records].count(said) == 1


def test_clips_and_streams_of_every_frame_score_the_same_frames_and_say_so(folder, tmp_path, caplog):
    source = tiny.videos(folder)
    student = StreamDetectionModule(tiny.student("dsta"))
    every = [
        (module(), tiny.clips(source, folder / "cache", keyframe_grid=1)),
        (student, tiny.streams(source, folder / "cache", every_frame=True)),
    ]
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        for tested, data in every:
            tiny.trainer(tmp_path).validate(tested, datamodule=data, verbose=False)
    said = [
        text for text in (record.getMessage() for record in caplog.records) if text.startswith("val: ava frame mAP")
    ]
    frames = sum(len(video.keyframes) for video in source.videos("val"))
    assert len(said) == 2
    for text in said:
        assert text.startswith(
            f"val: ava frame mAP@0.5, stride 2, every frame scored; ground truth of {frames} frames "
        )


def test_a_zero_is_explained_and_a_result_is_not(data, tmp_path):
    nothing_near = tiny.teacher()
    tiny.place_proposals(nothing_near)
    boxes = nothing_near.head.localizer.proposal_boxes.data
    boxes[:] = boxes[-1]
    for tested, count in ((ClipDetectionModule(nothing_near), 1), (module(), 0)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            tiny.trainer(tmp_path).validate(tested, datamodule=data, verbose=False)
        texts = [str(warning.message) for warning in said if "val/map is" in str(warning.message)]
        assert len(texts) == count
        assert all(text.startswith("val/map is 0: no overlap >= 0.5: the largest is 0.") for text in texts)


def test_training_explains_a_zero_once_though_every_epoch_has_one(data, tmp_path):
    tested = module(metric=FrameMapSettings(iou_threshold=1.0))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        tiny.trainer(tmp_path, max_epochs=2, limit_train_batches=1).fit(tested, datamodule=data)
    texts = [str(warning.message) for warning in said if "val/map is" in str(warning.message)]
    assert len(texts) == 1 and "no overlap >= 1.0" in texts[0]
