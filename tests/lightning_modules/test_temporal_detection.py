"""Training and evaluating temporal detectors on untrimmed videos."""

import json

import pytest
import torch

from callbacks.files.segment_file import SegmentFile
from lightning_modules.metrics.segment_results import read_results, score_results
from lightning_modules.networks.temporal.heads.segment_head import ScoredSegments
from lightning_modules.networks.temporal.suppression import SegmentSuppression
from lightning_modules.temporal_detection import SegmentSettings, TemporalDetectionModule
from tests.lightning_modules import temporal, tiny


def module(network=None, **changes):
    settings = {"modality": "features", "optimizer": lambda groups: torch.optim.AdamW(groups, lr=1e-2)}
    return TemporalDetectionModule(network or temporal.detector(), **{**settings, **changes})


@pytest.mark.slow
def test_actions_that_mark_their_features_are_found_after_some_epochs(tmp_path):
    trainer = tiny.trainer(tmp_path, max_epochs=60, limit_val_batches=0)
    model, data = module(), temporal.features(tmp_path)
    trainer.fit(model, datamodule=data)
    (result,) = trainer.test(model, datamodule=data, verbose=False)
    assert result["test/map"] > 0.8
    at_thresholds = [result[f"test/map_{threshold}"] for threshold in (30, 40, 50, 60, 70)]
    assert result["test/map"] == pytest.approx(sum(at_thresholds) / 5)
    assert {"test/ap/walk", "test/ap/wave", "test/ap/sit"} <= set(result)


class Oracle(TemporalDetectionModule):
    """Finds in each window exactly what it shows, and says so."""

    def detect(self, batch):
        return [
            ScoredSegments(segments, torch.full((len(labels),), 0.9), labels)
            for segments, labels in zip(batch.segments, batch.labels, strict=True)
        ]


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_what_overlapping_windows_find_is_one_detection_of_the_video(tmp_path, batch_size):
    # min_visibility=1: an action is shown by the windows that hold all of it, often by two.
    data = temporal.features(tmp_path, eval_batch_size=batch_size, min_visibility=1.0, train_windows="random")
    settings = SegmentSettings(SegmentSuppression(score_threshold=0.5))
    model = Oracle(temporal.detector(), detection=settings, modality="features")
    file = tmp_path / "found.json"
    (result,) = tiny.trainer(tmp_path, callbacks=[SegmentFile(file)]).test(model, datamodule=data, verbose=False)
    assert result["test/map"] == pytest.approx(1.0)
    videos = json.loads(file.read_text())["results"]
    assert sorted(videos) == ["video_3", "video_4", "video_5"]
    assert all(len(found) == 3 for found in videos.values())


def test_the_saved_detections_score_what_the_test_said(tmp_path):
    data, model, file = temporal.features(tmp_path), module(), tmp_path / "found.json"
    (result,) = tiny.trainer(tmp_path, callbacks=[SegmentFile(file)]).test(model, datamodule=data, verbose=False)
    again = score_results(read_results(file, data.class_names), data.true_segments("test"), model.metric)
    assert float(again["map"]) == pytest.approx(result["test/map"], abs=1e-9)


def test_prediction_gives_each_video_once_with_its_segments_in_seconds(tmp_path):
    data, model = temporal.features(tmp_path), module(detection=SegmentSettings(window_threshold=0.0))
    found = [video for batch in tiny.trainer(tmp_path).predict(model, datamodule=data) for video in batch]
    assert [video["video_id"] for video in found] == ["video_3", "video_4", "video_5"]
    for video in found:
        assert (video["segments"] >= 0).all() and (video["segments"] <= 20).all() and len(video["scores"]) > 0


def test_a_network_of_other_classes_than_the_data_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model\.network: network has 5 classes but the data has 3; .*num_classes=3"):
        tiny.trainer(tmp_path).test(module(temporal.detector(num_classes=5)), datamodule=temporal.features(tmp_path))


def test_an_evaluation_says_protocol_videos_and_windows(tmp_path):
    data, model = temporal.features(tmp_path), module()
    trainer = tiny.trainer(tmp_path)
    trainer.test(model, datamodule=data, verbose=False)
    assert "on marked features, windows of 16 steps" in model.protocol and "segment mAP@tIoU 0.3" in model.protocol
