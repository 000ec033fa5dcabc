"""Look of a video: colours, proportions, background, camera. None of it depends on what the puppets do.

Hues and skin tones lie on a scale. Its even positions belong to training, its odd ones to validation; their jitter
stays below half the distance between positions.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np

from datamodules.puppets.actions import FRAMES_PER_SECOND
from datamodules.puppets.figure import SUPERSAMPLING, Build, Clothes, Colour

FRAME_SIZE = 128
SHAKE_PIXELS = 1.5
"""Largest displacement of the camera along each axis."""
MARGIN = 2
"""Pixels of background beyond each side of the frame, more than the camera shakes."""

HUES = 24
SKIN_TONES = 12
LIGHTEST_SKIN, DARKEST_SKIN = np.array([244.0, 208.0, 178.0]), np.array([96.0, 60.0, 42.0])
CONTRAST = 38.0
"""Smallest distance in luma (0 to 255) of clothes and skin from the background."""


def draw_hue(rng: np.random.Generator, split: str) -> float:
    """A hue in [0, 1) from the split's half of the wheel."""
    position = 2 * int(rng.integers(HUES // 2)) + (split != "train")
    return ((position + float(rng.uniform(-0.3, 0.3))) / HUES) % 1.0


def draw_clothes(rng: np.random.Generator, split: str, background_luma: float) -> Clothes:
    return Clothes(
        shirt=_contrasting(lambda: _colour(rng, split, (0.45, 0.9), (0.35, 0.95)), background_luma),
        trousers=_contrasting(lambda: _colour(rng, split, (0.2, 0.7), (0.15, 0.7)), background_luma),
        shoes=_contrasting(lambda: _colour(rng, split, (0.1, 0.5), (0.1, 0.9)), background_luma),
        skin=_contrasting(lambda: _skin(rng, split), background_luma),
        hair=_colour(rng, split, (0.2, 0.6), (0.08, 0.5)),
    )


def draw_build(rng: np.random.Generator, height: float) -> Build:
    return Build(
        height=height,
        leg=float(rng.uniform(0.47, 0.52)),
        torso=float(rng.uniform(0.27, 0.31)),
        arm=float(rng.uniform(0.33, 0.37)),
        head_radius=float(rng.uniform(0.068, 0.082)),
        limb_radius=float(rng.uniform(0.029, 0.037)),
        torso_radius=float(rng.uniform(0.065, 0.090)),
    )


def draw_background(rng: np.random.Generator, split: str) -> np.ndarray:
    """A wall, a floor and a few soft shapes, all of low contrast, with ``MARGIN`` on each side.

    (S, S, 3) uint8 RGB on the canvas: S = (128 + 2 * MARGIN) * SUPERSAMPLING.
    """
    import cv2

    side = (FRAME_SIZE + 2 * MARGIN) * SUPERSAMPLING
    value = float(rng.uniform(0.30, 0.85))
    wall, floor = (
        255.0 * np.array(colorsys.hsv_to_rgb(draw_hue(rng, split), float(rng.uniform(0.03, 0.22)), v))
        for v in (value, value * float(rng.uniform(0.85, 0.97)))
    )
    rows, columns = np.mgrid[0:side, 0:side] / side
    horizon = float(rng.uniform(0.60, 0.85))
    below = np.clip((rows - horizon) * side / (3.0 * SUPERSAMPLING), 0.0, 1.0)[..., None]  # an edge three pixels wide
    tilt = float(rng.uniform(-14.0, 14.0)) * (columns - 0.5) + float(rng.uniform(-14.0, 14.0)) * (rows - 0.5)
    image = wall * (1.0 - below) + floor * below + tilt[..., None]

    shapes = np.zeros((side, side), np.float32)
    for _ in range(int(rng.integers(2, 6))):
        centre, size = rng.integers(0, side, 2), rng.integers(side // 12, side // 4, 2)
        strength = float(rng.uniform(-13.0, 13.0))
        if rng.random() < 0.5:
            cv2.ellipse(shapes, centre.tolist(), size.tolist(), float(rng.uniform(0, 180)), 0, 360, strength, -1)
        else:
            cv2.rectangle(shapes, (centre - size).tolist(), (centre + size).tolist(), strength, -1)
    texture = cv2.resize(rng.normal(0.0, 3.0, (side // (4 * SUPERSAMPLING),) * 2).astype(np.float32), (side, side))
    image += (cv2.GaussianBlur(shapes, (0, 0), SUPERSAMPLING * float(rng.uniform(0.7, 2.5))) + texture)[..., None]
    return np.clip(np.round(image), 0, 255).astype(np.uint8)


def draw_shake(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """(T, 2) displacement of the camera in pixels, smooth, in whole canvas pixels."""
    seconds = np.arange(num_frames)[:, None] / FRAMES_PER_SECOND
    shake = np.zeros((num_frames, 2))
    for _ in range(2):
        frequency, phase = rng.uniform(0.2, 2.5, 2), rng.uniform(0.0, 2.0 * np.pi, 2)
        shake += np.sin(2.0 * np.pi * frequency * seconds + phase)
    shake *= 0.5 * float(rng.uniform(0.0, SHAKE_PIXELS))
    return np.round(shake * SUPERSAMPLING) / SUPERSAMPLING


def draw_brightness(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """(T,) factor of the exposure: one level a video, and a slow flicker of up to 4 %."""
    seconds = np.arange(num_frames) / FRAMES_PER_SECOND
    flicker = np.sin(2.0 * np.pi * float(rng.uniform(0.1, 1.0)) * seconds + float(rng.uniform(0.0, 2.0 * np.pi)))
    return float(rng.uniform(0.85, 1.1)) * (1.0 + float(rng.uniform(0.0, 0.04)) * flicker)


def luma(colour: np.ndarray | Colour) -> float:
    """Rec. 601 luma of one RGB colour."""
    return float(np.dot(colour, (0.299, 0.587, 0.114)))


def _colour(
    rng: np.random.Generator, split: str, saturation: tuple[float, float], value: tuple[float, float]
) -> Colour:
    rgb = colorsys.hsv_to_rgb(draw_hue(rng, split), float(rng.uniform(*saturation)), float(rng.uniform(*value)))
    return tuple(round(255 * channel) for channel in rgb)


def _skin(rng: np.random.Generator, split: str) -> Colour:
    position = 2 * int(rng.integers(SKIN_TONES // 2)) + (split != "train")
    mix = (position + float(rng.uniform(-0.3, 0.3)) + 0.3) / (SKIN_TONES - 0.4)
    return tuple(np.round(LIGHTEST_SKIN + mix * (DARKEST_SKIN - LIGHTEST_SKIN)).astype(int).tolist())


def _contrasting(draw: Callable[[], Colour], background_luma: float) -> Colour:
    """The first of twenty draws that stands out from the background, else the one that does so most."""
    candidates = [draw()]
    while abs(luma(candidates[-1]) - background_luma) < CONTRAST:
        candidates.append(draw())
        if len(candidates) == 20:
            return max(candidates, key=lambda colour: abs(luma(colour) - background_luma))
    return candidates[-1]
