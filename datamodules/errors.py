"""The error for what a user can cause: a file, a setting or a machine that is not as it must be."""

from __future__ import annotations


class UserError(ValueError):
    """A fault that the user can mend; commands show it in one line, without a traceback.

    Every other exception is a bug of ours and keeps its traceback.

    >>> str(UserError("has 4 classes, the data has 10", where="model.network.num_classes", remedy="set it to 10"))
    'model.network.num_classes: has 4 classes, the data has 10; set it to 10'

    Args:
        problem: what is wrong, with the values.
        where: the file, key or address it is about.
        remedy: the way out, as an imperative.
    """

    def __init__(self, problem: str, where: object = None, remedy: str | None = None) -> None:
        super().__init__(problem, where, remedy)
        self.problem, self.where, self.remedy = problem, where, remedy

    def __str__(self) -> str:
        place = "" if self.where is None else f"{self.where}: "
        way_out = "" if self.remedy is None else f"; {self.remedy}"
        return printable(f"{place}{self.problem}{way_out}")  # names of files and classes are in all three


def printable(text: str) -> str:
    """Escape what a terminal would act upon or break a line at; file names may hold anything.

    >>> printable("cam\\x1b[2J.mp4")
    'cam\\\\x1b[2J.mp4'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
