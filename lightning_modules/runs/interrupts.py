"""Ctrl-C and SIGTERM: the run is closed, one line says how to go on, and the exit status is that of the signal."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

SIGNALS = (signal.SIGINT, signal.SIGTERM)
CHECKPOINT_OPTION = "--ckpt_path"
GRACE_SECONDS = 5.0
"""Time to wait for a killed process."""


class Interrupted(KeyboardInterrupt):
    """Exception for the signal that ends the program. Lightning closes a run for it, as for every Ctrl-C.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)
        self.way_on: str | None = None
        """Advice to the user who stopped the program."""

    def __str__(self) -> str:
        cause = "Ctrl-C" if self.signal == signal.SIGINT else self.signal.name
        return f"stopped by {cause}" + (f"; {self.way_on}" if self.way_on else "")


class Interruption:
    """Handler that raises ``Interrupted`` at once, in the process that it was made in.

    A process that was forked from it does what it would have done without.
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        self.before = {number: signal.getsignal(number) for number in SIGNALS}

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self.process:
            raise Interrupted(number)
        before = self.before[signal.Signals(number)]
        signal.signal(number, signal.SIG_DFL if before is None else before)
        signal.raise_signal(number)


@contextmanager
def true_exit_status() -> Iterator[None]:
    """Let a program that a signal stops end with 128 plus its number: 130 for Ctrl-C, 143 for SIGTERM.

    Lightning ends with 1 after the one and with 0 after the other.
    """
    handler = Interruption()
    for number in SIGNALS:
        signal.signal(number, handler)
    try:
        yield
    except BaseException as error:
        interrupted = _interruption_in(error)
        if interrupted is None:
            raise
        if rank_zero_only.rank == 0:
            print(f"\n{interrupted}", file=sys.stderr)  # below what a progress bar has left
        sys.exit(128 + interrupted.signal)
    finally:
        for number, before in handler.before.items():
            signal.signal(number, before)


def _interruption_in(error: BaseException) -> Interrupted | None:
    """Return the interruption that an error is, or that it was raised for."""
    waiting, seen = [error], set()
    while waiting:
        each = waiting.pop()
        if isinstance(each, Interrupted):
            return each
        if id(each) not in seen:  # errors that were raised again may lead to each other
            seen.add(id(each))
            waiting += [next_one for next_one in (each.__context__, each.__cause__) if next_one is not None]
    return None


class StopAtOnce(L.Callback):
    """Callback that stops a run at once when a signal comes, and says how to go on with it.

    Lightning lets a SIGTERM wait for the end of a training batch, and an evaluation goes on to its end.

    Args:
        command: what was called, without the interpreter: ``main.py fit ...``.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)

    def _listen(self, *_: object) -> None:
        # Lightning's handler, installed meanwhile, would wait for other processes that wait for this one.
        handler = signal.getsignal(signal.SIGINT)
        if isinstance(handler, Interruption):
            signal.signal(signal.SIGTERM, handler)

    on_train_start = on_validation_start = on_test_start = on_predict_start = _listen

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, Interrupted):
            return
        if trainer.state.fn == "fit":
            exception.way_on = self._way_on(newest_checkpoint(trainer))
        elif not getattr(getattr(trainer, "datamodule", None), "is_endless", False):
            exception.way_on = f"what it has written is not complete, {trainer.state.fn.value} again"
        # Lightning watches the processes that it has started, and kills this one as soon as one of them has ended.
        processes: list[subprocess.Popen] = getattr(trainer.strategy.launcher, "procs", [])
        for process in processes:
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
        processes.clear()

    def _way_on(self, checkpoint: Path | None) -> str:
        if checkpoint is None:
            return f"there is no checkpoint of this run yet, begin again: {command_line(self.command)}"
        return f"go on with: {command_line(with_checkpoint(self.command, checkpoint))}"


def newest_checkpoint(trainer: L.Trainer) -> Path | None:
    """Return the newest checkpoint in a run's folder, if there is one."""
    folders = [each.dirpath for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]
    found = [path for folder in folders if folder is not None for path in Path(folder).glob("[!.]*.ckpt")]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def with_checkpoint(command: Sequence[str], checkpoint: Path) -> list[str]:
    """Return the arguments of a command that resumes from a checkpoint, whatever it began from.

    >>> with_checkpoint(["main.py", "fit", "--ckpt_path", "a.ckpt", "--name", "b"], Path("c.ckpt"))
    ['main.py', 'fit', '--name', 'b', '--ckpt_path', 'c.ckpt']
    """
    kept, takes_next = [], False
    for argument in command:
        if not takes_next and not argument.startswith(f"{CHECKPOINT_OPTION}="):
            takes_next = argument == CHECKPOINT_OPTION
            if not takes_next:
                kept.append(argument)
        else:
            takes_next = False
    if checkpoint.is_absolute() and checkpoint.is_relative_to(Path.cwd()):
        checkpoint = checkpoint.relative_to(Path.cwd())
    return [*kept, CHECKPOINT_OPTION, str(checkpoint)]


def command_line(command: Sequence[str]) -> str:
    return shlex.join(["python", *command])
