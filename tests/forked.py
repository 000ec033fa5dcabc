"""``python main.py ...`` in a process of its own, without the seconds that its imports take.

The process is forked from a server that has imported ``main`` and run nothing else. Status, signals, output, working
directory and environment are its own, as if a shell had started it.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread

import torch

ROOT = Path(__file__).resolve().parent.parent
MAIN = ROOT / "main.py"
SECONDS = 600.0
"""After which a process that hangs is ended."""


class Output:
    """The text that comes out of a pipe, until all its writers have ended."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._bytes = pipe, bytearray()
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self._pipe:
            while part := os.read(self._pipe.fileno(), 2**16):
                self._bytes += part

    def __str__(self) -> str:
        return self._bytes.decode(errors="replace")

    def ends(self, seconds: float) -> bool:
        """Wait for the end."""
        self._reader.join(seconds)
        return not self._reader.is_alive()


class Forked:
    """A Python program that runs, alone in its session.

    Args:
        arguments: of the program.
        program: its file.
        environment: variables beside those of this process.
        apart: keep stderr for itself; by default it goes where stdout goes.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        program: Path = MAIN,
        environment: Mapping[str, str] | None = None,
        apart: bool = False,
    ) -> None:
        _start_server()
        pipes = [multiprocessing.Pipe(duplex=False) for _ in range(2 if apart else 1)]
        writers = [writer for _, writer in pipes]
        variables = dict(os.environ) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | dict(environment or {})
        self._process = multiprocessing.get_context("forkserver").Process(
            target=_run, args=(program, list(arguments), variables, writers[0], writers[-1])
        )
        self._process.start()
        for writer in writers:
            writer.close()
        outputs = [Output(reader) for reader, _ in pipes]
        self._out, self._err = outputs[0], outputs[-1]

    @property
    def out(self) -> str:
        """Text that it has written to stdout, and to stderr unless that is apart."""
        return str(self._out)

    @property
    def err(self) -> str:
        return str(self._err)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Status as a shell sees it, but negative after the signal that killed it; None while it runs."""
        return self._process.exitcode

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = SECONDS) -> int:
        """Return the status once it has ended, and all that write to where it does; end what hangs."""
        self._process.join(seconds)
        has_ended = self.status is not None and self._out.ends(seconds) and self._err.ends(seconds)
        if not has_ended:
            os.killpg(self.pid, signal.SIGKILL)
        assert has_ended and self.status is not None, f"does not end; it has written\n{self.out[-4000:]}"
        return self.status

    def kill(self) -> None:
        """End it where it runs, and what it has started."""
        if self.status is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.join()


def _start_server() -> None:
    """Start the server, unless it runs, where it finds ``main``, and with one thread."""
    before = dict(os.environ)
    os.environ.update({"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    try:
        forkserver.set_forkserver_preload(["main"])
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run(program: Path, arguments: list[str], environment: dict[str, str], out: Connection, err: Connection) -> None:
    """Become the program."""
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # type: ignore[arg-type]  # its own, not the server's
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    out.close()
    err.close()
    sys.stdout.reconfigure(line_buffering=True)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv = [str(program), *arguments]
    try:
        runpy.run_path(str(program), run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a child of the server would leave them out
