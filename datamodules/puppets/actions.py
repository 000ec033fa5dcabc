"""Actions of a puppet: the ten classes, and the poses each of them runs through.

A pose is a function of a few controls (how far seated, how far bent, the phase of the gait, ...), never of the class.
The members of an *order pair* drive one control along the same law in opposite directions. Those of a *speed pair*
drive one phase at different cadences. So a single frame cannot tell the members of a pair apart, and time can.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

FRAMES_PER_SECOND = 16

CLASS_NAMES = (
    "sit_down",
    "stand_up",
    "bend_down",
    "straighten_up",
    "raise_arms",
    "lower_arms",
    "walk",
    "run",
    "slow_wave",
    "fast_wave",
)
ORDER_PAIRS = (("sit_down", "stand_up"), ("bend_down", "straighten_up"), ("raise_arms", "lower_arms"))
SPEED_PAIRS = (("walk", "run"), ("slow_wave", "fast_wave"))

CADENCE_HZ = {"walk": (0.9, 1.1), "run": (2.0, 2.4), "slow_wave": (0.8, 1.0), "fast_wave": (2.0, 2.4)}
"""Range of the full cycles per second. The ranges of a pair are about an octave apart, with nothing between."""

REVERSED = {a: b for pair in ORDER_PAIRS for a, b in (pair, pair[::-1])}
"""Action that results when time runs backwards; the cyclic actions stay as they are."""

RAMP_FRAMES = 3
"""Frames in which a gait or a wave starts from rest and returns to it; the same for the slow and the fast member."""


class Span(NamedTuple):
    """One action of one puppet, from frame ``start`` for ``length`` frames."""

    action: str
    start: int
    length: int
    cadence_hz: float = 0.0
    """Cycles a second, of a gait or a wave."""
    phase: float = 0.0
    """Phase of the cycle at ``start``, in radians."""

    @property
    def stop(self) -> int:
        return self.start + self.length


class Controls(NamedTuple):
    """The state of a puppet over T frames: (T,) float64 each; all but the phases run from 0 to 1."""

    seated: np.ndarray
    bent: np.ndarray
    raised: np.ndarray
    gait: np.ndarray
    gait_phase: np.ndarray
    wave: np.ndarray
    wave_phase: np.ndarray


class Pose(NamedTuple):
    """Directions of the limbs over T frames, (T,) float64 each, in radians.

    Limbs are measured from straight down, torso and head from straight up, positive towards where the puppet faces.
    """

    torso: np.ndarray
    head: np.ndarray
    near_thigh: np.ndarray
    near_shin: np.ndarray
    far_thigh: np.ndarray
    far_shin: np.ndarray
    near_upper_arm: np.ndarray
    near_forearm: np.ndarray
    far_upper_arm: np.ndarray
    far_forearm: np.ndarray


def transition(length: int) -> np.ndarray:
    """(length,) progress of a movement from 0 to 1, strictly inside: ``transition(n)[::-1] == 1 - transition(n)``.

    Half linear, half smooth step: soft at both ends, yet moving from the first labelled frame on.
    """
    u = (np.arange(length) + 0.5) / length
    return 0.5 * u + 0.5 * u * u * (3.0 - 2.0 * u)


def ramp(length: int) -> np.ndarray:
    """(length,) weight of a cyclic movement: up in ``RAMP_FRAMES``, 1, and down again."""
    from_edge = np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1))
    return np.minimum(from_edge / (RAMP_FRAMES + 1), 1.0)


def controls(spans: Iterable[Span], num_frames: int) -> Controls:
    """The controls of a puppet that does ``spans`` and in between holds the state the last one left it in."""
    spans = sorted(spans, key=lambda span: span.start)
    gait, gait_phase = _cycle(spans, ("walk", "run"), num_frames)
    wave, wave_phase = _cycle(spans, ("slow_wave", "fast_wave"), num_frames)
    return Controls(
        seated=_progress(spans, "sit_down", "stand_up", num_frames),
        bent=_progress(spans, "bend_down", "straighten_up", num_frames),
        raised=_progress(spans, "raise_arms", "lower_arms", num_frames),
        gait=gait,
        gait_phase=gait_phase,
        wave=wave,
        wave_phase=wave_phase,
    )


def _progress(spans: list[Span], forth: str, back: str, num_frames: int) -> np.ndarray:
    value = np.zeros(num_frames)
    relevant = [span for span in spans if span.action in (forth, back)]
    if relevant and relevant[0].action == back:  # those who get up first were seated from the start
        value[: relevant[0].start] = 1.0
    for span in relevant:
        law = transition(span.length)
        value[span.start : span.stop] = law if span.action == forth else law[::-1]
        value[span.stop :] = float(span.action == forth)
    return value


def _cycle(spans: list[Span], actions: tuple[str, str], num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    weight, phase = np.zeros(num_frames), np.zeros(num_frames)
    for span in spans:
        if span.action in actions:
            inside = slice(span.start, span.stop)
            weight[inside] = ramp(span.length)
            seconds = np.arange(span.length) / FRAMES_PER_SECOND
            phase[inside] = span.phase + 2.0 * np.pi * span.cadence_hz * seconds
    return weight, phase


def pose(state: Controls) -> Pose:
    """The pose that belongs to each frame's controls; a pure function of them, frame by frame."""
    seated, bent, raised = state.seated, state.bent, state.raised
    swing = state.gait * np.sin(state.gait_phase)
    # A leg flexes its knee while it swings forward: the near one as its angle grows, the far one half a cycle later.
    near_flexed = state.gait * (0.12 + 0.85 * np.maximum(np.cos(state.gait_phase), 0.0))
    far_flexed = state.gait * (0.12 + 0.85 * np.maximum(-np.cos(state.gait_phase), 0.0))

    # Sitting: thighs forward, shins upright, a nod of the torso on the way. Bending: hips back, torso horizontal.
    torso = 0.06 * state.gait + 0.10 * seated + 0.40 * np.sin(np.pi * seated) + 1.65 * bent
    thigh = 1.50 * seated - 0.16 * bent
    shin = -0.05 * seated - 0.16 * bent
    near_thigh, far_thigh = thigh + 0.62 * swing, thigh - 0.62 * swing

    # Arms hang, rest on the thighs of who sits, swing against the legs; raised, they pass the front and end overhead.
    rest_upper = 0.06 + 0.55 * seated
    rest_fore = 0.14 + 1.05 * seated + 0.35 * state.gait
    near_upper = rest_upper - 0.60 * swing
    far_upper = rest_upper + 0.60 * swing
    near_fore, far_fore = near_upper + rest_fore - rest_upper, far_upper + rest_fore - rest_upper
    waving = 2.75 + 0.75 * np.sin(state.wave_phase)
    return Pose(
        torso=torso,
        head=0.85 * torso,
        near_thigh=near_thigh,
        near_shin=near_thigh - thigh + shin - near_flexed,
        far_thigh=far_thigh,
        far_shin=far_thigh - thigh + shin - far_flexed,
        near_upper_arm=_blend(_blend(near_upper, 2.75, raised), 1.80, state.wave),
        near_forearm=_blend(_blend(near_fore, 2.75, raised), waving, state.wave),
        far_upper_arm=_blend(far_upper, 3.10, raised),
        far_forearm=_blend(far_fore, 3.10, raised),
    )


def _blend(rest: np.ndarray, target: np.ndarray | float, weight: np.ndarray) -> np.ndarray:
    return rest + weight * (target - rest)
