"""Gaps between students and their teacher, and the part of them that is unseen future, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from .markdown import markdown_table
from .student_results import Comparison, Results
from .table import cell

CLASSES_NOTE = """\
AP@0.5 in percent, ± the standard deviation over seeds; in brackets the difference from the teacher. The class with the
first student's widest gap comes first."""
DELAYS_NOTE = """\
The ground truth of sampled frame t against predictions k frames later than its own, mAP in percent. *Actions late*:
the boxes of t with the actions that the same people have at t + k. *All late*: the boxes of t + k too. At the end of a
video the last frame is repeated, as in the teacher's clip. The last column is the part of the gap to the teacher
without a delay that the best delay closes. That part is due to unseen future, the rest to the teacher's skill."""


def page(comparison: Comparison, command: str) -> str:
    """Return the text of the Markdown file; ``command`` is what writes it."""
    parts = [
        f"# {comparison.listing.title}: gaps to the teacher",
        "## By class",
        CLASSES_NOTE,
        class_table(comparison),
        "## By delay",
        DELAYS_NOTE,
        delay_table(comparison),
        comparison.other_commands,
        f"Written by `{command}`.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def class_table(comparison: Comparison) -> str:
    """A row per class, the mean over classes last."""
    teacher, students = comparison.teacher, comparison.students
    head, rows = ["class", teacher.title, *(student.title for student in students)], []
    for name in classes_by_gap(comparison):
        own = teacher.classes()[name]
        others = [_with_gap(student.classes().get(name, []), own, len(student.lines)) for student in students]
        rows.append([name.replace("_", " "), cell(own, 1, len(teacher.lines)), *others])
    own = teacher.percent("test/map")
    others = [_with_gap(student.percent("test/map"), own, len(student.lines)) for student in students]
    return markdown_table(head, [*rows, ["mAP", cell(own, 1, len(teacher.lines)), *others]])


def classes_by_gap(comparison: Comparison) -> list[str]:
    """The teacher's classes, from the one where the first student falls shortest."""
    teacher, first = comparison.teacher.classes(), comparison.students[0].classes()
    gaps = {name: statistics.mean(first.get(name) or own) - statistics.mean(own) for name, own in teacher.items()}
    return sorted(gaps, key=gaps.__getitem__)


def delay_table(comparison: Comparison) -> str:
    """Two rows a student, and the teacher without a delay first."""
    delays = sorted({delay for student in comparison.students for delay in student.delays(actions_alone=True)})
    head = ["", *(f"k = {delay}" for delay in delays), "gap closed"]
    own = comparison.teacher.percent("test/map")
    rows = [[comparison.teacher.title, cell(own, 1, len(comparison.teacher.lines)), *[""] * len(delays)]]
    for student in comparison.students:
        for words, actions_alone in (("actions late", True), ("all late", False)):
            late = student.delays(actions_alone=actions_alone)
            values = [cell(late.get(delay, []), 1, len(student.lines)) for delay in delays]
            rows.append([f"{student.title}, {words}", *values, gap_closed(late, own)])
    return markdown_table(head, rows)


def gap_closed(late: Mapping[int, Sequence[float]], teacher: Sequence[float]) -> str:
    """The part of the gap without a delay that the best delay closes; ``-`` where there is no gap."""
    means = {delay: statistics.mean(values) for delay, values in late.items()}
    if 0 not in means or not teacher or (gap := statistics.mean(teacher) - means[0]) <= 0:
        return "-"
    best = max(means, key=means.__getitem__)
    return f"{100 * (means[best] - means[0]) / gap:.0f} % at {best}"


def without_delays(students: Sequence[Results]) -> list[Results]:
    """Return the students whose test scored no delays."""
    return [student for student in students if not student.delays(actions_alone=True)]


def _with_gap(values: Sequence[float], teacher: Sequence[float], runs: int) -> str:
    measured = cell(values, 1, runs)
    return f"{measured} ({statistics.mean(values) - statistics.mean(teacher):+.1f})" if values else measured
