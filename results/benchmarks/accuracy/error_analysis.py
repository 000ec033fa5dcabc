"""Time and memory of ``main.py analyse`` at the size of AVA's validation set, on random detections in a csv.

    python -m results.benchmarks.accuracy.error_analysis

There are 57,000 keyframes, 5 boxes each with scores for 60 actions (17.1 million rows). The ground truth has 3 people
with 2 actions each, whose speed and times are known, as in AVA. Prints one line of JSON; seconds are those of the
processor, beside those of a clock. ``--keyframes`` makes it smaller: all but a constant part grows with the rows.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np

from datamodules.batches import TrueKeyframe
from datamodules.program_help import ProgramParser
from lightning_modules.analysis.of_boxes import TrueBoxes, analyse_boxes
from lightning_modules.analysis.pages import as_html
from lightning_modules.analysis.properties import PeopleOfFrame, box_properties
from lightning_modules.analysis.report import error_page
from lightning_modules.commands.score_boxes import rows_of_file
from lightning_modules.metrics.frame_ap import FrameMapSettings
from results.benchmarks.frame_map import peak_mib

PEOPLE, ACTIONS, BOXES, CLASSES = 3, 2, 5, 60
SIZE = (240, 320)
FRAMES_OF_VIDEO = 897
"""Annotated frames in a film of AVA."""


def write(path: Path, keyframes: int) -> list[TrueKeyframe]:
    """Write detections near people, whose actions score higher than others; return the ground truth."""
    random = np.random.default_rng(0)
    scale = np.tile(SIZE[::-1], 2)
    truth = []
    with path.open("w") as file:
        for frame in range(keyframes):
            corners = random.uniform(0, 150, (PEOPLE, 2))
            people = np.concatenate([corners, corners + random.uniform(40, 90, (PEOPLE, 2))], axis=1)
            labels = np.zeros((PEOPLE, CLASSES), np.uint8)
            labels[np.repeat(np.arange(PEOPLE), ACTIONS), random.integers(0, CLASSES, PEOPLE * ACTIONS)] = 1
            whose = random.integers(0, PEOPLE, BOXES)
            boxes = (people[whose] + random.normal(0, 8, (BOXES, 4))) / scale
            scores = 0.7 * random.random((BOXES, CLASSES)) ** 4 + 0.3 * labels[whose]
            video, seconds = divmod(frame, FRAMES_OF_VIDEO)
            name = f"film_{video},{902 + seconds}"
            truth.append(TrueKeyframe(f"film_{video}", 902.0 + seconds, people.astype(np.float32), labels, SIZE))
            for box, of_box in zip(boxes, scores, strict=True):
                place = f"{name},{box[0]:.6f},{box[1]:.6f},{box[2]:.6f},{box[3]:.6f}"
                file.writelines(f"{place},{action},{score:.6f}\n" for action, score in enumerate(of_box, start=1))
    return truth


def people(truth: list[TrueKeyframe]) -> list[PeopleOfFrame]:
    """Return the people of each keyframe, with random speeds and times."""
    random = np.random.default_rng(1)
    return [
        PeopleOfFrame(
            one.boxes,
            one.original_size,
            random.random(len(one.boxes)),
            random.uniform(0, 4, one.labels.shape),
            random.uniform(0, 4, one.labels.shape),
        )
        for one in truth
    ]


def measure(keyframes: int) -> dict[str, object]:
    """Analyse one file; the time of each step."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "predictions.csv"
        truth = write(file, keyframes)
        before = peak_mib()
        steps: dict[str, float] = {}
        last = [time.process_time()]

        def step(name: str) -> None:
            now = time.process_time()
            steps[name], last[0] = round(now - last[0], 1), now

        last[0] = time.process_time()
        begin, clock = time.process_time(), time.perf_counter()
        preds, targets, places = rows_of_file(file, truth, CLASSES, np.arange(CLASSES), 0.01)
        step("reading")
        frames = people(truth)
        true = TrueBoxes(
            truth,
            targets,
            box_properties(frames, places),
            [f"action {index}" for index in range(CLASSES)],
            lambda video, seconds: np.zeros((*SIZE, 3), np.uint8),
        )
        step("properties of the ground truth")
        settings = FrameMapSettings()
        summary, pictures = analyse_boxes("random", preds, true, settings, str(settings), 20, step)
        page = as_html(error_page("Errors", [summary], true.class_names, [], ""))
        step("page")
    return {
        "keyframes": keyframes,
        "rows": summary.num_rows,
        "map": round(summary.mean_ap, 4),
        "pictures": len(pictures),
        "page_mib": round(len(page) / 2**20, 1),
        "seconds": round(time.process_time() - begin, 1),
        "clock_seconds": round(time.perf_counter() - clock, 1),
        "steps": steps,
        "peak_mib_before": round(before),
        "peak_mib": round(peak_mib()),
    }


def main() -> None:
    parser = ProgramParser(__doc__, "python -m results.benchmarks.accuracy.error_analysis")
    parser.add_argument("--keyframes", type=int, default=57_000)
    print(json.dumps(measure(parser.parse_args().keyframes)))


if __name__ == "__main__":
    main()
