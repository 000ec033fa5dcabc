"""The table of a list as a picture: every run a dot, every experiment's mean a line."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from datamodules.files import whole_path
from results.experiments.lists import ExperimentList

from .table import Line, values_of


def draw(listing: ExperimentList, lines: Sequence[Line], path: Path) -> None:
    """Draw a panel for each metric that is drawn, experiments below each other in the list's order."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    metrics = [metric for metric in listing.metrics if metric.drawn] or listing.metrics[:1]
    size = (3 + 4 * len(metrics), 1.2 + 0.35 * len(listing.rows))
    figure, panels = pyplot.subplots(1, len(metrics), figsize=size, layout="constrained", sharey=True, squeeze=False)
    for metric, axes in zip(metrics, panels[0], strict=True):
        for place, row in enumerate(listing.rows):
            values = values_of(row, metric, lines)
            if values:
                axes.plot(statistics.mean(values), place, "|", color="C1", markersize=16, markeredgewidth=2)
                axes.plot(values, [place] * len(values), "o", color="C0", alpha=0.6, markersize=5)
        axes.set_xlabel(metric.title or metric.key)
        axes.grid(axis="x", alpha=0.3)
    panels[0][0].set_yticks(range(len(listing.rows)), [row.title for row in listing.rows])
    panels[0][0].set_ylim(len(listing.rows) - 0.5, -0.5)
    figure.suptitle(listing.title, fontsize=10)
    with whole_path(path) as unfinished:
        figure.savefig(unfinished, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
