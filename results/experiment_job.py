"""A run being worked on: training, then its test, a process each, with their output in logs."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from .experiment_run import Run, RunFailed

TAIL_LINES = 20
TOLD_TO_STOP = b"Received SIGTERM"
"""What Lightning says when it is; it then ends with status 0, as if it had come to its end."""


class Job:
    """One run in progress. ``advance`` it until it says that it is over; it raises RunFailed if the run cannot go on.

    Args:
        command: what stands before the arguments: ``["python", "main.py"]``.
        threads: of each process, as OpenMP and its like are told; None leaves it to them.
        facts: what is recorded of where and how it runs, asked when a process begins.
        say: called with a line about what begins.
    """

    def __init__(
        self,
        run: Run,
        command: Sequence[str],
        threads: int | None,
        facts: Callable[[], Mapping[str, Any]],
        say: Callable[[str], None],
    ) -> None:
        self.run, self.command, self.facts, self.say = run, command, facts, say
        limits = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self.environment = os.environ | limits
        self.doing, self.began = "begins", time.monotonic()
        self._process: subprocess.Popen | None = None
        self._lock = take_lock(run.folder.with_name(f"{run.folder.name}.lock"))
        self._steps = self._work()

    @property
    def is_locked_out(self) -> bool:
        """Whether another process works on the same run."""
        return self._lock is None

    def advance(self) -> bool:
        """Whether it is over."""
        try:
            next(self._steps)
        except StopIteration:
            self.release()
            return True
        except BaseException:
            self.release()
            raise
        return False

    def signal(self, number: int) -> bool:
        """Send a signal to the process and its workers; whether the process was still there."""
        if self._process is None or self._process.poll() is not None:
            return False
        os.killpg(self._process.pid, number)
        return True

    def release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _work(self) -> Iterator[None]:
        run = self.run
        run.read_again()  # the list may have begun hours ago
        if run.state(checkpoint_needed=True).todo == "nothing":
            return  # done by another process meanwhile
        if run.is_superseded():
            self.say(f"{run}: what earlier settings gave is kept in {run.set_aside()}")
        if run.row.fit and not run.fitted():
            facts = self.facts()
            yield from self._call("fit", run.begin_fit())
            run.end_fit(facts)
        facts, began = self.facts(), time.monotonic()
        yield from self._call("test", run.begin_test())
        run.end_test(time.monotonic() - began, facts)

    def _call(self, kind: Literal["fit", "test"], arguments: list[str]) -> Iterator[None]:
        """Run one command to its end, its output appended to a log."""
        log = self.run.folder / f"{kind}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self.doing = kind
        self.say(f"{self.run}: {kind}, {log}")
        with log.open("ab") as output:
            output.write(f"$ {shlex.join(['python', 'main.py', *arguments])}\n".encode())
            output.flush()
            beginning = output.tell()
            # Its own group, so that a stop reaches its workers too and Ctrl-C reaches it through us alone. It inherits
            # the lock: should we be killed and it go on, nobody else begins the same run.
            self._process = subprocess.Popen(
                [*self.command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
                pass_fds=() if self._lock is None else (self._lock,),
            )
        while (status := self._process.poll()) is None:
            yield
        said = log.read_bytes()[beginning:]
        if status == 0 and TOLD_TO_STOP in said:
            raise RunFailed(f"{kind} was told to stop (SIGTERM) from outside")
        if status != 0:
            goes_on = kind == "fit" and any(argument.startswith("--ckpt_path=") for argument in arguments)
            anew = f"; it went on from a checkpoint, to begin anew delete {self.run.folder}" if goes_on else ""
            raise RunFailed(f"{kind} ended with status {status}, {log}{anew}\n{tail(said)}")


def take_lock(file: Path) -> int | None:
    """A descriptor that holds the lock until it and all copies of it are closed; None where another process has it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def tail(output: bytes) -> str:
    """The last lines, indented; of a progress bar what was last seen of it."""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in output.decode(errors="replace").split("\n")]
    return "\n".join(f"    {line}" for line in [line for line in lines if line.strip()][-TAIL_LINES:])


def stop(jobs: Sequence[Job], patience_seconds: float = 10.0) -> None:
    """Ask all processes to end, and end them where they do not or where we are asked again."""
    try:
        running = [job for job in jobs if job.signal(signal.SIGTERM)]
        until = time.monotonic() + patience_seconds
        while any(job.signal(0) for job in running) and time.monotonic() < until:
            time.sleep(0.1)
    finally:
        for job in jobs:
            job.signal(signal.SIGKILL)
            job.release()
