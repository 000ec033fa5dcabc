"""The benchmark of where tubes begin and end, on one person whose action is seen a frame late."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from datamodules.annotations.source import AnnotatedVideo
from datamodules.batches import TrueTube, TrueTubes
from lightning_modules.evaluation.tubes import VideoEvaluation, VideoMapSettings
from lightning_modules.metrics.video_map import VideoMeanAveragePrecision
from lightning_modules.networks.detection.outputs import ScoredBoxes
from results.benchmarks.accuracy import tube_settings
from results.benchmarks.accuracy.tube_settings import Found, TrainingVideos, best, linked, scored, video_map

BOX = [10.0, 10.0, 30.0, 60.0]
LENGTH, BEGIN, END = 12, 4, 8
"""Sampled frames; the action is in frames 4 to 7."""


def seen_late(frames_late: int = 1) -> Found:
    """The score rises so many frames after the action has begun, and falls when it is over."""
    score = np.zeros(LENGTH)
    score[BEGIN + frames_late : END] = 0.9
    one = [ScoredBoxes(torch.tensor([BOX]), torch.tensor([[value]]).float(), torch.ones(1)) for value in score]
    boxes = np.tile(np.asarray([BOX]), (END - BEGIN, 1))
    truth = TrueTubes(LENGTH, {}, (TrueTube(0, np.arange(BEGIN, END), boxes),))
    return Found({"film": dict(enumerate(one))}, {"film": truth}, 1)


def test_the_settings_that_are_chosen_date_a_late_tube_back():
    """One frame of four is lost at the defaults, an overlap of 0.75 at most; dated back the tube is the true one."""
    found = seen_late()
    assert scored(found, {"smoothing": 0.0})["map_50_95"] == pytest.approx(60)  # 0.5, 0.55 ... 0.75 of ten overlaps
    chosen = best(found, "a film")
    assert chosen["lead"] - (chosen["smoothing"] > 0) in (0, 1)
    assert scored(found, chosen)["map_50_95"] == pytest.approx(100)


@pytest.mark.parametrize("settings", [{}, {"smoothing": 0.4, "lead": 1, "end_share": 0.3}, {"score_threshold": 0.25}])
def test_it_scores_as_test_does(settings):
    found = seen_late(2)
    metric = VideoMeanAveragePrecision(1)
    evaluation = VideoEvaluation(VideoMapSettings(**settings), metric, found.truth, stride=1)
    evaluation.add([("film", slot) for slot in range(LENGTH)], list(found.frames["film"].values()))
    result = evaluation.finish()
    assert scored(found, settings) == {key: pytest.approx(100 * float(result[key])) for key in tube_settings.OVERLAPS}


def test_cutting_again_leaves_nothing_of_an_earlier_cut():
    found = seen_late()
    videos = linked(found, VideoMapSettings())
    cuts = [{"score_threshold": 0.15, "begin_share": 0.0, "end_share": 0.0, "lead": lead} for lead in (0, 2, 0)]
    first, second, third = (video_map(found, videos, cut) for cut in cuts)
    assert first == third != second


def test_the_first_training_videos_stand_in_for_the_evaluated_ones():
    class Source:
        def videos(self, split):
            return tuple(AnnotatedVideo(f"{split}{number}", None, ()) for number in range(5))

    assert [video.video_id for video in TrainingVideos(Source(), 2).videos("val")] == ["train0", "train1"]
