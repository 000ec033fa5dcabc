"""Run an exported graph beside PyTorch, and measure how far their detections differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from datamodules.errors import UserError

from ..networks.detection.export_graphs import DETECTIONS, FRAMES, NEXT, ClipGraph, ExportGraph
from ..runtimes.sessions import Run, open_session


class Parity(NamedTuple):
    """Largest absolute differences of what an exported graph gives from what PyTorch gives."""

    boxes: float
    """Difference of a corner, as a fraction of the frame's width (of x) or height (of y)."""
    boxes_pixels: float
    """Difference of a corner, in pixels of the frame."""
    person_scores: float
    action_scores: float

    def __str__(self) -> str:
        return (
            f"{self.boxes:.1e} of the frame's side in boxes ({self.boxes_pixels:.1e} pixels), "
            f"{self.person_scores:.1e} in person scores, {self.action_scores:.1e} in action scores"
        )


def look_ahead(graph: ExportGraph) -> int:
    """Steps that the detections come late: those of step t are about frame t - look_ahead."""
    return getattr(graph.network, "look_ahead", 0)


def load(path: Path) -> Run:
    """An exported file, ready to run on as many threads as PyTorch has."""
    if path.suffix == ".pt2":
        return run_torch(torch.export.load(path).module())
    return open_session(path)


def run_torch(call: Callable[..., Any]) -> Run:
    """A graph, or a loaded ``pt2``, as it is called by name."""

    @torch.no_grad()
    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        state = {name: torch.from_numpy(value) for name, value in inputs.items()}
        frames = state.pop(FRAMES)
        detections, after = call(frames, state) if state else (call(frames), {})  # a clip has no state
        after = {NEXT + name: value for name, value in after.items()}
        return {name: value.numpy() for name, value in (detections | after).items()}

    return run


def first_inputs(graph: ExportGraph) -> dict[str, np.ndarray]:
    """The inputs of a call with one stream (clip) that begins."""
    frames = torch.zeros(1, *graph.frame_dims, dtype=torch.uint8)
    return {name: value.numpy() for name, value in {FRAMES: frames, **graph.initial_state(1)}.items()}


def measure_parity(graph: ExportGraph, exported: Run, frames: np.ndarray, lanes: int, steps: int) -> Parity:
    """PyTorch's graph and an exported one, see ``side_by_side``."""
    height, width = graph.image_size
    largest = np.zeros(4)
    for own, other in side_by_side(graph, (run_torch(graph), exported), frames, lanes, steps, "PyTorch"):
        boxes, persons, actions = (np.abs(own[name] - other[name]) for name in DETECTIONS)
        fractions = boxes / [width, height, width, height]
        # ``maximum`` hands NaN on.
        largest = np.maximum(largest, [part.max() for part in (fractions, boxes, persons, actions)])
    return Parity(*largest.tolist())


def side_by_side(
    graph: ExportGraph, sides: tuple[Run, Run], frames: np.ndarray, lanes: int, steps: int, first: str
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Yield outputs of two graphs over ``steps`` consecutive frames, or clips that move on by a frame.

    Each side has its own state. Every further stream of a batch is some frames ahead of the one before. Detections that
    come late are waited for: those of the first ``look_ahead`` steps are about no frame.

    Args:
        graph: what both were made of.
        sides: one call of each.
        frames: uint8 (N, H, W, 3), from the start again where there are fewer than ``steps``.
        lanes: streams (clips) a call.
        steps: frames.
        first: name of the first side, for the progress bar.
    """
    start = {name: value.numpy() for name, value in graph.initial_state(lanes).items()}
    states = [start, start]
    clip = np.arange(graph.frame_dims[0]) if isinstance(graph, ClipGraph) else np.zeros((), int)
    ahead = np.arange(lanes).reshape(-1, *[1] * clip.ndim) * 7
    for step in tqdm(range(steps + look_ahead(graph)), desc=f"comparing with {first}", unit="frame", leave=False):
        batch = frames[(step + ahead + clip) % len(frames)]
        own, other = (run({FRAMES: batch, **state}) for run, state in zip(sides, states, strict=True))
        states = [{name: output[NEXT + name] for name in start} for output in (own, other)]
        yield own, other


def require_parity(parity: Parity, box_tolerance: float, score_tolerance: float, steps: int) -> None:
    """Refuse differences beyond a fraction of the frame's side in boxes, or beyond a difference of scores.

    Raises:
        UserError: with the differences, and what may be done.
    """
    limits = Parity(box_tolerance, float("inf"), score_tolerance, score_tolerance)
    # Not the other way round: NaN is no agreement.
    if not all(difference <= limit for difference, limit in zip(parity, limits, strict=True)):
        raise UserError(
            f"the exported graph differs from PyTorch by up to {parity} over {steps} frames, more than "
            f"box_tolerance={box_tolerance:g} or score_tolerance={score_tolerance:g}; nothing was written",
            remedy="allow more where it is rounding; scores that differ by a hundredth or boxes by pixels are another "
            "function: please report it with the config",
        )


def moving_blobs(num_frames: int, image_size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Bright ellipses that wander over a smooth random background: uint8 (N, H, W, 3), alike for equal seeds."""
    generator = torch.Generator().manual_seed(seed)
    height, width = image_size
    coarse = torch.rand(1, 3, 6, 6, generator=generator) * 160
    background = torch.nn.functional.interpolate(coarse, image_size, mode="bilinear")[0].permute(1, 2, 0)
    rows, columns = (torch.arange(side)[:, None] / side for side in (height, width))
    colours = torch.rand(4, 3, generator=generator) * 255
    speeds, phases = (torch.rand(4, 2, generator=generator) * most for most in (0.2, 6.0))
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for number in range(num_frames):
        centres = 0.5 + 0.4 * torch.sin(number * speeds + phases)
        frame = background.clone()
        for (y, x), colour in zip(centres, colours, strict=True):
            frame[((rows - y) / 0.25) ** 2 + ((columns.T - x) / 0.1) ** 2 < 1] = colour
        frames[number] = frame.to(torch.uint8).numpy()
    return frames
