"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column begins at the left and whose others end at the right; cells are kept as text.

    >>> print(markdown_table(["class", "AP %"], [["walk", "74.40"]]))
    | class   |   AP % |
    |:--------|-------:|
    | walk    |  74.40 |
    """
    cells = [[text.replace("|", "/") for text in row] for row in [head, *rows]]
    align = ("left", *["right"] * (len(head) - 1))
    return tabulate(cells[1:], cells[0], tablefmt="pipe", disable_numparse=True, colalign=align)
