"""A forest plot as inline SVG: one line a model and kind of prompt, the interval around the estimate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from src.intervals import Estimate

# In px: labels at least, axis, figures, a letter of the page's 12 px text with room to spare, a row, the title.
LABEL, AXIS, FIGURE, LETTER, ROW, TOP = 230, 360, 170, 7.5, 22, 26
COLOURS = ("#7d8b96", "#1f86b5", "#c2571a", "#2e7d4f", "#8b3fa0", "#a8842c", "#b3264a", "#3949ab")


@dataclass(frozen=True, slots=True)
class Line:
    """One estimate of a plot; `colour` counts the models."""

    label: str
    estimate: Estimate
    colour: int


def forest(title: str, groups: Sequence[tuple[str, Sequence[Line]]], zero: bool = False) -> str:
    """The plot of named groups of lines, as one ``<svg>``; with `zero` a line marks 0. Nothing for no lines."""
    lines = [line for _, group in groups for line in group]
    if not lines:
        return ""
    low, high = _range([line.estimate for line in lines], zero)
    left = max(LABEL, 28 + LETTER * max(len(line.label) for line in lines))
    width = left + AXIS + FIGURE

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * AXIS

    parts, y = [], TOP
    for name, group in groups:
        if not group:
            continue
        parts.append(f'<text x="0" y="{y + 14}" class="group">{escape(name)}</text>')
        y += ROW
        for line in group:
            parts.append(_drawn(line, y, width, place(line.estimate.value), _ends(line.estimate, place)))
            y += ROW
    axis = "".join(_tick(place(value), value, y) for value in (low, (low + high) / 2, high))
    mark = f'<line x1="{place(0):.1f}" x2="{place(0):.1f}" y1="{TOP}" y2="{y}" class="zero"/>' if zero else ""
    return (
        f'<svg viewBox="0 0 {width:g} {y + 24}" style="max-width:{width:g}px" role="img" aria-label="{escape(title)}">'
        f'<text x="0" y="14" class="title">{escape(title)}</text>{mark}{"".join(parts)}{axis}</svg>'
    )


def written(estimate: Estimate) -> str:
    """The estimate and its interval as text; what rounds to zero has no sign."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:z.3f}"
    return f"{estimate.value:z.3f} [{estimate.low:z.3f}, {estimate.high:z.3f}]"


def _drawn(line: Line, y: int, width: float, x: float, ends: tuple[float, float] | None) -> str:
    colour, middle = COLOURS[line.colour % len(COLOURS)], y + ROW // 2
    bar = ""
    if ends is not None:
        bar = (
            f'<line x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{middle}" y2="{middle}"'
            f' stroke="{colour}" stroke-width="3"/>'
        )
    return (
        f'<text x="14" y="{middle + 4}">{escape(line.label)}</text>{bar}'
        f'<circle cx="{x:.1f}" cy="{middle}" r="4.5" fill="{colour}"/>'
        f'<text x="{width:g}" y="{middle + 4}" text-anchor="end">{escape(written(line.estimate))}</text>'
    )


def _tick(x: float, value: float, y: int) -> str:
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 5}" class="axis"/>'
        f'<text x="{x:.1f}" y="{y + 19}" text-anchor="middle">{value:.3g}</text>'
    )


def _range(estimates: Sequence[Estimate], zero: bool) -> tuple[float, float]:
    """What the axis shows: everything, 0 too where it is marked, with a little room."""
    values = [v for e in estimates for v in (e.value, e.low, e.high) if v is not None] + ([0.0] if zero else [])
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or max(0.05 * abs(high), 0.01)
    return low - room, high + room


def _ends(estimate: Estimate, place: Callable[[float], float]) -> tuple[float, float] | None:
    if estimate.low is None or estimate.high is None:
        return None
    return place(estimate.low), place(estimate.high)
