"""A part measured in a process of its own, so that neither a hang nor an error of the device ends the benchmark.

Light to import, since a spawned process begins with it.
"""

from __future__ import annotations

import multiprocessing
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from callbacks.benchmark.provenance import device_name

Row = dict[str, Any]


class Settings(NamedTuple):
    """Device, size and extent of a measurement."""

    device: str
    size: str
    """``vit_b``, or ``tiny`` for the shipped networks of the demo alone."""
    rounds: int
    """Timed calls of a step, at most."""


Measure = Callable[[Settings], Iterator[Row]]


def machine(device: torch.device) -> Row:
    """Return what a figure depends on beside the code."""
    found: Row = {
        "part": "machine",
        "device": device_name(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "memory_gib": properties.total_memory / 2**30,
            "capability": f"{properties.major}.{properties.minor}",
            "processor": device_name(torch.device("cpu")),
        }
    return found


def run_part(measure: Measure, settings: Settings, into: Connection) -> None:
    """Send the machine, then each row as it is measured: in the part's own process."""
    device = torch.device(settings.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    into.send(machine(device))
    for row in measure(settings):
        into.send(row)
    into.send(None)


def rows_until(
    measure: Measure, settings: Settings, deadline: float, part: str, clock: Callable[[], float] = time.monotonic
) -> Iterator[Row | None]:
    """Yield rows of a part as they come in, at most until ``deadline`` (of the clock); None about once per second.

    The last row says so where a part was cut short: by the deadline, or by an error that ended its process.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run_part, args=(measure, settings, sender))
    process.start()
    sender.close()
    try:
        while (left := deadline - clock()) > 0:
            if not receiver.poll(min(left, 1.0)):
                yield None
                continue
            try:
                row: Any = receiver.recv()
            except EOFError:
                process.join()
                yield {"part": part, "ended": f"its process ended with status {process.exitcode}"}
                return
            if row is None:
                return
            yield row
        yield {"part": part, "ended": "its time was over"}
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.join()
        receiver.close()
