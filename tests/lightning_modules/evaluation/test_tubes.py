"""Video mAP of streaming and of clip detectors, against tubes linked by hand from their predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from callbacks.benchmark.callback import BenchmarkTable
from callbacks.benchmark.rows import read_rows
from datamodules.batches import TrueTube, TrueTubes
from lightning_modules.clip_detection import ClipDetectionModule
from lightning_modules.detection_base import DetectionSettings
from lightning_modules.evaluation.tubes import VideoEvaluation, VideoMapSettings
from lightning_modules.metrics.video_map import VideoMeanAveragePrecision
from lightning_modules.networks.detection.outputs import ScoredBoxes
from lightning_modules.stream_detection import StreamDetectionModule, StreamSettings
from tests.datamodules.miniature import NumberedVideos
from tests.lightning_modules import tiny

STRIDE = 3
"""Every third frame is annotated, from frame 1 on: one annotation in each slot of a stream of this stride."""
SETTINGS = {
    "online": VideoMapSettings(min_score=0.0, score_threshold=0.0, nms_threshold=0.5),
    "act": VideoMapSettings("act", "multisports"),
}
KEYS = ("video_map_20", "video_map_50", "video_map_75", "video_map_50_95")


class FollowedVideos(NumberedVideos):
    """``NumberedVideos`` whose annotation says that the left box is one person and the right one another."""

    def _keyframe(self, frame):
        return super()._keyframe(frame)._replace(tracks=np.array([4, 9]))


class WithHoles(FollowedVideos):
    """The second annotation of every video is lost."""

    def videos(self, split):
        return tuple(
            video._replace(keyframes=video.keyframes[:1] + video.keyframes[2:]) for video in super().videos(split)
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def source(folder):
    return FollowedVideos(folder, lengths=(40, 24, 33, 9, 26, 14), training=2, sizes=((96, 128), (128, 96)))


def streaming(settings=None, **changes):
    network = tiny.student(**changes)
    tiny.place_proposals(network)
    return StreamDetectionModule(network, detection=StreamSettings(video_map=settings))


def clip(settings=None):
    network = tiny.teacher()
    tiny.place_proposals(network)
    return ClipDetectionModule(network, detection=DetectionSettings(video_map=settings))


def streams(source, folder, **changes):
    return tiny.streams(source, folder / "cache", **{"frame_stride": STRIDE, **changes})


def clips(source, folder, **changes):
    return tiny.clips(source, folder / "cache", **{"frame_stride": STRIDE, **changes})


def run_test(module, data, tmp_path, **options):
    (scores,) = tiny.trainer(tmp_path, **options).test(module, datamodule=data, verbose=False)
    return scores


def by_hand(entries, source, settings):
    """Video mAP of predictions of every frame; the boxes of ``FollowedVideos`` never move."""
    metric = VideoMeanAveragePrecision(2, protocol=settings.protocol)
    for number in range(2, len(source.lengths)):
        tubes, frames = settings.tubes(2, STRIDE), range(-(-source.lengths[number] // STRIDE))
        of_video = [entry for entry in entries if entry["video_id"] == f"video_{number}"]
        assert len(of_video) == len(frames)
        for entry in sorted(of_video, key=lambda entry: entry["timestamp"]):
            tubes.add(entry["boxes"], entry["scores"], entry["person_scores"])
        height, width = source.sizes[number % 2]
        left, right = ([x1 * width, y1 * height, x2 * width, y2 * height] for x1, y1, x2, y2 in BOXES)
        truth = [
            {"label": label, "frames": np.arange(len(frames)), "boxes": np.tile(box, (len(frames), 1))}
            for label, box in ((0, left), (0, right), (1, right))
        ]
        metric.update([{"tubes": tubes.tubes()}], [{"tubes": truth}])
    result = metric.compute()
    return {key: result[key.removeprefix("video_")].item() for key in KEYS}


BOXES = [[0.125, 0.25, 0.375, 0.75], [0.5, 0.25, 0.875, 1.0]]


@pytest.mark.parametrize("linker", ["online", "act"])
def test_a_streams_video_map_is_that_of_its_linked_predictions(source, folder, tmp_path, linker):
    settings = SETTINGS[linker]
    module = streaming(settings)
    entries, detect = [], module.stream.detect

    def remember(batch):
        scored = detect(batch)
        names = [name for name in batch.video_ids for _ in range(batch.frames.shape[1])]
        said = [found for lane in scored for found in lane]
        rows = zip(names, batch.timestamps.flatten().tolist(), batch.is_valid.flatten().tolist(), said, strict=True)
        entries.extend(
            {"video_id": name, "timestamp": time, **found._asdict()} for name, time, valid, found in rows if valid
        )
        return scored

    module.stream.detect = remember
    scores = run_test(module, streams(source, folder), tmp_path)
    expected = by_hand(entries, source, settings)
    assert 0 < expected["video_map_20"] < 1  # or the comparison would say little
    assert {key: scores[f"test/{key}"] for key in KEYS} == pytest.approx(expected, abs=1e-6)


def test_video_map_is_the_same_however_videos_are_streamed(source, folder, tmp_path):
    found = [
        run_test(streaming(SETTINGS["online"]), streams(source, folder, lanes=lanes, chunk_frames=frames), tmp_path)
        for lanes, frames in ((1, 3), (8, 8))
    ]
    for key in KEYS:
        assert [scores[f"test/{key}"] for scores in found] == pytest.approx([found[0][f"test/{key}"]] * 2, abs=1e-5)


def test_a_clip_detectors_video_map_is_that_of_its_linked_predictions(source, folder, tmp_path):
    settings = SETTINGS["online"]
    data = clips(source, folder)
    module = clip(settings)
    entries, detect = [], module.detect

    def remember(batch):
        scored = detect(batch)
        for video, time, found in zip(batch.video_ids, batch.timestamps[:, 0].tolist(), scored, strict=True):
            entries.append({"video_id": video, "timestamp": time, **found._asdict()})
        return scored

    module.detect = remember
    scores = run_test(module, data, tmp_path)
    expected = by_hand(entries, source, settings)
    assert 0 < expected["video_map_20"] < 1
    assert {key: scores[f"test/{key}"] for key in KEYS} == pytest.approx(expected, abs=1e-6)


def test_validation_during_training_logs_it_and_without_settings_nothing_is_logged(source, folder, tmp_path):
    trainer = tiny.trainer(tmp_path, max_epochs=1, limit_train_batches=1, num_sanity_val_steps=1)
    trainer.fit(streaming(SETTINGS["online"]), datamodule=streams(source, folder))
    assert {f"val/{key}" for key in KEYS} <= trainer.callback_metrics.keys()
    assert not any("video" in key for key in run_test(streaming(), streams(source, folder), tmp_path))


def test_the_table_names_value_linker_and_protocol(source, folder, tmp_path):
    table = BenchmarkTable(folder=tmp_path, warmup=0, repeats=1)
    scores = run_test(streaming(SETTINGS["act"]), streams(source, folder), tmp_path, callbacks=[table])
    (row,) = read_rows(tmp_path / "benchmark.jsonl")
    assert row.video_map_50 == pytest.approx(scores["test/video_map_50"], abs=1e-6)
    assert row.video_protocol == "multisports video mAP, act linker, stride 3"
    assert f"{100 * row.video_map_50:.2f} ({row.video_protocol})" in (tmp_path / "benchmark.md").read_text()


def test_videos_that_are_cut_short_are_left_out_and_named(source, folder, tmp_path):
    data = streams(source, folder, lanes=1, chunk_frames=4)  # the longest video comes first, three chunks of it
    with pytest.warns(UserWarning, match="1 videos were not seen from their first frame to their last .*: video_2"):
        scores = run_test(streaming(SETTINGS["online"]), data, tmp_path, limit_test_batches=2)
    assert np.isnan(scores["test/video_map_50"])


def test_data_that_cannot_have_a_video_map_say_so(source, folder, tmp_path):
    nameless = NumberedVideos(folder, source.lengths, 2, sizes=source.sizes)
    with pytest.raises(ValueError, match=r"video_2.mp4:? has boxes at 0.125 s without person ids or tubes"):
        run_test(streaming(SETTINGS["online"]), streams(nameless, folder), tmp_path)
    with pytest.raises(ValueError, match="annotated at one in 3 of the frames that a stream of stride 1"):
        run_test(streaming(SETTINGS["online"]), streams(source, folder, frame_stride=1), tmp_path)
    holes = WithHoles(folder, source.lengths, 2, sizes=source.sizes)
    with pytest.raises(ValueError, match=r"10 of 11 in video_2, one of 4 such videos\. Set every_frame=true"):
        run_test(clip(SETTINGS["online"]), clips(holes, folder), tmp_path)
    assert run_test(streaming(SETTINGS["online"]), streams(holes, folder), tmp_path)["test/video_map_20"] > 0


def people(score):
    return ScoredBoxes(torch.tensor([[0.0, 0, 50, 50]]), torch.tensor([[score]]), torch.ones(1))


def evaluation(num_slots=4):
    truth = TrueTubes(num_slots, {}, (TrueTube(0, np.arange(num_slots), np.tile([0.0, 0, 50, 50], (num_slots, 1))),))
    return VideoEvaluation(VideoMapSettings(), VideoMeanAveragePrecision(1), {"a": truth, "b": truth}, 1)


def test_a_finished_video_is_kept_no_longer_and_a_broken_one_does_not_count():
    videos = evaluation()
    for slot in range(4):
        videos.add([("a", slot), ("b", slot if slot < 2 else slot + 1)], [people(0.5), people(0.5)])
    assert "a" not in videos._open and videos.cut == ["b"]
    result = videos.finish()
    assert result["num_videos"] == 1 and result["map_75"] == 1
    assert videos.cut == [] and videos.finish()["num_videos"] == 0


def test_a_video_that_starts_anew_counts_once():
    videos = evaluation()
    for slot in (0, 1, 0, 1, 2, 3):
        videos.add([("a", slot)], [people(0.5)])
    assert videos.cut == [] and videos.finish()["num_videos"] == 1


def test_act_counts_raw_frames():
    settings = VideoMapSettings("act")
    assert (settings.tubes(1, 1).max_missed, settings.tubes(1, 1).min_frames) == (5, 15)
    assert (settings.tubes(1, 4).max_missed, settings.tubes(1, 4).min_frames) == (2, 4)


def test_wrong_settings_are_refused():
    for wrong in ({"linker": "viterbi"}, {"protocol": "yowo"}, {"smoothing": 1.5}, {"min_frames": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            VideoMapSettings(**wrong)


def test_frames_that_come_before_their_turn_wait_for_it():
    moving = [people(0.5)._replace(boxes=torch.tensor([[5.0 * slot, 0, 5 * slot + 50, 50]])) for slot in range(8)]
    tubes = []
    for order in (range(8), (0, 4, 1, 5, 2, 6, 3, 7), (0, 7, 6, 5, 4, 3, 2, 1)):
        videos = evaluation(num_slots=8)
        videos.on_finished = lambda video, found: tubes.append(found)
        videos.add([("a", slot) for slot in order], [moving[slot] for slot in order])
        assert not videos._open
    for found in tubes[1:]:
        torch.testing.assert_close(found, tubes[0])
