"""Open an exported student: in the runtime that was asked for, or in the fastest of those installed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import numpy as np

from datamodules.errors import UserError

from ..networks.detection.export_graphs import FRAMES, NEXT
from ..networks.weights.pretrained import require_streaming
from .detector import ExportedDetector
from .exported_file import SUFFIX, ExportedStep, read_exported_step
from .sessions import RUNTIMES, Run, Runtime, installed, open_session, require_installed

RuntimeChoice = Literal["torch", "onnx", "openvino"]
WARMUP, ROUNDS = 2, 5
"""Steps that runtimes are compared over: of each untimed, then timed in turn."""


def require_fits(runtime: RuntimeChoice | None, path: Path) -> None:
    """Refuse a runtime that cannot run such a file.

    Raises:
        UserError: with what to do instead.
    """
    if path.suffix == SUFFIX:
        if runtime == "torch":
            raise UserError("an exported file does not run in torch", path, "name the weights, or leave runtime out")
        if runtime is not None:
            require_installed(runtime)
    elif runtime not in (None, "torch"):
        raise UserError(
            f"weights run in torch, not in {runtime}",
            where=path,
            remedy=f"write them with python main.py export --config=C --ckpt_path={path}, and name that file",
        )


class ExportedStudent(ExportedDetector):
    """A student's exported file, open in the runtime that was asked for, or in the fastest of those installed.

    Args:
        file: what ``python main.py export`` wrote of a student, an ONNX file; it says all else by itself.
        runtime: what runs it; by default the faster of those installed, by a few steps of each.
        num_classes: K of the data, which must be that of the file; not compared by default.

    Raises:
        UserError: no such file, no student's, a runtime that is missing, one that cannot read it, or other classes.
    """

    def __init__(self, file: str, runtime: Runtime | None = None, num_classes: int | None = None) -> None:
        path = Path(file)
        step = read_exported_step(path)
        require_streaming(step.card, path)
        known = len(step.card.classes)
        if num_classes not in (None, known):
            raise UserError(f"has {known} classes but the data has {num_classes}", where=path)
        if runtime is not None:
            run, why = open_session(path, runtime), "as asked for"
        else:
            runtime, run, why = _fastest(path, step)
        look_ahead = step.card.look_ahead
        super().__init__(run, known, step.image_size, step.score, step.initial_state, look_ahead, step.batch_size)
        self.card, self.runtime = step.card, runtime
        self.choice = f"{path.name} ({step.precision}) runs in {runtime}: {why}"
        """Says which runtime was chosen, and why."""


def _fastest(path: Path, step: ExportedStep) -> tuple[Runtime, Run, str]:
    """Return the fastest runtime that is installed, its call, and why it is chosen."""
    runs: dict[Runtime, Run] = {}
    refusals: list[UserError] = []
    for runtime in installed():
        try:
            runs[runtime] = open_session(path, runtime)
        except UserError as error:  # not every runtime knows every operator of a quantised file
            refusals.append(error)
    if not runs:
        require_installed(RUNTIMES[0])
        raise refusals[0]
    if len(runs) == 1:
        ((runtime, run),) = runs.items()
        return runtime, run, "no other that is installed can read it" if refusals else "no other is installed"
    times: dict[Runtime, list[float]] = {runtime: [] for runtime in runs}
    lanes = step.batch_size or 1
    frames = np.zeros((lanes, *step.image_size, 3), np.uint8)
    start = {name: np.repeat(value, lanes, axis=0) for name, value in step.initial_state.items()}
    states = dict.fromkeys(runs, start)
    for number in range(WARMUP + ROUNDS):
        for runtime, run in runs.items():
            begun = time.perf_counter()
            outputs = run({FRAMES: frames, **states[runtime]})
            if number >= WARMUP:
                times[runtime].append(time.perf_counter() - begun)
            states[runtime] = {name: outputs[NEXT + name] for name in start}
    medians = {runtime: float(np.median(taken)) for runtime, taken in times.items()}
    chosen = min(medians, key=lambda runtime: medians[runtime])
    said = ", ".join(f"{1e3 * seconds:.1f} ms a step in {runtime}" for runtime, seconds in medians.items())
    return chosen, runs[chosen], said
