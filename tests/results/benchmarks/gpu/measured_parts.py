"""Parts of the GPU benchmark that end in other ways than by themselves; spawned processes import them from here."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from results.benchmarks.gpu.processes import Row, Settings


def short(settings: Settings) -> Iterator[Row]:
    yield {"part": "steps", "network": settings.size, "form": "float32"}


def hanging(settings: Settings) -> Iterator[Row]:
    yield from short(settings)
    time.sleep(600)


def dying(settings: Settings) -> Iterator[Row]:
    yield from short(settings)
    os._exit(3)
