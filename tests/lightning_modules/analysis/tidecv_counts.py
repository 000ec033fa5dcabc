"""Count errors with TIDE itself (``tidecv``), and write the counts that our own are compared with.

::

    pip install --no-deps tidecv==1.0.1
    pip install appdirs pandas pycocotools seaborn
    python -m tests.lightning_modules.analysis.tidecv_counts

``tidecv`` is in no extra: it asks for opencv-python, which needs a display's libraries and shares its folder with the
opencv-python-headless that albumentations brings. Without its own dependencies it takes the one that is there. The
record was written by tidecv 1.0.1, and is the same with every numpy: the problems come from ``RandomState``.
"""

from __future__ import annotations

import json
from pathlib import Path

from lightning_modules.metrics.frame_ap import FrameRows
from tests.lightning_modules.analysis.problems import NUM_FRAMES, random_rows

RECORD = Path(__file__).with_suffix(".json")
PROBLEMS = 50


def counted_by_tide(preds: FrameRows, targets: FrameRows) -> dict[str, int]:
    """Return how many errors TIDE finds of each kind, by its short names.

    Boxes get one pixel more: TIDE's are continuous, those of ``act`` end with their last pixel. Both let a row whose
    best box is taken try the next one.
    """
    from tidecv import TIDE, Data

    truth, found = Data("truth"), Data("found", max_dets=1000)
    for data, rows in ((truth, targets), (found, preds)):
        for owner, action, score in zip(rows.owners, rows.classes, rows.scores, strict=True):
            left, top, right, bottom = rows.boxes[owner].tolist()
            box, frame = [left, top, right - left + 1, bottom - top + 1], int(rows.frames[owner])
            if data is truth:
                data.add_ground_truth(frame, int(action), box)
            else:
                data.add_detection(frame, int(action), float(score), box)
    for frame in range(NUM_FRAMES):
        truth.add_image(frame, str(frame))
    run = TIDE().evaluate(truth, found, mode=TIDE.BOX)
    return {error.short_name: count for error, count in run.count_errors().items()}


def record() -> str:
    """Return the counts of all problems as they are stored: a line of JSON each."""
    lines = [json.dumps(counted_by_tide(*random_rows(seed))) for seed in range(PROBLEMS)]
    return "[" + ",\n ".join(lines) + "]\n"


if __name__ == "__main__":
    RECORD.write_text(record())
