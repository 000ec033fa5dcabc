"""The pictures of a page, as PNGs; every one shows all files side by side."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from datamodules.errors import UserError

from .summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 5
"""Columns of small pictures, one picture per class."""
MOST_CLASSES = 30
"""So many classes have a small picture: those with the lowest AP."""


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, np.ndarray]:
    """Return a figure of inches and its axes (rows, columns), drawn without a display."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError("matplotlib is not installed", remedy="pip install matplotlib") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def as_png(figure: Figure, dpi: int = 90) -> bytes:
    """Return the file's content; the same picture always has the same."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=dpi, metadata={"Software": None})
    return content.getvalue()


def draw_costs(summaries: Sequence[Summary]) -> bytes:
    """Draw bars of the mAP that each kind costs."""
    figure, ((axes,),) = new_figure(8, 3.5)
    labels = [cost.kind.words for cost in summaries[0].kinds]
    _bars(axes, labels, [[100 * cost.cost for cost in each.kinds] for each in summaries], summaries)
    axes.set_ylabel("mAP gained by repair, points")
    return as_png(figure)


def draw_properties(summaries: Sequence[Summary]) -> bytes:
    """A panel of bars for each property."""
    count = len(summaries[0].properties)
    columns = min(3, count)
    rows = -(-count // columns)
    figure, panels = new_figure(4 * columns, 2.8 * rows, rows, columns)
    for place, axes in enumerate(panels.flat):
        if place >= count:
            axes.set_axis_off()
            continue
        of = [summary.properties[place] for summary in summaries]
        heights = [100 * np.nan_to_num(each.mean) for each in of]
        _bars(axes, of[0].property.labels, heights, summaries, legend=place == 0)
        axes.set_title(of[0].property.name, fontsize=10)
        axes.set_ylabel("AP %")
    return as_png(figure)


def _bars(
    axes: Axes,
    labels: Sequence[str],
    heights: Sequence[Sequence[float]],
    summaries: Sequence[Summary],
    *,
    legend: bool = True,
) -> None:
    places, width = np.arange(len(labels)), 0.8 / len(heights)
    for number, (values, summary) in enumerate(zip(heights, summaries, strict=True)):
        axes.bar(places + (number - (len(heights) - 1) / 2) * width, values, width, label=summary.name)
    axes.set_xticks(places, labels, rotation=30, ha="right", fontsize=8)
    axes.grid(axis="y", alpha=0.3)
    if legend and len(heights) > 1:
        axes.legend(fontsize=8)


def draw_confusion(summary: Summary, names: Sequence[str]) -> bytes:
    """Draw the classes that true rows were taken for, as shares of their own class."""
    there = np.flatnonzero(summary.true_counts)
    matrix = summary.confusion[there] / summary.true_counts[there, None]
    side = 2.5 + 0.28 * len(there)
    figure, ((axes,),) = new_figure(side + 1.5, side)
    columns = [*there, len(names)]
    picture = axes.imshow(100 * matrix[:, columns], vmin=0, vmax=100, cmap="Blues")
    axes.set_xticks(range(len(columns)), [*(names[index] for index in there), "nothing"], rotation=90, fontsize=8)
    axes.set_yticks(range(len(there)), [names[index] for index in there], fontsize=8)
    axes.set_xlabel("taken for")
    axes.set_ylabel("true action")
    figure.colorbar(picture, ax=axes, label="% of the true rows", shrink=0.8)
    return as_png(figure)


def draw_curves(summaries: Sequence[Summary], names: Sequence[str]) -> bytes:
    """Precision against recall, a small picture per class, the lowest AP first."""
    figure, panels, shown = _grid(summaries[0])
    for axes, index in zip(panels, shown, strict=True):
        for summary in summaries:
            curve = summary.curves[index]
            axes.plot(100 * curve.recall, 100 * curve.precision, label=f"{100 * summary.per_class[index]:.1f}")
        axes.set_title(names[index], fontsize=9)
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 102)
        axes.legend(fontsize=7, title="AP %", title_fontsize=7)
    figure.supxlabel("recall %", fontsize=9)
    figure.supylabel("precision %", fontsize=9)
    return as_png(figure)


def draw_histograms(summary: Summary, names: Sequence[str]) -> bytes:
    """Scores of hits and misses, a small picture per class."""
    figure, panels, shown = _grid(summary)
    for axes, index in zip(panels, shown, strict=True):
        edges, hits, misses = summary.histograms[index]
        axes.stairs(misses, edges, color="C1", label="misses")
        axes.stairs(hits, edges, color="C0", fill=True, alpha=0.6, label="hits")
        axes.set_yscale("symlog", linthresh=1)
        axes.set_title(names[index], fontsize=9)
    if len(panels):
        panels[0].legend(fontsize=7)
    figure.supxlabel("score", fontsize=9)
    figure.supylabel("rows", fontsize=9)
    return as_png(figure)


def _grid(summary: Summary) -> tuple[Figure, Sequence[Axes], np.ndarray]:
    """Small pictures for the classes of the lowest AP that have ground truth."""
    there = np.flatnonzero(summary.true_counts)
    shown = there[np.argsort(summary.per_class[there], kind="stable")][:MOST_CLASSES]
    columns = max(1, min(COLUMNS, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    figure, panels = new_figure(2.5 * columns, 2.2 * rows, rows, columns)
    flat = list(panels.flat)
    for axes in flat[len(shown) :]:
        axes.set_axis_off()
    for axes in flat[: len(shown)]:
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    return figure, flat[: len(shown)], shown


def draw_reliability(summaries: Sequence[Summary]) -> bytes:
    """Draw the share of hits among rows of a score; a calibrated score lies on the diagonal."""
    figure, ((axes,),) = new_figure(5, 4.2)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    for summary in summaries:
        if (found := summary.calibration) is not None:
            label = f"{summary.name}: error {100 * found.error_of_likely:.1f} points"
            axes.plot(found.mean_scores, found.precisions, marker="o", label=label)
    axes.set_xlabel("score")
    axes.set_ylabel("share of hits")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return as_png(figure)
