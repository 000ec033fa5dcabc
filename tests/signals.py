"""A callback that a process sends itself a signal with, at a moment of its run."""

from __future__ import annotations

import os
import signal

import lightning as L


class SendSignal(L.Callback):
    """Ends the process the n-th time that a hook is called.

    Args:
        name: of the signal, ``SIGKILL`` for instance.
        hook: of a callback, ``on_train_batch_start`` for instance.
        count: the n-th time.
    """

    def __init__(self, name: str, hook: str, count: int = 1) -> None:
        self.left = count

        def send(*_: object, **__: object) -> None:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), getattr(signal, name))

        setattr(self, hook, send)
