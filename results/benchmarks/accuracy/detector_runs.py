"""Detectors by name: the commands that save their predictions and time them, and the results."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from callbacks.benchmark.provenance import device_name
from datamodules.errors import UserError
from lightning_modules.metrics.streaming_map import Schedule
from results.experiments.files import last_values, versions

COMMAND = (sys.executable, str(Path(__file__).parents[3] / "main.py"))
FOLDER = Path("runs/streaming_accuracy")
"""A folder per detector: ``predictions.csv``, the exported file, the output of its commands."""
EXPORTED = ("--model=ExportedDetectionModule", "--model.network=ExportedStudent", "--data.lanes=1")
SAVED = ("--trainer.callbacks=[]", "--trainer.callbacks+=DetectionFile")
TIMED = ("--trainer.callbacks+=LatencyMonitor", "--trainer.callbacks.repeats=50", "--trainer.limit_val_batches=1.0")


@dataclass(frozen=True)
class Detector:
    """One detector: a line of the picture.

    What is not given is taken from a run of ``validate``; with ``predictions`` and ``latency_ms`` there is none.
    """

    name: str
    config: str | None = None
    """Config of the experiment whose network it is."""
    arguments: str = ""
    """Further arguments for it: network, weights."""
    export: str | None = None
    """Arguments of ``export``, such as ``--quantize int8``; the exported file is validated then."""
    predictions: str | None = None
    """A csv that ``DetectionFile``, or another program, has saved."""
    latency_ms: float | None = None
    frames_awaited: int | None = None
    """Sampled frames after its own that a prediction waits for."""
    schedule: Schedule | None = None
    """Rule that chooses the frames that get a prediction, see ``lightning_modules.metrics.streaming_map``."""
    note: str = ""
    """Origin of the latency."""

    @property
    def folder(self) -> Path:
        """Return the folder of its files."""
        return FOLDER / "".join(letter if letter.isalnum() else "_" for letter in self.name)

    def as_given(self) -> dict[str, Any]:
        """Return what the list says about it; a note changes no figure."""
        return {key: value for key, value in asdict(self).items() if value not in (None, "") and key != "note"}

    def needs_a_run(self) -> bool:
        """Return whether predictions or their time are missing."""
        return self.predictions is None or self.latency_ms is None


def check(detector: Detector) -> None:
    """Refuse a line that can neither be run nor read.

    Raises:
        UserError: with the key that is missing.
    """
    if detector.needs_a_run() and detector.config is None:
        raise UserError(
            "has no config to run, and predictions or latency_ms are missing",
            where=detector.name,
            remedy="give config and arguments, or both predictions and latency_ms",
        )


def completed(detector: Detector, arguments: str = "", command: Sequence[str] = COMMAND) -> Detector:
    """Return the detector with predictions, latency, delay and schedule, from runs of the command line.

    Args:
        detector: as the list has it; what it says itself stays.
        arguments: arguments of the data, for all detectors.
        command: what stands before the arguments.
    """
    check(detector)
    if not detector.needs_a_run():
        return replace(detector, frames_awaited=detector.frames_awaited or 0, schedule=detector.schedule or "newest")
    own, common = shlex.split(detector.arguments), shlex.split(arguments)
    folder, begin = detector.folder, [f"--config={detector.config}", *common]
    if detector.export is not None:
        exported = folder / "exported.onnx"
        given = ["export", *begin, *own, *shlex.split(detector.export), f"--output={exported}"]
        call(command, given, folder / "export.log")
        own = [*EXPORTED, f"--model.network.file={exported}"]
    predictions, name = folder / "predictions.csv", folder.relative_to("runs") / "run"
    saved = [*SAVED, f"--trainer.callbacks.path={predictions}", *TIMED, f"--name={name}"]
    before = versions(folder / "run")
    call(command, ["validate", *begin, *own, *saved], folder / "validate.log")
    (made,) = (version for version in versions(folder / "run") if version not in before)
    figures = last_values(made / "metrics.csv")
    measured = f"{device_name(torch.device('cpu'))}, {torch.get_num_threads()} threads."
    return replace(
        detector,
        predictions=detector.predictions or str(predictions),
        latency_ms=_first(detector.latency_ms, figures["cost/latency_p50_ms"]),
        frames_awaited=_first(detector.frames_awaited, int(figures.get("cost/delay_frames") or 0)),
        schedule=detector.schedule or ("every" if figures["cost/state_mib"] else "newest"),
        note=detector.note or (measured if detector.latency_ms is None else ""),
    )


def call(command: Sequence[str], arguments: Sequence[str], log: Path) -> None:
    """Run one command to its end, its output shown and kept.

    Raises:
        UserError: it failed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"$ {shlex.join(['python', 'main.py', *arguments])}", flush=True)
    with log.open("wb") as output:
        status = subprocess.run([*command, *arguments], stdout=output, stderr=subprocess.STDOUT).returncode
    if status != 0:
        lines = log.read_text(errors="replace").rstrip().splitlines() or [""]
        raise UserError(f"{arguments[0]} ended with status {status}: {lines[-1]}", where=log)


def _first(given: Any, found: Any) -> Any:
    return found if given is None else given
