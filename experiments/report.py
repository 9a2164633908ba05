"""A study's runs as a table with intervals, two CSV files and a plot."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from src.compare.curves import mean_series
from src.compare.folders import read_run
from src.compare.records import by_prompt
from src.intervals import Estimate, over_seeds, paired_difference
from src.runs.folder import RunFolder

Arms = Mapping[str, Sequence[Path]]
FIGURE = "all_correct"


def report(arms: Arms, baseline: str, figures: Sequence[str], out: Path) -> None:
    """Print the table; write ``runs.csv`` (a row a run), ``arms.csv`` (a row an arm) and ``study.png`` to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    runs = [run_row(arm, folder, figures) for arm, folders in arms.items() for folder in folders]
    write_csv(out / "runs.csv", runs)
    rows = [arm_row(arm, arms, baseline, figures) for arm in arms]
    write_csv(out / "arms.csv", [flat(row) for row in rows])
    plot(arms, rows, out / "study.png")
    print(table(rows))


def summary_of(folder: Path) -> dict[str, Any]:
    summary = RunFolder(folder).read_summary()
    if summary is None:
        raise SystemExit(f"{folder}: no summary.json; the run is not finished")
    return summary


def run_row(arm: str, folder: Path, figures: Sequence[str]) -> dict[str, Any]:
    """One run's figures, from its summary."""
    summary = summary_of(folder)
    names = ("seed", "steps", "best_step", "all_correct_before", "all_correct_after", "reward_before", "reward_after")
    row = {"arm": arm, **{name: summary[name] for name in names}}
    row |= {f"{kind}_after": found["after"][FIGURE] for kind, found in summary["by_kind"].items()}
    row |= {name: summary.get(name, "") for name in figures}
    row["reward_warnings"] = " / ".join(map(str, summary["reward_warnings"]))
    history = read_run(folder).history
    row |= {name: series[-1][1] for name in ("plan/kl", "image/kl", "plan/entropy") if (series := history(name))}
    costs = ("seconds_per_step", "seconds_total", "hardware", "git_commit")
    return row | {name: summary[name] for name in costs}


def arm_row(arm: str, arms: Arms, baseline: str, figures: Sequence[str]) -> dict[str, Any]:
    """An arm's means with intervals over its seeds, and its difference to the baseline over seeds and over prompts."""
    summaries = {int(found["seed"]): found for found in map(summary_of, arms[arm])}
    row: dict[str, Any] = {
        "arm": arm,
        "seeds": len(summaries),
        "before": fmean(found["all_correct_before"] for found in summaries.values()),
        "after": over_seeds([found["all_correct_after"] for found in summaries.values()]),
    }
    theirs = {int(found["seed"]): found for found in map(summary_of, arms.get(baseline, ()))}
    shared = sorted(summaries.keys() & theirs.keys())
    if arm != baseline and shared:
        row["difference"] = over_seeds(
            [summaries[seed]["all_correct_after"] - theirs[seed]["all_correct_after"] for seed in shared]
        )
        row["difference_over_prompts"] = paired_difference(
            by_prompt([read_run(folder).scores for folder in arms[arm]], FIGURE),
            by_prompt([read_run(folder).scores for folder in arms[baseline]], FIGURE),
        )
    for kind in next(iter(summaries.values()))["by_kind"]:
        row[kind] = over_seeds([found["by_kind"][kind]["after"][FIGURE] for found in summaries.values()])
    for name in figures:
        row[name] = fmean(float(found[name]) for found in summaries.values())
    row["seconds_per_step"] = fmean(found["seconds_per_step"] for found in summaries.values())
    return row


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """Estimates as three columns."""
    cells: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Estimate):
            cells |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        else:
            cells[name] = value
    return cells


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown; intervals are those of 95 %."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    lines += ["| " + " | ".join(cell(row.get(name)) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


def cell(value: Any) -> str:
    if isinstance(value, Estimate):
        around = "" if value.low is None else f" ({value.low:.3f} to {value.high:.3f})"
        return f"{value.value:.3f}{around}"
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows whose keys need not be the same; numbers with five digits."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({name: f"{v:.5g}" if isinstance(v, float) else v for name, v in row.items()})


def plot(arms: Arms, rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Left: validation all-correct by step, mean over seeds, each seed thin. Right: test all-correct by kind."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    kinds = list(summary_of(next(iter(arms.values()))[0])["by_kind"])
    width = 0.8 / len(rows)
    for number, row in enumerate(rows):
        colour = f"C{number % 10}"
        histories = [read_run(folder).history(f"validation/{FIGURE}") for folder in arms[row["arm"]]]
        for history in histories if len(histories) > 1 else ():
            left.plot(*zip(*history, strict=True), color=colour, alpha=0.3, linewidth=0.8)
        left.plot(*zip(*mean_series(histories), strict=True), color=colour, marker="o", markersize=3, label=row["arm"])
        for place, name in enumerate(["after", *kinds]):
            values = [
                found["all_correct_after"] if name == "after" else found["by_kind"][name]["after"][FIGURE]
                for found in map(summary_of, arms[row["arm"]])
            ]
            at = place + (number - (len(rows) - 1) / 2) * width
            right.bar(at, fmean(values), width, color=colour, alpha=0.55)
            right.plot([at] * len(values), values, "o", color=colour, markersize=3)
    left.set(xlabel="optimiser step", title="all-correct, validation prompts", ylim=(0, 1))
    right.set(title="all-correct, test prompts: mean, and each seed", ylim=(0, 1))
    right.set_xticks(range(len(kinds) + 1), ["all", *kinds])
    for axis in (left, right):
        axis.grid(alpha=0.3)
    left.legend(fontsize="small", frameon=False)
    figure.savefig(path, dpi=110)
