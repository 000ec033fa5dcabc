"""Script of one puppet: its action spans, drawn from a random generator.

A puppet has two tracks. The body sits, stands, bends, straightens, walks or runs; the arms rise, sink or wave while the
body stands or moves on foot. Actions are separated by holds without a label, in which the puppet stays as the last
action left it.
"""

from __future__ import annotations

import numpy as np

from datamodules.puppets.actions import CADENCE_HZ, CLASS_NAMES, REVERSED, Span

TRANSITION_FRAMES = (15, 24)
"""0.94 to 1.5 s."""
CYCLE_FRAMES = (24, 48)
"""1.5 to 3 s."""
HOLD_FRAMES = (7, 19)
"""0.44 to 1.19 s; only the first and the last hold of a video may be longer or shorter."""
EDGE_FRAMES = 2
"""Frames without action that every video has at least at either end, so that no action is cut."""

ACTORS_CYCLE = (3, 2, 3, 2, 1, 2, 1, 2)
"""Puppets in the videos of a split, in turn: two on average, and ten in the first four videos, one for each class."""

FOOT, ARMS_FREE = ("walk", "run"), ("raise_arms", "slow_wave", "fast_wave")


def actors_before(video_index: int) -> int:
    """Return the number of puppets in earlier videos: actors_before(5) == 3 + 2 + 3 + 2 + 1."""
    rounds, rest = divmod(video_index, len(ACTORS_CYCLE))
    return rounds * sum(ACTORS_CYCLE) + sum(ACTORS_CYCLE[:rest])


def num_actors(video_index: int) -> int:
    return ACTORS_CYCLE[video_index % len(ACTORS_CYCLE)]


def draw_script(rng: np.random.Generator, num_frames: int, wanted: str) -> tuple[Span, ...]:
    """Spans that fill ``num_frames``, the action ``wanted`` among them.

    With even odds the script is drawn to be read backwards, which swaps the members of the order pairs and keeps all
    else: over many videos the two members of a pair appear equally often, in the same company.
    """
    shortest = CYCLE_FRAMES[0] + 2 * EDGE_FRAMES
    if num_frames < shortest:
        raise ValueError(f"a script needs at least {shortest} frames, got {num_frames}")
    backwards = rng.random() < 0.5
    first = REVERSED.get(wanted, wanted) if backwards else wanted
    spans: list[Span] = []
    seated, bent, raised = first == "stand_up", first == "straighten_up", first == "lower_arms"
    cursor, tries = EDGE_FRAMES, 0
    while tries < 12:
        block = _draw_block(rng, _next_action(rng, seated, bent, raised) if spans else first, raised)
        length = max(span.stop for span in block)
        if cursor + length + EDGE_FRAMES > num_frames:
            tries += bool(spans)  # a shorter action may still fit; the first always does in the end
            continue
        spans += [span._replace(start=cursor + span.start) for span in block]
        for span in block:
            seated = {"sit_down": True, "stand_up": False}.get(span.action, seated)
            bent = {"bend_down": True, "straighten_up": False}.get(span.action, bent)
            raised = {"raise_arms": True, "lower_arms": False}.get(span.action, raised)
        cursor += length + int(rng.integers(HOLD_FRAMES[0], HOLD_FRAMES[1] + 1))
    slack = num_frames - EDGE_FRAMES - max(span.stop for span in spans)
    offset = int(rng.integers(0, slack + 1))
    spans = [span._replace(start=span.start + offset) for span in spans]
    if backwards:
        spans = [reverse(span, num_frames) for span in spans]
    return tuple(sorted(spans, key=lambda span: (span.start, CLASS_NAMES.index(span.action))))


def reverse(span: Span, num_frames: int) -> Span:
    """The span in a video of ``num_frames`` that is played backwards."""
    return span._replace(action=REVERSED.get(span.action, span.action), start=num_frames - span.stop)


def _next_action(rng: np.random.Generator, seated: bool, bent: bool, raised: bool) -> str:
    if seated:
        return "stand_up"
    if bent:
        return "straighten_up"
    on_foot = str(rng.choice(FOOT))
    if raised:
        return "lower_arms" if rng.random() < 0.7 else on_foot
    return str(rng.choice(["sit_down", "bend_down", "raise_arms", on_foot, str(rng.choice(ARMS_FREE[1:]))]))


def _draw_block(rng: np.random.Generator, action: str, raised: bool) -> list[Span]:
    """Draw one action, or a walk or run with an action of the arms beside it, at most half a second apart."""
    block = [_draw_span(rng, action, 0)]
    if action in FOOT and rng.random() < 0.7:
        arms = "lower_arms" if raised else str(rng.choice(ARMS_FREE))
        late = int(rng.integers(-8, 9))
        block = [block[0]._replace(start=max(-late, 0)), _draw_span(rng, arms, max(late, 0))]
    return block


def _draw_span(rng: np.random.Generator, action: str, start: int) -> Span:
    if action not in CADENCE_HZ:
        return Span(action, start, int(rng.integers(TRANSITION_FRAMES[0], TRANSITION_FRAMES[1] + 1)))
    length = int(rng.integers(CYCLE_FRAMES[0], CYCLE_FRAMES[1] + 1))
    return Span(action, start, length, float(rng.uniform(*CADENCE_HZ[action])), float(rng.uniform(0.0, 2.0 * np.pi)))
