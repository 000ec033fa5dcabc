"""Report of a look through data, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datamodules.annotations.mistakes import UNREADABLE, AbsentVideo, Mistake
from datamodules.errors import printable


@dataclass
class Report:
    """Counts, what is wrong, and what may be meant but is worth a look."""

    source: str
    """Name of the data."""
    class_names: tuple[str, ...]
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """Counts of each split, by the name of what was counted."""
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    """Boxes or segments per class, (K,), of each split."""
    mistakes: list[Mistake] = field(default_factory=list)
    remarks: list[Mistake] = field(default_factory=list)
    page: Path | None = None
    """Picture of the data."""

    def text(self, names_shown: int = 10) -> str:
        """The whole report; of each kind so many are named (videos that cannot be read all)."""
        lines = [f"{self.source}: {len(self.class_names)} classes", ""]
        columns = list(next(iter(self.counts.values()), {}))
        lines += _table(["", *columns], [[split, *map(str, of.values())] for split, of in self.counts.items()])
        rows = zip(map(printable, self.class_names), *(of.tolist() for of in self.labels.values()), strict=True)
        lines += ["", *_table(["labels", *self.labels], [list(map(str, row)) for row in rows])]
        for title, found in (("Wrong:", self.mistakes), ("Worth a look:", self.remarks)):
            if found:
                lines += ["", title, *_grouped(found, names_shown)]
        if not self.mistakes:
            lines += ["", "Nothing is wrong."]
        if self.page is not None:
            lines += [
                "",
                f"The first thing to look at: {printable(str(self.page))}, clips with boxes as networks get them.",
            ]
        return "\n".join(lines)


def remark_on_absent_videos(report: Report) -> None:
    """Training and evaluation do with the videos that are there, so that others are absent is no mistake."""
    report.remarks += [mistake for mistake in report.mistakes if isinstance(mistake, AbsentVideo)]
    report.mistakes = [mistake for mistake in report.mistakes if not isinstance(mistake, AbsentVideo)]


def remark_on_classes(report: Report) -> None:
    """Compare the classes that the splits use with those that there are."""
    used = {split: labels > 0 for split, labels in report.labels.items() if labels.any()}
    if not used:
        return
    ever = np.any(list(used.values()), axis=0)
    numbers = np.flatnonzero(ever) + 1
    hint = ""
    if len(numbers) < len(ever) and np.ptp(numbers) + 1 == len(numbers):
        hint = f"only ids {numbers[0]} to {numbers[-1]} are used"
        if len(numbers) == len(ever) - 1:
            hint += "; are ids and names shifted by one (ids counted from 0, a name for the background)?"
    report.remarks += [
        Mistake("classes that are never used", f"{report.class_names[index]} (id {index + 1})", way_out=hint)
        for index in np.flatnonzero(~ever).tolist()
    ]
    for split, of in used.items():
        if split != "train" and "train" in used:
            report.remarks += [
                Mistake(f"classes that {split} has and train has not", f"{report.class_names[index]} (id {index + 1})")
                for index in np.flatnonzero(of & ~used["train"]).tolist()
            ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as what they hold, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in (head, *rows)
    ]


def _grouped(mistakes: Sequence[Mistake], names_shown: int) -> Iterator[str]:
    kinds: dict[tuple[str, str], list[Mistake]] = {}
    for mistake in mistakes:
        kinds.setdefault((mistake.kind, mistake.way_out), []).append(mistake)
    for (kind, way_out), found in kinds.items():
        shown = found if kind == UNREADABLE else found[:names_shown]
        yield f"  {kind}: {len(found)}"
        yield from (f"    {mistake.line}" for mistake in shown)
        if len(shown) < len(found):
            yield f"    and {len(found) - len(shown)} more"
        if way_out:
            yield f"    -> {way_out}"
