"""Frame mAP of answers that are read late, against plain frame mAP of answers moved by hand."""

from __future__ import annotations

import pytest
import torch

from datamodules.batches import StreamBatch
from datamodules.sampling.indexing import stream_chunks
from lightning_modules.evaluation.delays import DelayedEvaluation, same_people
from lightning_modules.evaluation.predictions import StreamAnswers
from lightning_modules.metrics.frame_map import FrameMeanAveragePrecision
from lightning_modules.networks.detection.outputs import ScoredBoxes
from lightning_modules.stream_detection import StreamDetectionModule, StreamSettings
from tests.lightning_modules import tiny

CLASSES = 3
LENGTHS = (13, 7, 10, 5)
DELAYS = (0, 1, 2, 4)
CUTS = [(1, 1), (2, 3), (4, 8), (3, 20)]
"""Lanes and frames of a chunk."""
PERSON = torch.tensor([[0.0, 0.0, 20.0, 40.0]])


class Stream:
    """Videos of two people side by side, each doing one thing at a time, and a detector that says what it is told to.

    Args:
        speed: pixels that both people walk from a frame to the next.
        lag: frames that the detector's actions are late; None makes it say anything.
    """

    def __init__(self, speed: float = 0.0, lag: int | None = None) -> None:
        generator = torch.Generator().manual_seed(5)
        self.boxes, self.labels, self.scored = [], [], []
        for length in LENGTHS:
            walked = speed * torch.arange(length)[:, None, None] * torch.tensor([1.0, 0.0, 1.0, 0.0])
            boxes = walked + torch.stack([PERSON[0], PERSON[0] + torch.tensor([0.0, 100.0, 0.0, 100.0])])
            actions = torch.randint(CLASSES, (length, 2), generator=generator)
            actions[-max(DELAYS) - 1 :] = actions[-1]  # what is said at the end is then right however late it is
            labels = torch.nn.functional.one_hot(actions, CLASSES).float()  # (length, 2, K)
            self.boxes.append(boxes)
            self.labels.append(labels)
            self.scored.append([self._said(t, boxes, labels, lag, generator) for t in range(length)])

    @staticmethod
    def _said(t, boxes, labels, lag, generator):
        order = torch.randperm(2, generator=generator)
        if lag is None:
            count = int(torch.randint(4, (), generator=generator))  # sometimes nobody is found
            found = boxes[t][torch.randint(2, (count,), generator=generator)]
            found = found + 6 * torch.rand(count, 4, generator=generator)
            return ScoredBoxes(found, torch.rand(count, CLASSES, generator=generator), torch.ones(count))
        return ScoredBoxes(boxes[t][order], labels[max(0, t - lag)][order], torch.ones(2))

    def is_keyframe(self, slot: int) -> bool:
        return slot % 3 != 1

    def batches(self, lanes: int, chunk_frames: int):
        """Chunks, whose network input is half as large as the video, with their detections."""
        for step in stream_chunks([[length] for length in LENGTHS], lanes, chunk_frames, 0, 1):
            places = [(c, c.start + at) if at < c.valid else None for c in step for at in range(chunk_frames)]
            shape = len(step), chunk_frames
            empty = torch.empty(0, 4), torch.empty(0, CLASSES)
            nobody = ScoredBoxes(PERSON, torch.ones(1, CLASSES), torch.ones(1))
            yield (
                StreamBatch(
                    frames=torch.zeros(*shape, 3, 1, 1, dtype=torch.uint8),
                    image_sizes=torch.full((len(step), 2), 100),
                    is_first=torch.tensor([c.valid > 0 and c.start == 0 for c in step]),
                    is_valid=torch.tensor([place is not None for place in places]).view(shape),
                    is_last=torch.zeros(len(step), dtype=torch.bool),
                    annotated=torch.tensor([place is None or self.is_keyframe(place[1]) for place in places]).view(
                        shape
                    ),
                    boxes=tuple(self.boxes[p[0].video][p[1]] / 2 if p else empty[0] for p in places),
                    labels=tuple(self.labels[p[0].video][p[1]] if p else empty[1] for p in places),
                    video_ids=("",) * len(step),
                    timestamps=torch.zeros(shape),
                    original_sizes=torch.full((len(step), 2), 200),
                    frame_indices=torch.zeros(shape, dtype=torch.int64),
                ),
                [
                    [self.scored[c.video][c.start + at] if at < c.valid else nobody for at in range(chunk_frames)]
                    for c in step
                ],
            )

    def measured(self, lanes: int = 2, chunk_frames: int = 4, delays=DELAYS):
        evaluation = DelayedEvaluation(delays, FrameMeanAveragePrecision(CLASSES))
        answers = StreamAnswers(0)
        for batch, scored in self.batches(lanes, chunk_frames):
            evaluation.add(answers.add(batch, scored))
        return evaluation.finish()

    def by_hand(self, delay: int) -> float:
        """Plain mAP of each keyframe's truth against what is said ``delay`` frames later, or at the end."""
        metric = FrameMeanAveragePrecision(CLASSES)
        for boxes, labels, scored in zip(self.boxes, self.labels, self.scored, strict=True):
            for slot in filter(self.is_keyframe, range(len(boxes))):
                found = scored[min(slot + delay, len(boxes) - 1)]
                truth = {"boxes": boxes[slot], "labels": labels[slot].argmax(1)}
                metric.update([{"boxes": found.boxes, "scores": found.scores}], [truth])
        return float(metric.compute()["map"])


