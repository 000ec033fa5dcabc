"""One process of a distributed run: runs command lines one after the other and writes what they found.

    python tests/ddp_worker.py <jobs.json> <results.json>

``jobs.json`` holds lists of arguments of ``main.py``; ``results.json`` gets a dict of logged numbers for each, written
by the first process. Rank and world size come from the environment, as torchrun sets them.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch.distributed as dist

from main import main


def run(jobs: Path, results: Path) -> None:
    found = []
    for arguments in json.loads(jobs.read_text()):
        cli = main(arguments)
        numbers = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
        for callback in cli.trainer.callbacks:
            if type(callback).__name__ == "Results":
                numbers["num_frames"] = int(callback.result["num_frames"])
        found.append(numbers | {"world_size": cli.trainer.world_size})
    if os.environ["RANK"] == "0":
        results.write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    run(*map(Path, sys.argv[1:]))
