"""Zones: points inside, outside and on edges, against OpenCV's test."""

import cv2
import numpy as np
import pytest

from callbacks.events.zones import contains, place, polygon_of

SQUARE = polygon_of([[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]])


@pytest.mark.parametrize("point", [(0.5, 0.5), (0.25, 0.5), (0.5, 0.75), (0.25, 0.25), (0.75, 0.75), (0.75, 0.25)])
def test_inside_edges_and_corners_belong_to_a_zone(point):
    assert contains(SQUARE, point)


@pytest.mark.parametrize("point", [(0.2499, 0.5), (0.5, 0.7501), (0.0, 0.0), (0.0, 0.25), (1.0, 0.75), (0.8, 0.25)])
def test_outside_does_not_also_on_the_line_that_an_edge_lies_on(point):
    assert not contains(SQUARE, point)


@pytest.mark.parametrize("seed", range(20))
def test_any_polygon_holds_the_points_that_opencv_says(seed):
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 65, (int(rng.integers(3, 9)), 2))  # a grid of 64ths is exact in both
    polygon = polygon_of((corners / 64).tolist())
    points = rng.integers(0, 65, (200, 2))
    ours = [contains(polygon, tuple(point / 64)) for point in points]
    theirs = [cv2.pointPolygonTest(corners.astype(np.int32), tuple(map(float, point)), False) >= 0 for point in points]
    assert ours == theirs and len(set(ours)) == 2


def test_a_person_is_where_the_feet_are_or_the_centre_of_the_box():
    box, size = (20.0, 10.0, 40.0, 90.0), (100, 200)
    assert place(box, size, "foot") == (0.15, 0.9)
    assert place(box, size, "centre") == (0.15, 0.5)


def test_a_box_that_reaches_out_of_the_frame_is_at_its_edge():
    assert place((-30.0, 50.0, 10.0, 104.0), (100, 200), "foot") == (0.0, 1.0)


@pytest.mark.parametrize(
    ("corners", "problem"),
    [
        ([[0, 0], [1, 1]], "at least three corners"),
        ("door", "at least three corners"),
        ([[0, 0], [1, 0], [1, 2]], "fractions of the frame"),
        ([[0, 0], [1, 0], [1]], "fractions of the frame"),
        ([[0, 0], [1, 0], ["a", 1]], "fractions of the frame"),
        ([[0, 0], [True, 0], [1, 1]], "fractions of the frame"),
        ([[0, 0], [0.5, 0.5], [1, 1]], "no area"),
    ],
)
def test_what_is_no_polygon_within_the_frame_is_refused(corners, problem):
    with pytest.raises(ValueError, match=problem):
        polygon_of(corners)
