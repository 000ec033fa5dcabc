"""Streaming accuracy against plain frame mAP of predictions that are moved by hand, and the project's delayed mAP."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_modules.evaluation.delays import DelayedEvaluation
from lightning_modules.evaluation.predictions import Answer, StreamFrame
from lightning_modules.metrics.frame_ap import FrameMapSettings, FrameRows, frame_mean_average_precision
from lightning_modules.metrics.frame_map import FrameMeanAveragePrecision, action_rows
from lightning_modules.metrics.streaming_map import (
    StreamingMeanAveragePrecision,
    arrivals,
    finish_times,
    newest_finished,
    rows_at,
)
from lightning_modules.networks.detection.outputs import ScoredBoxes

CLASSES = 3
STEP = 1 / 15


class Video:
    """People who walk to the right and change what they do, and a detector that is right of what it sees."""

    def __init__(self, seed: int, length: int = 30) -> None:
        random = torch.Generator().manual_seed(seed)
        walked = 3.0 * torch.arange(length)[:, None, None] * torch.tensor([1.0, 0, 1, 0])
        people = torch.tensor([[0.0, 0, 20, 40], [0, 100, 20, 140]])
        self.boxes = people + walked
        self.labels = torch.nn.functional.one_hot(torch.randint(CLASSES, (length, 2), generator=random), CLASSES)
        self.times = (STEP * torch.arange(length, dtype=torch.float64)).tolist()
        self.found = [
            {
                "boxes": self.boxes[at] + torch.randn(2, 4, generator=random),
                "scores": (0.3 * self.labels[at] + 0.7 * torch.rand(2, CLASSES, generator=random)),
            }
            for at in range(length)
        ]
        self.true = [action_rows(self.boxes[at], self.labels[at]) for at in range(length)]


VIDEOS = [Video(seed, length) for seed, length in enumerate((30, 17, 5))]
NOTHING = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0, CLASSES)}


def streaming(latency, **options) -> float:
    metric = StreamingMeanAveragePrecision(CLASSES, latency, **options)
    for video in VIDEOS:
        metric.update_video(video.times, video.found, video.true)
    return float(metric.compute()["map"])


def delayed_by_hand(frames: int) -> float:
    metric = FrameMeanAveragePrecision(CLASSES)
    for video in VIDEOS:
        late = [video.found[at - frames] if at >= frames else NOTHING for at in range(len(video.found))]
        metric.update(late, video.true)
    return float(metric.compute()["map"])


@pytest.mark.parametrize("schedule", ["newest", "every", "parallel"])
def test_without_latency_it_is_the_frame_map(schedule):
    assert streaming(0.0, schedule=schedule) == pytest.approx(delayed_by_hand(0), abs=1e-12)
    assert 0.5 < delayed_by_hand(0) < 1


@pytest.mark.parametrize("frames", [1, 2, 4, 7])
def test_a_constant_latency_of_k_frames_scores_what_was_said_k_frames_before(frames):
    assert streaming(frames * STEP, schedule="parallel") == pytest.approx(delayed_by_hand(frames), abs=1e-12)
    if frames == 1:  # one frame after the other is then in time, too
        for schedule in ("newest", "every"):
            assert streaming(STEP, schedule=schedule) == pytest.approx(delayed_by_hand(1), abs=1e-12)
    assert streaming(0.0, frames_awaited=frames) == pytest.approx(delayed_by_hand(frames), abs=1e-12)
    assert delayed_by_hand(frames) < delayed_by_hand(0) - 0.05


@pytest.mark.parametrize("frames", [0, 1, 3, 7])
def test_a_constant_latency_of_k_frames_is_the_delayed_map_of_the_project(frames):
    """``map_delay_<k>`` of ``DelayedEvaluation`` is the very number, of the same video run backwards.

    A latency of k frames scores the truth of frame t against the prediction about t - k; ``DelayedEvaluation`` scores
    it against the one about t + k, of a scene that waits for its detector. In a video of frames 0 to L run backwards
    frame t is number L - t, so the k frames before it come after it. The first k frames have no prediction with a
    latency but the last one's with a delay: they are not annotated here.
    """
    metric = StreamingMeanAveragePrecision(CLASSES, frames * STEP, schedule="parallel")
    delayed = DelayedEvaluation([frames], FrameMeanAveragePrecision(CLASSES))
    plain = FrameMeanAveragePrecision(CLASSES)
    size, nobody = torch.tensor([200, 200]), torch.zeros(0)
    for video in VIDEOS:
        last = len(video.times) - 1
        annotated = range(frames, last + 1, 2)
        metric.update_video(video.times, video.found, {at: video.true[at] for at in annotated})
        plain.update([video.found[at] for at in annotated], [video.true[at] for at in annotated])
        for number, at in enumerate(range(last, -1, -1)):
            true, is_true = (video.boxes[at], video.labels[at]), at in annotated
            frame = StreamFrame(0, number == 0, "", number, 0.0, is_true, *true, size, size, nobody, None)
            found = video.found[at]
            delayed.add([Answer(frame, ScoredBoxes(found["boxes"], found["scores"], torch.ones(2)))])
    expected = delayed.finish()[f"map_delay_{frames}"]
    assert float(metric.compute()["map"]) == pytest.approx(expected, abs=1e-12)
    undelayed = float(plain.compute()["map"])
    if frames:
        assert expected < undelayed - 0.05  # the delay matters
    else:
        assert expected == pytest.approx(undelayed, abs=1e-12) and 0.5 < expected < 1


def test_a_busy_machine_skips_frames():
    """The example at the top of the module."""
    times = 0.1 * np.arange(10)
    finished = finish_times(times, 0.25, "newest")
    assert np.flatnonzero(np.isfinite(finished)).tolist() == [0, 2, 5, 7, 9]
    assert finished[[0, 2, 5, 7]].tolist() == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert newest_finished(finished, times).tolist() == [-1, -1, -1, 0, 0, 2, 2, 2, 5, 5]


def test_a_stream_that_needs_every_frame_falls_behind():
    finished = finish_times(0.1 * np.arange(5), 0.15, "every")
    assert finished.tolist() == pytest.approx([0.15, 0.3, 0.45, 0.6, 0.75])


def test_measured_latencies_come_in_turn():
    assert finish_times(np.asarray([0.0, 1, 2]), [0.1, 0.3], "every").tolist() == pytest.approx([0.1, 1.3, 2.1])


def test_what_is_awaited_goes_on_after_the_end():
    assert arrivals(np.asarray([0.0, 0.5, 1.0]), 2).tolist() == [1.0, 1.5, 2.0]
    assert arrivals(np.zeros(0), 2).tolist() == []


def test_with_several_in_parallel_the_newest_frame_counts_not_the_last_to_finish():
    """Frame 0 takes long and is finished after frame 1."""
    finished = finish_times(np.asarray([0.0, 1.0]), [5.0, 0.5], "parallel")
    assert newest_finished(finished, np.asarray([1.4, 1.5, 5.0])).tolist() == [-1, 1, 1]


@pytest.mark.parametrize("schedule", ["newest", "every", "parallel"])
@pytest.mark.parametrize("latency", [0.0, 0.04, 0.21])
def test_rows_of_a_file_and_the_metric_agree(schedule, latency):
    """On plain arrays, boxes and rows shuffled."""
    random = np.random.default_rng(0)
    boxes, frames, scores, sources, true_boxes, true_frames, labels, first = [], [], [], [], [], [], [], 0
    for video in VIDEOS:
        for at, (found, true) in enumerate(zip(video.found, video.true, strict=True)):
            boxes.append(found["boxes"].double().numpy())
            scores.append(found["scores"].double().numpy())
            frames += [first + at] * 2
            true_boxes.append(true["boxes"].double().numpy())
            labels.append(true["labels"].numpy())
            true_frames += [first + at] * len(true["labels"])
        times = np.asarray(video.times)
        newest = newest_finished(finish_times(times, latency, schedule), times)
        sources.append(np.where(newest >= 0, newest + first, -1))
        first += len(times)
    order = random.permutation(len(frames))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    rows = random.permutation(len(frames) * CLASSES)
    preds = FrameRows(
        np.asarray(frames)[order],
        np.concatenate(boxes)[order],
        place[np.repeat(np.arange(len(frames)), CLASSES)[rows]],
        np.tile(np.arange(CLASSES), len(frames))[rows],
        np.concatenate(scores).reshape(-1)[rows],
    )
    count = len(true_frames)
    truth = FrameRows(
        np.asarray(true_frames), np.concatenate(true_boxes), np.arange(count), np.concatenate(labels), np.ones(count)
    )
    late = rows_at(preds, np.concatenate(sources))
    result = frame_mean_average_precision(late, truth, first, range(CLASSES), FrameMapSettings())
    assert result.mean == pytest.approx(streaming(latency, schedule=schedule), abs=1e-12)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="schedule must be one of newest, every, parallel, got 'fast'"):
        StreamingMeanAveragePrecision(CLASSES, schedule="fast")
    with pytest.raises(ValueError, match="latency_seconds must be at least 0, got -1"):
        StreamingMeanAveragePrecision(CLASSES, -1.0)
    with pytest.raises(ValueError, match="frames_awaited must be at least 0"):
        StreamingMeanAveragePrecision(CLASSES, frames_awaited=-1)
    with pytest.raises(ValueError, match="must ascend"):
        StreamingMeanAveragePrecision(CLASSES).update_video([0.0, 0.0], [NOTHING] * 2, {})


def test_before_the_first_prediction_is_ready_nothing_is_found_whatever_the_class_ids():
    """At 0.25 s the one about frame 0 is finished: of frames at 0 to 0.3 s the last is found."""
    metric = StreamingMeanAveragePrecision(3, 0.25, class_ids=[1, 2, 30])
    row = {"boxes": torch.tensor([[0.0, 0, 1, 1]]), "labels": torch.tensor([30])}
    metric.update_video([0, 0.1, 0.2, 0.3], [row | {"scores": torch.tensor([0.9])}] * 4, [row] * 4)
    assert metric.compute()["map"] == 0.25


def test_targets_of_too_few_frames_are_refused():
    with pytest.raises(ValueError, match="there are 2 frames but 1 targets"):
        StreamingMeanAveragePrecision(CLASSES).update_video([0.0, 0.1], [NOTHING] * 2, [VIDEOS[0].true[0]])


def test_a_description_names_the_protocol_and_the_time():
    metric = StreamingMeanAveragePrecision(CLASSES, 0.012, frames_awaited=3)
    assert metric.streaming_description == "streaming ava frame mAP@0.5, newest, 12 ms, 3 frames awaited"
