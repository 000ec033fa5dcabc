"""Time lines of true and found segments."""

import torch

from callbacks.pictures.detection_images import GREEN, ORANGE
from callbacks.pictures.segment_timelines import MARGIN, ROW, WIDTH, draw_timeline

NAMES = ("walk", "wave", "sit")


def segments(*rows):
    """Rows of start, end, label, score."""
    values = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
    return {"segments": values[:, :2], "labels": values[:, 2].long(), "scores": values[:, 3]}


def colour(picture, seconds, line, upper, duration=10.0):
    """The pixel in the middle of a bar."""
    row = (line + 1) * ROW + (3 if upper else ROW // 2 + 2)
    return picture[:, row, MARGIN + round(seconds / duration * WIDTH)].tolist()


def test_truth_is_green_above_what_was_found_in_orange_at_its_time():
    picture = draw_timeline("film", 10.0, segments((2, 4, 1, 1)), segments((6, 8, 1, 0.9)), NAMES, 0.1)
    assert picture.dtype == torch.uint8 and picture.shape[0] == 3
    assert colour(picture, 3, 0, upper=True) == list(GREEN) and colour(picture, 7, 0, upper=False) == list(ORANGE)
    for seconds, upper in ((3, False), (7, True), (1, True), (5, True)):
        assert colour(picture, seconds, 0, upper=upper) == [255, 255, 255]


def test_a_class_has_a_line_where_it_is_true_or_found_and_weak_finds_have_none():
    found = segments((1, 2, 0, 0.5), (1, 2, 2, 0.05))
    picture = draw_timeline("film", 10.0, segments((2, 4, 1, 1)), found, NAMES, 0.1)
    alone = draw_timeline("film", 10.0, segments((2, 4, 1, 1)), segments(), NAMES, 0.1)
    assert picture.shape[1] - alone.shape[1] == ROW
    assert colour(picture, 1.5, 0, upper=False) != [255, 255, 255] and colour(picture, 3, 1, upper=True) == list(GREEN)


def test_the_better_a_find_the_stronger_its_colour_and_the_best_covers_the_others():
    found = segments((1, 9, 0, 0.8), (1, 9, 0, 0.2))
    picture = draw_timeline("film", 10.0, segments((1, 2, 0, 1)), found, NAMES, 0.1)
    weak = draw_timeline("film", 10.0, segments((1, 2, 0, 1)), segments((1, 9, 0, 0.2)), NAMES, 0.1)
    assert colour(picture, 5, 0, upper=False) == list(ORANGE) != colour(weak, 5, 0, upper=False)


def test_nothing_true_and_nothing_found_is_a_picture_with_a_title():
    picture = draw_timeline("film", 10.0, segments(), segments(), NAMES, 0.1)
    assert picture.shape[2] > WIDTH and (picture[:, :ROW] < 255).any()
