"""Single errors as pictures: the frame before, the frame, the frame after; segments as bars on a line of time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .figures import as_png, new_figure

TRUE, FOUND, ERROR = "#2ca02c", "#1f77b4", "#ff5b0f"


class DrawnBox(NamedTuple):
    """A box with what is written on it."""

    corners: Sequence[float]
    """xyxy as fractions of the frame."""
    text: str
    colour: str


class Shown(NamedTuple):
    """One of the three frames."""

    title: str
    picture: np.ndarray | None
    """(H, W, 3) uint8; None where the video has none, which leaves the place grey."""
    boxes: Sequence[DrawnBox]


def draw_strip(frames: Sequence[Shown]) -> bytes:
    """Return frames beside each other with their boxes; true ones dashed."""
    sizes = [frame.picture.shape[:2] for frame in frames if frame.picture is not None]
    height, width = sizes[0] if sizes else (3, 4)
    figure, (panels,) = new_figure(3.4 * len(frames), 3.4 * height / width + 0.4, 1, len(frames))
    for axes, frame in zip(panels, frames, strict=True):
        axes.imshow(np.full((height, width, 3), 160, np.uint8) if frame.picture is None else frame.picture)
        for box in frame.boxes:
            left, top, right, bottom = np.asarray(box.corners) * [width, height, width, height]
            style, sides = "--" if box.colour == TRUE else "-", [left, right, right, left, left]
            axes.plot(sides, [top, top, bottom, bottom, top], style, color=box.colour, linewidth=1.5)
            # Each colour has its own place: boxes of one person overlap.
            y, va = {TRUE: (bottom, "bottom"), FOUND: (top, "top"), ERROR: (max(top, height / 12), "bottom")}[
                box.colour
            ]
            axes.text(
                np.clip(left, 0, width),
                np.clip(y, 0, height),
                box.text,
                color="white",
                fontsize=7,
                va=va,
                bbox={"facecolor": box.colour, "edgecolor": "none", "pad": 1, "alpha": 0.85},
                clip_on=True,
            )
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        axes.set_title(frame.title, fontsize=8)
        axes.set_axis_off()
    return as_png(figure, dpi=80)


class Bar(NamedTuple):
    """A segment with what is written beside it."""

    start: float
    end: float
    text: str
    colour: str


def draw_timeline(bars: Sequence[Bar], span: tuple[float, float]) -> bytes:
    """Return segments below each other on a line of time, those outside of the span cut."""
    figure, ((axes,),) = new_figure(9, 0.9 + 0.28 * len(bars))
    for line, bar in enumerate(bars):
        axes.barh(line, bar.end - bar.start, left=bar.start, color=bar.colour, height=0.7)
        axes.text(max(bar.start, span[0]), line, f" {bar.text}", va="center", fontsize=8, clip_on=True)
    axes.set_xlim(span)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_yticks([])
    axes.set_xlabel("seconds", fontsize=8)
    return as_png(figure, dpi=80)
