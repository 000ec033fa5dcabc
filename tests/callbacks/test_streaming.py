"""Streaming mAP in a test run: equal to the plain one without latency, of what was said earlier with it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from callbacks.measures.streaming import StreamingAccuracy
from lightning_modules.clip_detection import ClipDetectionModule
from lightning_modules.stream_detection import StreamDetectionModule
from tests.datamodules.miniature import NumberedVideos
from tests.lightning_modules import tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Annotated at every third frame, which are those that a stride of three takes."""
    folder = tmp_path_factory.mktemp("videos")
    return NumberedVideos(folder, lengths=(40, 24, 33, 26, 14), training=2, sizes=((96, 128), (128, 96)))


def placed(network):
    tiny.place_proposals(network)
    return network


KINDS = {
    "clip": (lambda: ClipDetectionModule(placed(tiny.teacher())), tiny.clips),
    "causal clip": (lambda: ClipDetectionModule(placed(tiny.teacher(keyframe="last"))), tiny.clips),
    "stream": (lambda: StreamDetectionModule(placed(tiny.student())), tiny.streams),
}


def run(kind, source, folder, callback, **changes):
    module, data = KINDS[kind][0](), KINDS[kind][1](source, folder / "cache", **({"frame_stride": 3} | changes))
    (scores,) = tiny.trainer(folder, callbacks=[callback]).test(module, datamodule=data, verbose=False)
    return scores, module, data


def test_a_stream_without_latency_has_its_own_map(source, tmp_path):
    scores, module, _ = run("stream", source, tmp_path, StreamingAccuracy(latency_ms=0))
    assert module.network.look_ahead == 0
    assert 0 < scores["test/map"] < 1
    assert scores["test/streaming_map"] == pytest.approx(scores["test/map"], abs=1e-7)
    assert scores["test/streaming_latency_ms"] == 0


def test_a_clip_detector_waits_for_the_end_of_its_clip(source, tmp_path):
    """Without any latency it is still as late as its clip is long after the keyframe."""
    alone, _, data = run("clip", source, tmp_path, StreamingAccuracy(latency_ms=0))
    assert data.window.future == 1
    assert alone["test/streaming_map"] < alone["test/map"]
    causal, _, data = run("causal clip", source, tmp_path, StreamingAccuracy(latency_ms=0), past_frames=4)
    assert data.window.future == 0
    assert causal["test/streaming_map"] == pytest.approx(causal["test/map"], abs=1e-7)


def test_a_machine_that_never_finishes_in_time_finds_nothing(source, tmp_path):
    scores, *_ = run("stream", source, tmp_path, StreamingAccuracy(latency_ms=60_000))
    assert scores["test/streaming_map"] == 0 < scores["test/map"]


def test_the_latency_is_measured(source, tmp_path):
    scores, *_ = run("stream", source, tmp_path, StreamingAccuracy(warmup=1, repeats=2))
    assert 0 < scores["test/streaming_latency_ms"] < 60_000
    assert 0 <= scores["test/streaming_map"] <= scores["test/map"] + 1


def test_sparser_annotation_has_no_streaming_map(source, tmp_path):
    scores, _, data = run("stream", source, tmp_path, StreamingAccuracy(latency_ms=0), frame_stride=1)
    assert "test/map" in scores and "test/streaming_map" not in scores
    assert list(data.sampled_frames("test").values()) == [33, 26, 14]
    assert np.isfinite(scores["test/map"])


def test_a_test_that_ends_before_any_video_does_has_no_streaming_map(source, tmp_path, caplog):
    """No number and no warning: nothing was measured."""
    module, data = placed(tiny.student()), tiny.streams(source, tmp_path / "cache", frame_stride=3)
    trainer = tiny.trainer(tmp_path, callbacks=[StreamingAccuracy()], limit_test_batches=1)
    with warnings.catch_warnings(), caplog.at_level("INFO"):
        warnings.filterwarnings("error", message=".*was called before the ``update`` method")
        (scores,) = trainer.test(StreamDetectionModule(module), datamodule=data, verbose=False)
    assert "test/map" in scores and "test/streaming_map" not in scores
    assert "no streaming mAP: limit_test_batches ended before any video did" in caplog.text


@pytest.mark.parametrize("wrong", [{"latency_ms": -1.0}, {"repeats": 0}, {"warmup": -1}])
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match="at least"):
        StreamingAccuracy(**wrong)
