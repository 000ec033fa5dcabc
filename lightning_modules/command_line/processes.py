"""Errors of a run of several processes: one of them reports, the others end without a word."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lightning.pytorch import Trainer

from datamodules.errors import UserError

GRACE_SECONDS = 10.0
"""Time in which a process waits for the first one, which may have met the same error, to end it."""
PEER_LOST = re.compile(r"Connection (closed|reset)|[Bb]roken pipe|recvValue failed|failed to recv|NCCL.*remote process")


@contextmanager
def one_report(trainer: Trainer) -> Iterator[None]:
    """Let one process report what ended a run: the first, or the one that alone has met an error.

    The first process ends the others as soon as it has an error of its own. The others wait for that before they
    report theirs.
    """
    try:
        yield
    except Exception as error:
        lost = not isinstance(error, UserError) and PEER_LOST.search(str(error)) is not None
        if trainer.global_rank > 0:
            time.sleep(GRACE_SECONDS)
            time.sleep(GRACE_SECONDS)
            if lost:
                sys.exit(1)
            print(file=sys.stderr)  # below the progress bar of the first process
            raise
        processes: Sequence[subprocess.Popen] = getattr(trainer.strategy.launcher, "procs", ())
        ended = _first_to_end(processes) if lost else None
        for process in processes:
            process.kill()
            process.wait()
        if ended is None:
            raise
        if ended > 0:
            sys.exit(ended)  # it has reported
        raise UserError(
            f"a process of this run was ended by {signal.Signals(-ended).name}", remedy="see if memory ran out"
        ) from error


def _first_to_end(processes: Sequence[subprocess.Popen]) -> int | None:
    """The exit status of a process that ends by itself within the time that it may wait, None where none does."""
    until = time.monotonic() + 2 * GRACE_SECONDS
    while processes and time.monotonic() < until:
        if ended := [process.returncode for process in processes if process.poll()]:
            return ended[0]
        time.sleep(0.1)
    return None
