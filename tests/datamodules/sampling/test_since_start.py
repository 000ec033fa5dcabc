"""Age of annotated actions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datamodules.errors import UserError
from datamodules.frames.store import DecodedFrames, FrameScale
from datamodules.sampling.since_start import seconds_since_start, seconds_until_end, speeds
from datamodules.sampling.windows import TimedVideo, time_video, true_keyframes
from tests.lightning_modules import tiny

NAN = np.nan


def video(tracks, labels, name="v", spacing=4) -> TimedVideo:
    """Annotated at every ``spacing``-th of its frames, 10 a second; persons and multi-hot labels of each moment."""
    count = len(labels)
    frames = spacing * np.arange(count)
    facts = type("Facts", (), {"times": np.arange(frames[-1] + 1) / 10, "size": (8, 8), "original_size": (8, 8)})()
    return TimedVideo(
        name,
        Path(f"{name}.mp4"),
        facts,
        frames,
        frames / 10,
        tuple(np.tile(np.asarray([[0, 0, 1, 1]], np.float32), (len(moment), 1)) for moment in labels),
        tuple(np.asarray(moment, np.uint8).reshape(-1, 2) for moment in labels),
        tuple(None if moment is None else np.asarray(moment, np.int64) for moment in tracks),
    )


def test_an_action_starts_where_its_person_begins_with_it_and_starts_anew_after_a_break():
    labels = [[[1, 0]], [[1, 1]], [[0, 1]], [[1, 1]]]
    found = seconds_since_start([video([[7]] * 4, labels)], grid=4)
    expected = [[0, NAN], [0.4, 0], [NAN, 0.4], [0, 0.8]]
    np.testing.assert_allclose(np.concatenate(found), expected)


def test_persons_are_told_apart_whatever_the_order_of_their_boxes():
    labels = [[[1, 0], [0, 1]], [[0, 1], [1, 0]], [[1, 0]]]
    found = seconds_since_start([video([[1, 2], [2, 1], [2]], labels)], grid=4)
    np.testing.assert_allclose(found[1], [[NAN, 0.4], [0.4, NAN]])
    np.testing.assert_allclose(found[2], [[0, NAN]])  # the other person's action, new for this one


def test_a_person_who_was_away_starts_anew():
    found = seconds_since_start([video([[1], [], [1]], [[[1, 0]], [], [[1, 0]]])], grid=4)
    assert [part.tolist() for part in (found[0][:, 0], found[1][:, 0], found[2][:, 0])] == [[0], [], [0]]


def test_starts_do_not_depend_on_the_grid_and_times_are_those_of_the_moments_on_it():
    labels = [[[1, 0]]] * 8
    fine, coarse = (seconds_since_start([video([[1]] * 8, labels, spacing=2)], grid) for grid in (2, 6))
    np.testing.assert_allclose(np.concatenate(fine)[:, 0], 0.2 * np.arange(8))
    np.testing.assert_allclose(np.concatenate(coarse)[:, 0], [0, 0.6, 1.2])


def test_the_order_is_that_of_the_true_keyframes(tmp_path):
    source = tiny.videos(tmp_path)
    source.prepare()
    videos = []
    for part in source.videos("val"):
        known = tuple(moment._replace(tracks=np.arange(len(moment.boxes))) for moment in part.keyframes)
        videos.append(time_video(part._replace(keyframes=known), DecodedFrames(FrameScale(None))))
    keyframes, seconds = true_keyframes(videos, 2, 0.0), seconds_since_start(videos, 2)
    for keyframe, times in zip(keyframes, seconds, strict=True):
        np.testing.assert_array_equal(np.isnan(times), keyframe.labels == 0)


def test_boxes_without_a_person_are_refused_with_their_video():
    with pytest.raises(UserError, match="boxes at 0 s without a person"):
        seconds_since_start([video([None], [[[1, 0]]])], grid=1)


def test_an_action_ends_with_the_last_moment_that_has_it():
    labels = [[[1, 0]], [[1, 1]], [[0, 1]], [[1, 1]]]
    found = seconds_until_end([video([[7]] * 4, labels)], grid=4)
    expected = [[0.4, NAN], [0, 0.8], [NAN, 0.4], [0, 0]]
    np.testing.assert_allclose(np.concatenate(found), expected)


def test_speed_is_heights_a_second_between_the_moments_around():
    """A box half as tall as the frame of 8 x 8 moves 2, then 4 pixels in 0.4 s each; then the person is gone."""
    one = video([[3], [3], [3], [5]], [[[1, 0]]] * 4)
    boxes = [[0, 0, 0.25, 0.5], [0.25, 0, 0.5, 0.5], [0.75, 0, 1, 0.5], [0, 0, 1, 1]]
    one = one._replace(boxes=tuple(np.asarray([box], np.float32) for box in boxes))
    found = np.concatenate(speeds([one], grid=4))
    np.testing.assert_allclose(found, [2 / 4 / 0.4, 6 / 4 / 0.8, 4 / 4 / 0.4, NAN])
    assert np.isnan(speeds([one._replace(tracks=(None,) * 4)], grid=4)[0]).all()
