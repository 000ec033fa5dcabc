"""The error for what a user can cause: a file, a setting or a machine that is not as it must be."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A fault that the user can mend; commands show it in one line, without a traceback.

    Every other exception is a bug and keeps its traceback. As text it is one line.

    >>> str(UserError("has 4 classes, the data has 10", where="model.network.num_classes", remedy="set it to 10"))
    'model.network.num_classes: has 4 classes, the data has 10; set it to 10'

    Args:
        problem: what is wrong, with the values.
        where: the file, key or address it is about.
        remedy: the way out, as an imperative.
    """

    exit_status = 1

    def __init__(self, problem: str, where: object = None, remedy: str | None = None) -> None:
        super().__init__(problem, where, remedy)
        self.problem, self.where, self.remedy = problem, where, remedy

    def __str__(self) -> str:
        problem = self.problem
        if IN_A_WORKER.match(problem):
            problem = problem.rpartition(f"{type(self).__name__}: ")[2]
        place = "" if self.where is None else f"{printable(str(self.where))}: "
        way_out = "" if self.remedy is None else f"; {self.remedy}"
        return printable(re.sub(r"\s*\n\s*", " ", f"{place}{problem}{way_out}".strip()))


class UsageError(UserError):
    """Error in a command line or a config, such as a key that no command has."""

    exit_status = 2


IN_A_WORKER = re.compile(r"Caught \w+ in DataLoader worker process")
"""Beginning of an error that PyTorch raises again in the main process: a traceback, the error's text at its end."""


@contextmanager
def shown_in_one_line() -> Iterator[None]:
    """End the program with one line where the block raises a ``UserError``.

    ONLOOKER_DEBUG=1 shows where it was raised, too.
    """
    try:
        yield
    except UserError as error:
        if os.environ.get("ONLOOKER_DEBUG"):
            if IN_A_WORKER.match(error.problem):
                print(error.problem, file=sys.stderr)
            raise
        _end_progress_bars()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


def _end_progress_bars() -> None:
    """Leave what bars have shown, and begin a line: else the error would be the end of theirs."""
    tqdm = sys.modules.get("tqdm")
    for bar in list(getattr(getattr(tqdm, "tqdm", None), "_instances", ())):
        bar.close()


def printable(text: str) -> str:
    """Escape control characters and line breaks, for terminals; file names may hold any character.

    >>> printable("cam\\x1b[2J.mp4")
    'cam\\\\x1b[2J.mp4'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
