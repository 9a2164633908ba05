"""A forest plot: one line a model and kind of prompt, the interval around the estimate."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from src.intervals import Estimate

COLOURS = ("#7d8b96", "#1f86b5", "#c2571a", "#2e7d4f", "#8b3fa0", "#a8842c", "#b3264a", "#3949ab")
WIDTH, ROW, MARGIN = 8.0, 0.24, 0.8  # inches: the whole plot, a line of it, title and axis together
# Text stays text (searchable, the page's font), and the same plot has the same bytes.
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "forest", "font.family": "sans-serif", "font.size": 9}


@dataclass(frozen=True, slots=True)
class Line:
    """One estimate of a plot; `colour` counts the models."""

    label: str
    estimate: Estimate
    colour: int


def forest(title: str, groups: Sequence[tuple[str, Sequence[Line]]], zero: bool = False) -> Figure | None:
    """The plot of named groups of lines, the first on top; `zero`: a line marks 0. None without lines."""
    rows: list[tuple[str, Line | None]] = []
    for name, lines in groups:
        if lines:
            rows += [(name, None), *((line.label, line) for line in lines)]
    if not rows:
        return None
    with rc_context(STYLE):  # type: ignore[arg-type]  # its stubs list the keys one by one
        figure = Figure(figsize=(WIDTH, MARGIN + ROW * len(rows)), layout="constrained")
        axes = figure.add_subplot(title=title)
        for place, (_, line) in enumerate(rows):
            if line is not None:
                _draw(axes, place, line)
        if zero:
            axes.axvline(0, color="0.5", linestyle="--", linewidth=1, zorder=0)
        axes.set_yticks(range(len(rows)), [text for text, _ in rows])
        for label, (_, line) in zip(axes.get_yticklabels(), rows, strict=True):
            label.set_fontweight("normal" if line else "bold")
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.tick_params(left=False)
        axes.spines[["left", "top", "right"]].set_visible(False)
    return figure


def svg(figure: Figure) -> str:
    """The plot as one ``<svg>`` element for a page."""
    written_to = io.StringIO()
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure.savefig(written_to, format="svg", metadata={"Date": None, "Creator": None})
    text = written_to.getvalue()
    return text[text.index("<svg") :]


def written(estimate: Estimate) -> str:
    """The estimate and its interval as text; what rounds to zero has no sign."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:z.3f}"
    return f"{estimate.value:z.3f} [{estimate.low:z.3f}, {estimate.high:z.3f}]"


def _draw(axes: Axes, place: int, line: Line) -> None:
    estimate, colour = line.estimate, COLOURS[line.colour % len(COLOURS)]
    ends = (estimate.value if end is None else end for end in (estimate.low, estimate.high))
    axes.hlines(place, *ends, color=colour, linewidth=2.5)
    axes.plot(estimate.value, place, "o", color=colour, markersize=6)
    # The figures in a column at the right, beside the axes.
    text = written(estimate)
    axes.annotate(text, (1.02, place), xycoords=("axes fraction", "data"), va="center")