@pytest.mark.parametrize(("lanes", "chunk_frames"), CUTS)
def test_every_delay_is_the_plain_map_of_later_answers_however_videos_are_cut(lanes, chunk_frames):
    stream = Stream(speed=2.0)
    found = stream.measured(lanes, chunk_frames)
    assert {name: found[name] for name in found if not name.endswith("actions")} == {
        f"map_delay_{delay}": pytest.approx(stream.by_hand(delay), abs=1e-12) for delay in DELAYS
    }
    assert 0 < found["map_delay_0"] < 1 and found["map_delay_0"] != found["map_delay_4"]


def test_actions_of_followed_people_are_the_same_however_videos_are_cut():
    stream = Stream(speed=2.0)
    first, *others = (stream.measured(*cut) for cut in CUTS)
    assert len({first[name] for name in first}) > 4
    for other in others:
        assert other == pytest.approx(first, abs=1e-12)


@pytest.mark.parametrize("lag", [0, 1, 2, 4])
def test_a_detector_that_lags_is_best_at_its_own_delay(lag):
    found = Stream(lag=lag).measured()
    scores = {delay: found[f"map_delay_{delay}"] for delay in DELAYS}
    assert scores[lag] == pytest.approx(1)
    assert max(score for delay, score in scores.items() if delay != lag) < 0.9
    # Nobody moves: boxes of either frame are the same.
    assert found[f"map_delay_{max(lag, 1)}_actions"] == pytest.approx(found[f"map_delay_{max(lag, 1)}"])


def test_boxes_of_the_keyframe_do_not_suffer_from_people_who_move():
    found = Stream(speed=6.0, lag=2).measured()  # after two frames the IoU is 8 / 32
    assert found["map_delay_2_actions"] == pytest.approx(1)
    assert found["map_delay_2"] < 0.5


def test_an_evaluation_starts_from_nothing():
    stream, evaluation = Stream(), DelayedEvaluation(DELAYS, FrameMeanAveragePrecision(CLASSES))
    results = []
    for videos in (1, 100, 100):  # the first is broken off
        answers = StreamAnswers(0)
        for batch, scored in list(stream.batches(2, 4))[:videos]:
            evaluation.add(answers.add(batch, scored))
        results.append(evaluation.finish())
    assert results[1] == results[2] != results[0]


def test_no_delay_scores_nothing():
    assert Stream().measured(delays=()) == {}


@pytest.mark.parametrize("delays", [(0, -1), (2, 2)])
def test_delays_must_be_different_and_not_negative(delays):
    with pytest.raises(ValueError, match="different numbers of sampled frames, at least 0, got"):
        DelayedEvaluation(delays, FrameMeanAveragePrecision(CLASSES))


def people(boxes, persons):
    return ScoredBoxes(torch.tensor(boxes).float(), torch.zeros(len(boxes), CLASSES), torch.tensor(persons))


def test_a_person_is_followed_to_the_proposal_that_is_taken_for_a_person():
    earlier = people([[0, 0, 10, 10], [50, 0, 60, 10], [1, 0, 11, 10]], [0.9, 0.8, 0.1])
    # The first one's duplicate is where the person was, the person has moved; the second one is gone.
    later = people([[0, 0, 10, 10], [2, 0, 12, 10], [80, 0, 90, 10]], [0.1, 0.9, 0.8])
    assert same_people(earlier, later).tolist() == [1, -1, 0]


def test_nobody_is_followed_where_nobody_is():
    nobody = ScoredBoxes(torch.empty(0, 4), torch.empty(0, CLASSES), torch.empty(0))
    somebody = people([[0, 0, 10, 10]], [0.9])
    assert same_people(somebody, nobody).tolist() == [-1]
    assert same_people(nobody, somebody).tolist() == []


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_test_run_logs_every_delay_and_the_first_is_its_map(tmp_path, lanes):
    network = tiny.student()
    tiny.place_proposals(network)
    module = StreamDetectionModule(network, detection=StreamSettings(scored_delays=[2, 0]))
    data = tiny.streams(tiny.videos(tmp_path), tmp_path / "cache", lanes=lanes)
    (scores,) = tiny.trainer(tmp_path).test(module, datamodule=data, verbose=False)
    late = {name: value for name, value in scores.items() if "delay" in name}
    assert set(late) == {"test/map_delay_0", "test/map_delay_2", "test/map_delay_2_actions"}
    assert 0 < late["test/map_delay_0"] == scores["test/map"]
    # The boxes of this network never move.
    assert late["test/map_delay_2_actions"] == pytest.approx(late["test/map_delay_2"], abs=1e-6)
