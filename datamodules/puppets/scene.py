"""One video: its puppets, their places, and its frames. Everything follows from (seed, split, index)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from datamodules.puppets import appearance
from datamodules.puppets.actions import CLASS_NAMES, FRAMES_PER_SECOND, Span, controls, pose
from datamodules.puppets.appearance import FRAME_SIZE, MARGIN
from datamodules.puppets.figure import SUPERSAMPLING, Figure, build_figure, paint
from datamodules.puppets.script import actors_before, draw_script, num_actors

SPLIT_KEYS = {"train": 0, "val": 1}

HEIGHTS = {1: (72.0, 98.0), 2: (64.0, 94.0), 3: (60.0, 76.0)}
"""Range of the standing height in pixels, by the number of puppets in the video."""
DRIFT_PIXELS = 7.0
"""Longest way of a puppet in one walk or run; it may also stay on the spot."""
MAX_OVERLAP = 0.2
"""Two puppets' boxes stay below this IoU in every frame."""


class Actor(NamedTuple):
    """One puppet of one video."""

    spans: tuple[Span, ...]
    figure: Figure
    """Skeleton in pixels of the video, camera shake included."""
    boxes: np.ndarray
    """(T, 4) float64, xyxy in pixels, the extent of the figure inside the frame."""


class Distractor(NamedTuple):
    """A ball or a box that drifts behind the puppets."""

    centres: np.ndarray
    """(T, 2) in pixels."""
    radius: float
    round: bool
    colour: appearance.Colour


class Scene(NamedTuple):
    """All that is visible in a video, and its ground truth."""

    actors: tuple[Actor, ...]
    distractors: tuple[Distractor, ...]
    background: np.ndarray
    shake: np.ndarray
    brightness: np.ndarray
    crf: int
    """Quality of the compression, 18 (fine) to 30 (coarse)."""
    preset: str

    @property
    def num_frames(self) -> int:
        return len(self.brightness)


def draw_scene(seed: int, split: str, index: int, num_frames: int) -> Scene:
    """The ``index``-th video of a split."""
    rng = np.random.default_rng([seed, SPLIT_KEYS[split], index])
    background = appearance.draw_background(rng, split)
    shake = appearance.draw_shake(rng, num_frames)
    background_colour = background.mean(axis=(0, 1))
    actors = _draw_actors(rng, seed, split, index, shake, appearance.luma(background_colour))
    return Scene(
        actors=actors,
        distractors=tuple(_draw_distractor(rng, background_colour, shake) for _ in range(rng.integers(0, 4))),
        background=background,
        shake=shake,
        brightness=appearance.draw_brightness(rng, num_frames),
        crf=int(rng.integers(18, 31)),
        preset=str(rng.choice(["ultrafast", "veryfast"])),
    )


def render(scene: Scene) -> Iterator[np.ndarray]:
    """The frames, (128, 128, 3) uint8 RGB each."""
    import cv2

    side = FRAME_SIZE * SUPERSAMPLING
    levels = np.arange(256, dtype=np.float64)
    for frame in range(scene.num_frames):
        left, top = np.round((MARGIN - scene.shake[frame]) * SUPERSAMPLING).astype(int)
        canvas = scene.background[top : top + side, left : left + side].copy()
        for distractor in scene.distractors:
            _paint_distractor(canvas, distractor, frame)
        for actor in scene.actors:
            paint(canvas, actor.figure, frame)
        small = cv2.resize(canvas, (FRAME_SIZE, FRAME_SIZE), interpolation=cv2.INTER_AREA)
        exposure = np.clip(np.round(levels * scene.brightness[frame]), 0, 255).astype(np.uint8)
        yield cv2.LUT(small, exposure)


def _draw_actors(
    rng: np.random.Generator, seed: int, split: str, index: int, shake: np.ndarray, background_luma: float
) -> tuple[Actor, ...]:
    """Puppets side by side, built and placed anew until all of them stay inside the frame and apart from each other."""
    count, before = num_actors(index), actors_before(index)
    # Of ten puppets in a row each must show another class, in an order of the split's own.
    order = np.random.default_rng([seed, SPLIT_KEYS[split]]).permutation(len(CLASS_NAMES))
    wanted = [CLASS_NAMES[order[(before + number) % len(CLASS_NAMES)]] for number in range(count)]
    clothes = [appearance.draw_clothes(rng, split, background_luma) for _ in range(count)]
    for _ in range(200):
        scripts = [draw_script(rng, len(shake), action) for action in wanted]
        figures = [_stand(rng, spans, worn, count, len(shake)) for spans, worn in zip(scripts, clothes, strict=True)]
        figures = [figure.moved(shake) for figure in _side_by_side(rng, figures)]
        boxes = np.stack([figure.boxes() for figure in figures], axis=1)  # (T, count, 4)
        if boxes.min() >= 0.0 and boxes.max() <= FRAME_SIZE and largest_overlap(boxes) < MAX_OVERLAP:
            # Who stands lower in the picture is nearer to the camera and painted later.
            depth = np.argsort(boxes[..., 3].max(axis=0))
            return tuple(Actor(scripts[number], figures[number], boxes[:, number]) for number in depth)
    raise RuntimeError(f"no room for {count} puppets in video {index} of {split} (seed {seed}); take another seed")


