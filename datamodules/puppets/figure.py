"""The puppet's body: capsules around an articulated skeleton, their extent, and how they are painted.

Every part is a capsule: a segment with a radius; the head too. So the extent of the drawn figure is the minimum and the
maximum over segment ends minus and plus the radius. The boxes of a whole video are a few numpy operations.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from datamodules.puppets.actions import Pose

Colour = tuple[int, int, int]

SUPERSAMPLING = 4
"""Canvas pixels a video pixel in each direction."""
SUBPIXEL_BITS = 4
"""Fractional bits of the coordinates that OpenCV draws at."""
PAINTED_EXCESS = 1.5
"""Canvas pixels by which OpenCV's anti-aliased lines of even width come out wider than asked for (odd ones: by 2.4)."""

FAR_SHADE = 0.72
"""The limbs on the far side are darker, so that left and right can be distinguished."""


class Build(NamedTuple):
    """Size and proportions of a puppet. Lengths are fractions of ``height``, which is in pixels of the video."""

    height: float
    leg: float
    """Hip to ankle, half of it thigh."""
    torso: float
    arm: float
    """Shoulder to hand, half of it upper arm."""
    head_radius: float
    limb_radius: float
    torso_radius: float


class Clothes(NamedTuple):
    """RGB colours, 0 to 255."""

    shirt: Colour
    trousers: Colour
    shoes: Colour
    skin: Colour
    hair: Colour


class Figure(NamedTuple):
    """The capsules of a puppet over T frames, S of them in the order in which they are painted."""

    segments: np.ndarray
    """(T, S, 2, 2) float64: both ends, (x, y) in pixels of the video."""
    radii: np.ndarray
    """(S,) float64, in pixels of the video, as they come out on the canvas."""
    line_widths: tuple[int, ...]
    """S even widths, in pixels of the canvas, that paint these radii."""
    colours: tuple[Colour, ...]
    """S of them."""

    def boxes(self) -> np.ndarray:
        """(T, 4) float64: the extent of what is drawn, xyxy in pixels."""
        low = (self.segments.min(axis=2) - self.radii[:, None]).min(axis=1)
        high = (self.segments.max(axis=2) + self.radii[:, None]).max(axis=1)
        return np.concatenate([low, high], axis=1)

    def moved(self, offsets: np.ndarray) -> Figure:
        """The figure shifted by (T, 2) pixels, a shift a frame (or (2,), one for all)."""
        return self._replace(segments=self.segments + np.reshape(offsets, (-1, 1, 1, 2)))


def build_figure(pose: Pose, build: Build, clothes: Clothes, facing: int) -> Figure:
    """Set up the capsules around x = 0, standing on y = 0; ``facing`` is 1 (right) or -1 (left)."""
    height = build.height
    thigh = shin = 0.5 * build.leg * height
    upper_arm = forearm = 0.5 * build.arm * height
    limb = build.limb_radius * height

    # Skeleton from the hip outwards, y downwards, facing right.
    hip = np.zeros((len(pose.torso), 2))
    shoulder = hip - build.torso * height * _direction(pose.torso, mirror=True)
    neck_up = -_direction(pose.head, mirror=True)
    head = shoulder + (0.06 * height + build.head_radius * height) * neck_up
    near_knee = hip + thigh * _direction(pose.near_thigh)
    far_knee = hip + thigh * _direction(pose.far_thigh)
    near_ankle = near_knee + shin * _direction(pose.near_shin)
    far_ankle = far_knee + shin * _direction(pose.far_shin)
    near_toe = near_ankle + 0.085 * height * _direction(pose.near_shin + np.pi / 2)
    far_toe = far_ankle + 0.085 * height * _direction(pose.far_shin + np.pi / 2)
    near_elbow = shoulder + upper_arm * _direction(pose.near_upper_arm)
    far_elbow = shoulder + upper_arm * _direction(pose.far_upper_arm)
    near_hand = near_elbow + forearm * _direction(pose.near_forearm)
    far_hand = far_elbow + forearm * _direction(pose.far_forearm)

    shirt, trousers, shoes, skin, hair = clothes
    backwards = np.stack([neck_up[:, 1], -neck_up[:, 0]], axis=1)  # the face looks the other way
    crown = head + build.head_radius * height * (0.42 * neck_up + 0.38 * backwards)
    parts = [
        (shoulder, far_elbow, limb, _shaded(shirt)),
        (far_elbow, far_hand, 0.85 * limb, _shaded(skin)),
        (far_ankle, far_toe, 0.85 * limb, _shaded(shoes)),
        (hip, far_knee, 1.15 * limb, _shaded(trousers)),
        (far_knee, far_ankle, limb, _shaded(trousers)),
        (shoulder, head, 0.9 * limb, skin),
        (hip, shoulder, build.torso_radius * height, shirt),
        (near_ankle, near_toe, 0.85 * limb, shoes),
        (hip, near_knee, 1.15 * limb, trousers),
        (near_knee, near_ankle, limb, trousers),
        (head, head, build.head_radius * height, skin),
        (crown, crown, 0.72 * build.head_radius * height, hair),
        (shoulder, near_elbow, limb, _shaded(shirt, 0.86)),
        (near_elbow, near_hand, 0.85 * limb, skin),
    ]
    segments = np.stack([np.stack([start, end], axis=1) for start, end, _, _ in parts], axis=1)
    wanted = 2 * SUPERSAMPLING * np.array([radius for _, _, radius, _ in parts]) - PAINTED_EXCESS
    widths = 2 * np.maximum(np.round(0.5 * wanted), 1).astype(int)
    figure = Figure(
        segments,
        radii=(widths + PAINTED_EXCESS) / (2 * SUPERSAMPLING),
        line_widths=tuple(widths.tolist()),
        colours=tuple(colour for _, _, _, colour in parts),
    )

    # The feet stay where they are and the lowest part of the figure stands on the ground.
    feet = 0.5 * (near_ankle[:, 0] + far_ankle[:, 0])
    figure = figure.moved(-np.stack([feet, figure.boxes()[:, 3]], axis=1))
    return figure._replace(segments=figure.segments * np.array([facing, 1.0]))


def _direction(angle: np.ndarray, mirror: bool = False) -> np.ndarray:
    """(T,) -> (T, 2): the unit vector at ``angle`` from straight down, positive to the right (if mirrored, left)."""
    return np.stack([-np.sin(angle) if mirror else np.sin(angle), np.cos(angle)], axis=1)


def _shaded(colour: Colour, factor: float = FAR_SHADE) -> Colour:
    return tuple(round(factor * channel) for channel in colour)


def paint(canvas: np.ndarray, figure: Figure, frame: int) -> None:
    """Draw one frame of the figure onto a canvas (H * SUPERSAMPLING, W * SUPERSAMPLING, 3) uint8."""
    import cv2

    # Pixel i covers [i, i + 1) in box coordinates, while OpenCV puts the centre of a pixel at i.
    canvas_points = figure.segments[frame] * SUPERSAMPLING - 0.5
    points = np.round(canvas_points * (1 << SUBPIXEL_BITS)).astype(np.int32).tolist()
    for (start, end), width, colour in zip(points, figure.line_widths, figure.colours, strict=True):
        cv2.line(canvas, start, end, colour, width, cv2.LINE_AA, SUBPIXEL_BITS)
