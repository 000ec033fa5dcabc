"""Time and memory of frame mAP at the size of AVA's validation set, on random detections.

    python -m results.benchmarks.frame_map

There are 57,000 keyframes, 5 boxes each with scores for 60 actions (17.1 million rows). The ground truth has 3 people
with 2 actions each. Keyframes come 8 at a time, as in a run. Scores are float32. Prints one line of JSON.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from datamodules.program_help import ProgramParser
from lightning_modules.metrics.frame_map import FrameMeanAveragePrecision

BATCH = 8
PEOPLE, ACTIONS = 3, 2


def batches(
    keyframes: int, boxes: int, classes: int, generator: torch.Generator
) -> Iterator[tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]]:
    """Return random detections, some near people, some elsewhere; frames of 320 x 240."""
    for start in range(0, keyframes, BATCH):
        preds, targets = [], []
        for _ in range(min(BATCH, keyframes - start)):
            corners = torch.rand(PEOPLE, 2, generator=generator) * 150
            people = torch.cat([corners, corners + 40 + 50 * torch.rand(PEOPLE, 2, generator=generator)], dim=1)
            found = people[torch.randint(PEOPLE, (boxes,), generator=generator)]
            scores = torch.rand(boxes, classes, generator=generator)
            preds.append({"boxes": found + 8 * torch.randn(boxes, 4, generator=generator), "scores": scores})
            labels = torch.randint(classes, (PEOPLE * ACTIONS,), generator=generator)
            targets.append({"boxes": people.repeat_interleave(ACTIONS, dim=0), "labels": labels})
        yield preds, targets


def peak_mib() -> float:
    """The most memory that this process has held so far; ru_maxrss is in KiB on Linux."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(keyframes: int, boxes: int, classes: int, **options: object) -> dict[str, float]:
    """Accumulate and compute once."""
    metric = FrameMeanAveragePrecision(classes, **options)
    before, seconds, cpu_seconds = peak_mib(), [0.0, 0.0], 0.0

    def timed(stage: int, function: Callable[..., object], *arguments: object) -> object:
        nonlocal cpu_seconds
        start, cpu_start = time.perf_counter(), time.process_time()
        result = function(*arguments)
        seconds[stage] += time.perf_counter() - start
        cpu_seconds += time.process_time() - cpu_start
        return result

    for preds, targets in batches(keyframes, boxes, classes, torch.Generator().manual_seed(0)):
        timed(0, metric.update, preds, targets)
    result = timed(1, metric.compute)
    rows = keyframes * boxes * classes
    return {
        "rows": rows,
        "map": float(result["map"]),
        "update_seconds": round(seconds[0], 1),
        "compute_seconds": round(seconds[1], 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "peak_mib": round(peak_mib()),
        "bytes_a_row": round((peak_mib() - before) * 2**20 / rows, 1),
    }


def main() -> None:
    parser = ProgramParser(__doc__, "python -m results.benchmarks.frame_map")
    parser.add_argument("--keyframes", type=int, default=57_000)
    parser.add_argument("--boxes", type=int, default=5)
    parser.add_argument("--classes", type=int, default=60)
    parser.add_argument("--protocol", choices=("ava", "pascal", "act"), default="ava")
    parser.add_argument("--cap", type=int, default=None, help="max_rows_per_frame")
    given = parser.parse_args()
    options = {"protocol": given.protocol, "max_rows_per_frame": given.cap}
    print(json.dumps(measure(given.keyframes, given.boxes, given.classes, **options)))


if __name__ == "__main__":
    main()
