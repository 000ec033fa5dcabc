"""Zones: polygons in fractions of the frame, and where in them a person is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Point = tuple[float, float]
"""x to the right and y down, fractions of the frame's width and height."""
Polygon = tuple[Point, ...]
PlacedBy = Literal["foot", "centre"]
"""The point of a box that says where the person is: the middle of its lower edge, or of the box."""
ON_EDGE = 1e-12
"""Twice the area of a triangle that is taken for a line."""


def polygon_of(corners: object) -> Polygon:
    """Return the corners of a polygon as a config holds them.

    Raises:
        ValueError: they are no polygon within the frame.
    """
    if not isinstance(corners, Sequence) or isinstance(corners, str) or len(corners) < 3:
        raise ValueError(f"a zone has at least three corners [x, y], got {corners!r}")
    for corner in corners:
        is_point = isinstance(corner, Sequence) and not isinstance(corner, str) and len(corner) == 2
        if not is_point or not all(_is_fraction(side) for side in corner):
            raise ValueError(f"corners are [x, y] in fractions of the frame, 0 to 1, got {corner!r}")
    polygon = tuple((float(x), float(y)) for x, y in corners)
    if sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in _edges(polygon)) == 0:
        raise ValueError("the zone has no area, its corners lie on a line")
    return polygon


def place(box: Sequence[float], size: tuple[int, int], placed_by: PlacedBy) -> Point:
    """Return where a person is whose box is (x1, y1, x2, y2) in pixels of a frame of ``size`` (height, width).

    A box may reach out of the frame; the point lies within it.
    """
    x1, y1, x2, y2 = box
    x, y = (x1 + x2) / 2 / size[1], (y2 if placed_by == "foot" else (y1 + y2) / 2) / size[0]
    return min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)


def contains(polygon: Polygon, point: Point) -> bool:
    """Return whether a point lies in a polygon or on its edge; where edges cross, the even-odd rule decides."""
    x, y = point
    inside = False
    for (x1, y1), (x2, y2) in _edges(polygon):
        beside = (x2 - x1) * (y - y1) - (y2 - y1) * (x - x1)
        if abs(beside) <= ON_EDGE and min(x1, x2) <= x <= max(x1, x2) and min(y1, y2) <= y <= max(y1, y2):
            return True
        if (y1 > y) != (y2 > y) and x < x1 + (y - y1) * (x2 - x1) / (y2 - y1):
            inside = not inside
    return inside


def _edges(polygon: Polygon) -> list[tuple[Point, Point]]:
    return list(zip(polygon, (*polygon[1:], polygon[0]), strict=True))


def _is_fraction(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
