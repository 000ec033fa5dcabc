"""Mistakes in a user's data: raised where data are read, collected where they are checked (check.py)."""

from __future__ import annotations

from datamodules.errors import UserError, printable

UNREADABLE = "videos that cannot be read"


class Mistake(UserError):
    """One mistake in a user's data.

    Args:
        kind: what all mistakes of this sort are called, in the plural.
        where: file and line, or video.
        seen: what is there.
        way_out: what should be there, or what to set.
    """

    def __init__(self, kind: str, where: str, seen: str = "", way_out: str = "") -> None:
        super().__init__(seen, where, way_out or None)
        # What an exception is pickled by, when it comes from a worker process.
        self.args = (kind, where, seen, way_out)
        self.kind, self.seen, self.way_out = kind, seen, way_out

    @property
    def line(self) -> str:
        return printable(": ".join(filter(None, [str(self.where), self.seen])))

    def __str__(self) -> str:
        return printable("; ".join(filter(None, [self.line, self.way_out])))


class AbsentVideo(Mistake):
    """A video that the annotation names and that is not there: worth a look, since a part of a data set will do."""


def keep(mistake: Mistake, mistakes: list[Mistake] | None) -> None:
    """Collect a mistake where there is a list for it, raise it otherwise."""
    if mistakes is None:
        raise mistake
    mistakes.append(mistake)