def _stand(
    rng: np.random.Generator, spans: tuple[Span, ...], clothes: appearance.Clothes, count: int, num_frames: int
) -> Figure:
    """A puppet on some ground line of the picture, its walks around x = 0."""
    build = appearance.draw_build(rng, float(rng.uniform(*HEIGHTS[count])))
    facing = int(rng.choice([-1, 1]))
    figure = build_figure(pose(controls(spans, num_frames)), build, clothes, facing)
    path = np.zeros((num_frames, 2))
    for span in spans:
        if span.action in ("walk", "run"):
            # The distance is drawn in the same way for both, so that neither it nor the place distinguishes them.
            pace = facing * float(rng.uniform(0.0, DRIFT_PIXELS)) / span.length
            path[:, 0] += pace * np.clip(np.arange(num_frames) - span.start, 0, span.length)
    figure = figure.moved(path)
    highest = MARGIN - figure.boxes()[:, 1].min()  # the ground line that keeps raised hands inside the frame
    lowest = float(FRAME_SIZE - MARGIN)
    return figure.moved(np.array([0.0, float(rng.uniform(min(highest, lowest), lowest))]))


def _side_by_side(rng: np.random.Generator, figures: list[Figure]) -> list[Figure]:
    """Shift the figures along x so that what each of them ever covers shares the frame's width, in random order."""
    boxes = [figure.boxes() for figure in figures]
    left = np.array([box[:, 0].min() for box in boxes])
    width = np.array([box[:, 2].max() for box in boxes]) - left
    free = FRAME_SIZE - 2 * MARGIN - width.sum()
    if free >= 0 or len(figures) == 1:
        gaps = free * rng.dirichlet(np.ones(len(figures) + 1))
    else:  # reaches overlap, which the boxes of single frames need not do; the caller checks
        gaps = np.concatenate([[0.0], np.full(len(figures) - 1, free / (len(figures) - 1)), [0.0]])
    order = rng.permutation(len(figures))
    starts = np.empty(len(figures))
    starts[order] = MARGIN + np.cumsum(gaps[:-1]) + np.cumsum(width[order]) - width[order]
    shifts = np.stack([starts - left, np.zeros(len(figures))], axis=1)
    return [figure.moved(shift) for figure, shift in zip(figures, shifts, strict=True)]


def largest_overlap(boxes: np.ndarray) -> float:
    """The largest IoU of two puppets in one frame; boxes (T, N, 4)."""
    first, second = np.triu_indices(boxes.shape[1], k=1)
    if not len(first):
        return 0.0
    a, b = boxes[:, first], boxes[:, second]
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0.0, None)
    shared = sides.prod(-1)
    areas = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    return float((shared / (areas - shared)).max())


def _draw_distractor(rng: np.random.Generator, background_colour: np.ndarray, shake: np.ndarray) -> Distractor:
    start, velocity = rng.uniform(0.0, FRAME_SIZE, 2), rng.uniform(-14.0, 14.0, 2)  # pixels, pixels a second
    path = start + velocity * np.arange(len(shake))[:, None] / FRAMES_PER_SECOND
    folded = np.abs((path + FRAME_SIZE) % (2 * FRAME_SIZE) - FRAME_SIZE)  # thrown back at the borders
    tint = background_colour + float(rng.choice([-1.0, 1.0])) * rng.uniform(10.0, 24.0) + rng.uniform(-5.0, 5.0, 3)
    colour = tuple(np.clip(np.round(tint), 0, 255).astype(int).tolist())
    return Distractor(folded + shake, float(rng.uniform(2.5, 6.0)), bool(rng.random() < 0.5), colour)


def _paint_distractor(canvas: np.ndarray, distractor: Distractor, frame: int) -> None:
    import cv2

    centre = distractor.centres[frame] * SUPERSAMPLING
    radius = distractor.radius * SUPERSAMPLING
    if distractor.round:
        cv2.circle(canvas, np.round(centre).astype(int).tolist(), round(radius), distractor.colour, -1, cv2.LINE_AA)
    else:
        low, high = np.round(centre - radius).astype(int), np.round(centre + radius).astype(int)
        cv2.rectangle(canvas, low.tolist(), high.tolist(), distractor.colour, -1)
