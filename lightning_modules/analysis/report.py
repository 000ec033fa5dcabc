"""Content of a page about one or two files of detections: words, tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import figures
from .kinds import Kind
from .pages import Page, Picture, Section, Table
from .summary import Summary

KINDS_TEXT = """\
The gain in mAP where one kind alone is repaired. A wrong action or a misplaced row becomes a hit if nothing else \
found its true row; otherwise it is removed. Duplicates, background and both at once are removed. What was missed need \
no longer be found. The gains do not add up, since several errors may prevent one hit.

The count is of all detections, however low their score. Confident are those among the N best of an action that has N \
true ones."""
WORDS = {
    Kind.WRONG_ACTION: "where somebody is who does something else",
    Kind.MISPLACED: "the action is there, the overlap too small",
    Kind.BOTH: "another action, and the overlap too small",
    Kind.DUPLICATE: "found before by a better score",
    Kind.BACKGROUND: "nobody is there",
    Kind.MISSED_PERSON: "nothing overlaps it enough",
    Kind.MISSED_ACTION: "found, but nothing says this action",
    Kind.SWITCHED: "follows two people",
    Kind.BROKEN: "another piece has further frames",
    Kind.FRAMES_LOST: "begins or ends too early or too late",
    Kind.MISSED_SEGMENT: "nothing overlaps it enough",
}
SEGMENT_WORDS = {
    Kind.WRONG_ACTION: "another action happens there",
    Kind.BACKGROUND: "nothing happens there",
}


def error_page(
    title: str, summaries: Sequence[Summary], names: Sequence[str], errors: Sequence[Section], command: str
) -> Page:
    """Return the page.

    Args:
        summaries: of one file, or of two that are compared.
        names: of the classes.
        errors: the costliest errors of each file, drawn.
        command: what makes the page again.
    """
    lead = [
        f"{each.name}: {each.protocol}, {100 * each.mean_ap:.2f} %; {each.num_rows} detections, "
        f"{int(each.true_counts.sum())} true ones in {int((each.true_counts > 0).sum())} classes."
        for each in summaries
    ]
    costs = Picture("kinds", figures.draw_costs(summaries), "mAP that each kind costs")
    sections = [
        Section("Kinds of error", KINDS_TEXT, [kinds_table(summaries)], [costs]),
        Section("Classes", CLASSES_TEXT, [classes_table(each, names) for each in summaries]),
        Section(
            "Confusion",
            SEGMENT_CONFUSION_TEXT if _of_segments(summaries) else CONFUSION_TEXT,
            [confusion_table(each, names) for each in summaries],
            [
                Picture(f"confusion_{number}", figures.draw_confusion(each, names), each.name)
                for number, each in enumerate(summaries, start=1)
            ],
        ),
        Section(
            "Precision and recall",
            "" if len(summaries) == 1 else f"In the order {', '.join(each.name for each in summaries)}.",
            pictures=[Picture("curves", figures.draw_curves(summaries, names), "the classes of the lowest AP first")],
        ),
        Section(
            "Scores",
            SCORES_TEXT,
            [calibration_table(summaries)] if any(each.calibration for each in summaries) else [],
            [
                *(
                    [Picture("reliability", figures.draw_reliability(summaries), "score and share of hits")]
                    if any(each.calibration for each in summaries)
                    else []
                ),
                *(
                    Picture(f"scores_{number}", figures.draw_histograms(each, names), f"{each.name}: scores")
                    for number, each in enumerate(summaries, start=1)
                ),
            ],
        ),
    ]
    if summaries[0].properties:
        picture = Picture("properties", figures.draw_properties(summaries), "AP by property")
        sections.append(Section("AP by property", PROPERTIES_TEXT, property_tables(summaries), [picture]))
    return Page(title, lead, [*sections, *errors], command)


CLASSES_TEXT = """\
AP and the confident errors of every class, the lowest AP first. Confident are those among the N best of a class of N \
true ones."""
CONFUSION_TEXT = """\
Confusion between actions, for people that a box was found for. For a person with n actions the n best-scored ones of \
the box count. A true action that is not among them is divided evenly among those that are wrong."""
SEGMENT_CONFUSION_TEXT = """\
Confusion between actions, for segments that one was found for: the action that scores best there."""
SCORES_TEXT = """\
A calibrated score, which equals its share of hits, lies on the diagonal. The error is the mean distance from it in \
points, over detections with a score of at least 0.1; in brackets over all."""
PROPERTIES_TEXT = """\
Each bin counts its own true rows alone; those of other bins are neither hits nor misses. Precision is normalised as \
if the bin had as many true rows as all bins together."""


def kinds_table(summaries: Sequence[Summary]) -> Table:
    """Cost and counts of every kind, a line each; with two files the difference too."""
    head = ["kind"]
    for each in summaries:
        head += [f"{each.name}: mAP", "count", "confident"] if len(summaries) > 1 else ["mAP", "count", "confident"]
    words = WORDS | SEGMENT_WORDS if _of_segments(summaries) else WORDS
    rows = []
    for place, cost in enumerate(summaries[0].kinds):
        line = [f"{cost.kind.words}: {words[cost.kind]}"]
        for each in summaries:
            of = each.kinds[place]
            line += [f"+{100 * of.cost:.2f}", str(of.count), str(of.confident)]
        rows.append(line)
    rows.append(["mAP % as it is", *(cell for each in summaries for cell in (f"{100 * each.mean_ap:.2f}", "", ""))])
    return Table(head, rows)


def classes_table(summary: Summary, names: Sequence[str]) -> Table:
    """AP, true rows, calibration and errors of every class with ground truth."""
    there = np.flatnonzero(summary.true_counts)
    kinds = [cost.kind.words for cost in summary.kinds]
    rows = [
        [
            names[index],
            f"{100 * summary.per_class[index]:.2f}",
            str(summary.true_counts[index]),
            *map(str, summary.kinds_per_class[index]),
            _points(summary.calibration_errors[index]),
        ]
        for index in there[np.argsort(summary.per_class[there], kind="stable")]
    ]
    return Table([summary.name, "AP %", "true", *kinds, "calibration error"], rows)


def confusion_table(summary: Summary, names: Sequence[str], most: int = 15) -> Table:
    """The pairs of actions that are mixed up most often."""
    mixed = summary.confusion.copy()
    np.fill_diagonal(mixed, 0)
    order = np.argsort(-mixed, axis=None, kind="stable")[:most]
    rows = []
    for true, taken in zip(*np.unravel_index(order, mixed.shape), strict=True):
        if mixed[true, taken] > 0:
            share = 100 * mixed[true, taken] / summary.true_counts[true]
            other = names[taken] if taken < len(names) else "nothing"
            rows.append([names[true], other, f"{mixed[true, taken]:.1f}", f"{share:.1f}"])
    return Table([f"{summary.name}: true action", "taken for", "true rows", "% of them"], rows)


def calibration_table(summaries: Sequence[Summary]) -> Table:
    """Score and share of hits in each bin of the score."""
    known = [each for each in summaries if each.calibration is not None]
    edges = known[0].calibration.edges
    head = ["score"]
    for each in known:
        head += [f"{each.name}: detections", "mean score", "share of hits"]
    rows = [
        [
            f"{edges[number]:.1f} to {edges[number + 1]:.1f}",
            *(
                cell
                for each in known
                for cell in (
                    f"{int(each.calibration.counts[number])}",
                    _points(each.calibration.mean_scores[number]),
                    _points(each.calibration.precisions[number]),
                )
            ),
        ]
        for number in range(len(edges) - 1)
    ]
    errors = ((_points(each.calibration.error_of_likely), _points(each.calibration.error)) for each in known)
    rows.append(["error", *(cell for likely, all_of in errors for cell in (f"{likely} ({all_of})", "", ""))])
    return Table(head, rows)


def property_tables(summaries: Sequence[Summary]) -> list[Table]:
    """AP in each bin of each property."""
    tables = []
    for place, first in enumerate(summaries[0].properties):
        of = [each.properties[place] for each in summaries]
        rows = [
            [label, str(first.counts[number]), *(_points(each.mean[number]) for each in of)]
            for number, label in enumerate(first.property.labels)
        ]
        several = len(summaries) > 1
        aps = [f"{each.name}: AP %" if several else "AP %" for each in summaries]
        tables.append(Table([first.property.name, "true", *aps], rows))
    return tables


def _of_segments(summaries: Sequence[Summary]) -> bool:
    return any(cost.kind == Kind.MISSED_SEGMENT for cost in summaries[0].kinds)


def _points(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f}"
