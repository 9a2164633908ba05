"""The metric's curves over steps: one colour a row, the mean over its seeds thick, each seed thin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from src.compare.records import Series, finite
from src.compare.table import Comparison, Row


def plot(comparison: Comparison, path: Path) -> None:
    """Write a PNG of all rows that logged the metric."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, row in enumerate(comparison.rows):
        histories = [history for run in row.runs if (history := finite(run.history(comparison.metric)))]
        if not histories:
            continue
        colour = f"C{number % 10}"
        for history in histories if len(histories) > 1 else ():
            axes.plot(*zip(*history, strict=True), color=colour, alpha=0.3, linewidth=0.8)
        mean = mean_series(histories)
        marker = "o" if len(mean) <= 30 else ""
        axes.plot(*zip(*mean, strict=True), color=colour, marker=marker, markersize=3, label=_label(comparison, row))
    axes.set_xlabel("optimiser step")
    axes.set_ylabel(comparison.metric)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120, format="png")


def mean_series(histories: Sequence[Series]) -> Series:
    """The mean at the steps that all have, or the first series alone where they share none."""
    tables = [dict(history) for history in histories]
    common = sorted(set.intersection(*(set(table) for table in tables)))
    return tuple((step, fmean(table[step] for table in tables)) for step in common) or tuple(histories[0])


def _label(comparison: Comparison, row: Row) -> str:
    settings = ", ".join(f"{name}={row.settings[name]}" for name in comparison.settings)
    seeds = f" ({len(row.runs)} seeds)" if len(row.runs) > 1 else ""
    label = (settings or row.label) + seeds
    return label if len(label) <= 90 else f"{label[:87]}..."
