"""Pictures of students beside their teacher, and a table of their gaps, from the finished runs of a list.

    python -m results.tables.student_pictures results/lists/students.yaml

The program writes into ``results/pages``: ``student_classes.png`` (AP by class), ``student_delays.png`` (mAP against
delay) and ``student_gaps.md``. ``student_weights.png`` has the weights of the tasks over training, of the runs whose
folders are here. Tests of students must have scored delays: ``model.detection.scored_delays: [0, 1, 2, 4]``.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datamodules.errors import UserError, shown_in_one_line
from datamodules.files import whole_path, write_whole
from datamodules.program_help import ProgramParser
from results.experiments.lists import pages_of

from .student_gaps import classes_by_gap, page, without_delays
from .student_results import Comparison, Results, command_for, compare, named

TEACHER = "evad_dense"
STUDENTS = ("distill_dsta", "distill_tsa", "dsta", "tsa", "untrained_dsta", "untrained_tsa")
TEACHER_COLOR = "C1"
STUDENT_COLORS = ("C0", "C2", "C3", "C4", "C5", "C6", "C7", "C8")

Figure = Any
"""matplotlib's, which is imported where it is used."""


def main(args: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(args)
    comparison = compare(arguments.list, arguments.teacher, arguments.students, arguments.seeds)
    if unscored := without_delays(comparison.students):
        names = ", ".join(student.row.name for student in unscored)
        unscored_runs = [run for student in unscored for run in student.runs]
        raise UserError(
            f"the tests of {names} scored no delays",
            where=arguments.list,
            remedy="give these rows test: {overrides: {model.detection.scored_delays: [0, 1, 2, 4]}}, and run "
            + command_for(unscored_runs),
        )
    folder = pages_of(arguments.list)
    pictures: dict[str, Callable[[Comparison], Figure]] = {
        "classes": draw_classes,
        "weights": draw_weights,
        "delays": draw_delays,
    }
    lost = [run for student in comparison.students for run in student.without_record()]
    if lost:
        print(
            f"no metrics.csv of the training of {named(lost)}: left out of student_weights.png; "
            f"{command_for(lost)} makes it where the run's folder is gone",
            file=sys.stderr,
        )
    if not any(student.weights() for student in comparison.students):
        print("no student_weights.png: none of the students has logged train/weight/...", file=sys.stderr)
        del pictures["weights"]
    for name, draw in pictures.items():
        file = folder / f"student_{name}.png"
        with whole_path(file) as unfinished:
            draw(comparison).savefig(unfinished, dpi=110, metadata={"Software": None})
        print(f"written to {file}")
    file = folder / "student_gaps.md"
    command = shlex.join(["python", "-m", "results.tables.student_pictures", *(sys.argv[1:] if args is None else args)])
    write_whole(file, page(comparison, command))
    print(f"written to {file}")


def parser() -> argparse.ArgumentParser:
    made = ProgramParser(__doc__, "python -m results.tables.student_pictures")
    made.add_argument("list", type=Path, nargs="?", default=Path("results/lists/students.yaml"), help="(%(default)s)")
    made.add_argument("--seeds", nargs="+", type=int, help="those of them that are shown; all by default")
    made.add_argument("--teacher", default=TEACHER, help="its row (%(default)s)")
    made.add_argument("--students", nargs="+", default=STUDENTS, help=f"their rows ({' '.join(STUDENTS)})")
    return made


def figure(width: float, height: float) -> Figure:
    """An empty one, which needs no display."""
    from matplotlib.figure import Figure as Empty

    return Empty(figsize=(width, height), layout="constrained")


def spread(values: Sequence[float]) -> float:
    """The standard deviation over seeds; nothing of a single one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def colored(comparison: Comparison) -> list[tuple[Results, str]]:
    """The students, each in its colour of all pictures."""
    colors = (STUDENT_COLORS[place % len(STUDENT_COLORS)] for place in range(len(comparison.students)))
    return list(zip(comparison.students, colors, strict=True))


def draw_classes(comparison: Comparison) -> Figure:
    """A line from the teacher's AP to each student's, classes below each other; bars are the spread over seeds."""
    names, students = classes_by_gap(comparison), colored(comparison)
    own = comparison.teacher.classes()
    drawn = figure(8, 1.2 + len(names) * (0.2 + 0.13 * len(students)))
    axes = drawn.subplots()
    step = 0.7 / len(students)
    for place, name in enumerate(names):
        teacher = statistics.mean(own[name])
        for turn, (student, color) in enumerate(students):
            height = place + (turn - (len(students) - 1) / 2) * step
            label = student.title if place == 0 else None
            values = student.classes().get(name)
            if not values:
                axes.plot([], [], "o-", color=color, label=label)  # its place in the legend
                continue
            mean = statistics.mean(values)
            axes.plot([teacher, mean], [height, height], color=color, alpha=0.35)
            axes.errorbar(
                mean, height, xerr=spread(values) or None, fmt="o", color=color, markersize=5, capsize=2, label=label
            )
        label = comparison.teacher.title if place == 0 else None
        ends = [place - 0.4, place + 0.4]
        axes.plot([teacher, teacher], ends, color=TEACHER_COLOR, linewidth=3, label=label)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("AP@0.5, %")
    axes.grid(axis="x", alpha=0.3)
    drawn.legend(loc="outside upper center", ncols=2, fontsize=8)
    return drawn


def draw_weights(comparison: Comparison) -> Figure:
    """A panel for each student that weighs tasks, a colour a task, a line a seed."""
    students = [(student, curves) for student in comparison.students if (curves := student.weights())]
    drawn = figure(1 + 4 * len(students), 3.6)
    panels = drawn.subplots(1, len(students), sharey=True, squeeze=False)[0]
    colors = {task: f"C{place}" for place, task in enumerate(dict.fromkeys(task for _, c in students for task in c))}
    for (student, curves), axes in zip(students, panels, strict=True):
        for task, color in colors.items():
            for turn, (steps, weights) in enumerate(curves.get(task, [])):
                axes.plot(steps, weights, color=color, alpha=0.8, linewidth=1.2, label=None if turn else task)
        axes.set_title(student.title, fontsize=10)
        axes.set_xlabel("training step")
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    panels[0].set_ylabel("weight of the task's loss")
    return drawn


def draw_delays(comparison: Comparison) -> Figure:
    """mAP of predictions k frames later; the band is the spread over seeds."""
    drawn = figure(8, 5)
    axes = drawn.subplots()
    teacher = statistics.mean(comparison.teacher.percent("test/map"))
    axes.axhline(teacher, color=TEACHER_COLOR, linewidth=2, label=comparison.teacher.title)
    ticks = set()
    for student, color in colored(comparison):
        for actions_alone, style in ((True, "o-"), (False, "o--")):
            late = student.delays(actions_alone=actions_alone)
            means = [statistics.mean(values) for values in late.values()]
            label = student.title if actions_alone else None
            axes.plot(list(late), means, style, color=color, markersize=4, label=label)
            if actions_alone:
                around = [spread(values) for values in late.values()]
                lower, upper = zip(*((mean - s, mean + s) for mean, s in zip(means, around, strict=True)), strict=True)
                axes.fill_between(list(late), lower, upper, color=color, alpha=0.15, linewidth=0)
            ticks |= set(late)
    axes.plot([], [], "--", color="grey", label="boxes late too")
    axes.set_xticks(sorted(ticks))
    axes.set_xlabel("delay k: the truth of sampled frame t against predictions at t + k")
    axes.set_ylabel("mAP, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return drawn


if __name__ == "__main__":
    with shown_in_one_line():
        try:
            main()
        except ModuleNotFoundError as error:
            raise UserError(str(error), remedy="pip install -e '.[dev]' brings matplotlib") from error
