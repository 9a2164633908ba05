"""A comparison as text for a terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence

from src.compare.table import ABSENT, Comparison, Row
from src.intervals import Estimate

Cell = Callable[[Row], str]


def text(comparison: Comparison) -> str:
    """The table in columns, the notes under it."""
    table = _cells(comparison)
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    return "\n".join([*lines, "", *comparison.notes])


def markdown(comparison: Comparison, export: str) -> str:
    """The table and the notes, each run's folder or id, and how to export the best (`export`)."""
    head, *body = [[_escaped(cell) for cell in line] for line in _cells(comparison)]
    lines = [f"# {len(comparison.rows)} settings by `{comparison.metric}`", "", _line(head), _line(["---"] * len(head))]
    lines += [_line(line) for line in body]
    lines += [
        "",
        *(f"- {note}" for note in comparison.notes),
        "",
        "![curves](curves.png)",
        "",
        export,
        "",
        "## Runs",
        "",
    ]
    for row in comparison.rows:
        for run in row.runs:
            place = f"`{run.folder}`" if run.folder is not None else f"MLflow run `{run.run_id}`"
            lines.append(f"- {_escaped(run.name)}: seed {run.seed}, {run.status}, {place}")
    return "\n".join(lines) + "\n"


def table_csv(comparison: Comparison) -> str:
    """One line per row, numbers unrounded; an interval's ends in separate columns, empty if there is none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    estimates = ("final", "best", "test", "difference")
    ends = [f"{name}{end}" for name in estimates for end in ("", "_low", "_high", "_over")]
    costs = ("steps", "seconds_per_step", "seconds_total", "peak_memory_gib", "status")
    writer.writerow(["runs", "seeds", *comparison.settings, *ends, "best_step", *costs])
    for row in comparison.rows:
        found: list[object] = []
        for name in estimates:
            value: Estimate | None = getattr(row, name)
            found += [""] * 4 if value is None else [value.value, value.low, value.high, value.over]
        names, seeds = (";".join(getattr(run, key) for run in row.runs) for key in ("name", "seed"))
        rest = [getattr(row, name) for name in ("best_step", *costs)]
        writer.writerow([names, seeds, *(row.settings[name] for name in comparison.settings), *found, *rest])
    return out.getvalue()


def _cells(comparison: Comparison) -> list[list[str]]:
    columns: dict[str, Cell] = {"run": lambda row: row.label}
    columns |= {name: lambda row, name=name: row.settings[name] for name in comparison.settings}  # type: ignore[misc]
    columns["seed"] = lambda row: ", ".join(run.seed for run in row.runs)
    columns[f"final {comparison.metric}"] = lambda row: _estimate(row.final)
    columns["best"] = lambda row: _estimate(row.best) + ("" if row.best_step is None else f" at {row.best_step}")
    if any(row.test is not None for row in comparison.rows):
        columns[f"test {comparison.figure}"] = lambda row: _estimate(row.test)
    if comparison.baseline is not None:
        columns["difference"] = lambda row: _estimate(row.difference, signed=True)
    columns |= {
        "s/step": lambda row: _number(row.seconds_per_step, 2),
        "s total": lambda row: _number(row.seconds_total, 0),
        "peak GiB": lambda row: _number(row.peak_memory_gib, 2),
        "steps": lambda row: str(row.steps),
        "status": lambda row: row.status,
    }
    return [list(columns), *([cell(row) for cell in columns.values()] for row in comparison.rows)]


def _estimate(value: Estimate | None, signed: bool = False) -> str:
    if value is None:
        return ABSENT
    sign = "+" if signed else ""
    shown = f"{value.value:{sign}.4g}"
    return shown if value.low is None else f"{shown} [{value.low:{sign}.4g}, {value.high:{sign}.4g}]"


def _number(value: float | None, digits: int) -> str:
    return ABSENT if value is None else f"{value:.{digits}f}"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
