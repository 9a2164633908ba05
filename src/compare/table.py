"""The comparison itself: runs grouped by what differs, their figures with intervals, the best one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from src.compare.records import RunRecord, Series, by_prompt, finite
from src.intervals import Estimate, over_prompts, over_seeds, paired_difference

ABSENT = "-"


@dataclass(frozen=True, slots=True)
class Row:
    """One run, or several that differ only in their seeds.

    settings: of those that differ between rows. final, best: the metric's last and best value; None where it was
    never logged. test: the figure on the test prompts after training. difference: test minus the baseline's.
    Costs are means over the runs that have them; memory is the largest.
    """

    label: str
    runs: tuple[RunRecord, ...]
    settings: Mapping[str, str]
    final: Estimate | None
    best: Estimate | None
    best_step: int | None
    test: Estimate | None
    difference: Estimate | None
    status: str
    steps: int
    seconds_per_step: float | None
    seconds_total: float | None
    peak_memory_gib: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows, the best first. figure: the metric's name on the test prompts; best_run: None if no run logged it."""

    metric: str
    mode: str
    figure: str
    settings: tuple[str, ...]
    rows: tuple[Row, ...]
    best_run: RunRecord | None
    baseline: str | None
    notes: tuple[str, ...]


def compare(records: Sequence[RunRecord], metric: str, mode: str = "max", baseline: str | None = None) -> Comparison:
    """Group, sum up and rank runs by their best value of `metric`.

    mode: "max" where higher is better, else "min". baseline: a run's name; the test prompts' figures of each other row
    are compared with those of its row, prompt by prompt. Raises ValueError without records.
    """
    if not records:
        raise ValueError("nothing to compare")
    settings = differing([record.compared for record in records])
    figure = metric.removeprefix("validation/").removeprefix("test/")
    groups = grouped(records)
    base = next((group for group in groups if baseline in {run.name for run in group}), None)
    rows = [_row(group, settings, metric, mode, figure, base) for group in groups]
    sign = -1 if mode == "max" else 1
    rows.sort(key=lambda row: (row.best is None, 0.0 if row.best is None else sign * row.best.value))
    reached = [(sign * best[1], run) for run in rows[0].runs if (best := _best(run, metric, mode)) is not None]
    best_run = min(reached, key=lambda pair: pair[0])[1] if reached else None
    notes = _notes(records, rows, base)
    return Comparison(metric, mode, figure, settings, tuple(rows), best_run, baseline, notes)


def differing(parameters: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    """The names whose values are not the same everywhere; a name that is missing somewhere counts as different."""
    names = dict.fromkeys(name for each in parameters for name in each)
    return tuple(name for name in names if len({each.get(name, ABSENT) for each in parameters}) > 1)


def grouped(records: Sequence[RunRecord]) -> list[tuple[RunRecord, ...]]:
    """Finished runs of equal settings and different seeds together; any other run by itself."""
    groups: dict[object, list[RunRecord]] = {}
    for number, record in enumerate(records):
        settings = tuple(sorted(record.compared.items()))
        key: object = (settings, record.steps) if record.status == "finished" else number
        while any(other.seed == record.seed for other in groups.get(key, ())):
            key = (key, "again")  # the same seed twice is one seed, not two
        groups.setdefault(key, []).append(record)
    return [tuple(group) for group in groups.values()]


def _row(
    runs: tuple[RunRecord, ...],
    settings: Sequence[str],
    metric: str,
    mode: str,
    figure: str,
    base: tuple[RunRecord, ...] | None,
) -> Row:
    histories = [history for run in runs if (history := finite(run.history(metric)))]
    bests = [reached for run in runs if (reached := _best(run, metric, mode)) is not None]
    test = _test(runs, figure)
    final = over_seeds([history[-1][1] for history in histories]) if histories else None
    best = over_seeds([value for _, value in bests]) if bests else None
    if metric.startswith("test/") and len(runs) == 1 and test is not None:
        final = test
    return Row(
        label=runs[0].name if len(runs) == 1 else f"{runs[0].name} and {len(runs) - 1} more",
        runs=runs,
        settings={name: runs[0].parameters.get(name, ABSENT) for name in settings},
        final=final,
        best=best,
        best_step=bests[0][0] if len(bests) == 1 else None,
        test=test,
        difference=_difference(runs, base, figure),
        status=runs[0].status,
        steps=runs[0].steps,
        seconds_per_step=_mean([run.seconds_per_step for run in runs]),
        seconds_total=_mean([run.seconds_total for run in runs]),
        peak_memory_gib=max((run.peak_memory_gib for run in runs if run.peak_memory_gib is not None), default=None),
    )


def _best(run: RunRecord, metric: str, mode: str) -> tuple[int, float] | None:
    """(step, value) of the best, the earliest where several are equal."""
    history: Series = finite(run.history(metric))
    if not history:
        return None
    return max(history, key=lambda at: at[1]) if mode == "max" else min(history, key=lambda at: at[1])


def _test(runs: Sequence[RunRecord], figure: str) -> Estimate | None:
    """Several seeds: their means' t-interval. One: the bootstrap over its prompts, or the logged mean without any."""
    means, kept = [], []
    for run in runs:
        scores = by_prompt([run.scores], figure)
        logged = finite(run.history(f"test/{figure}"))
        if scores:
            means.append(fmean(scores.values()))
            kept = list(scores.values())
        elif run.status == "finished" and logged:
            means.append(logged[-1][1])
    if not means:
        return None
    return over_prompts(kept) if len(means) == 1 and kept else over_seeds(means)


def _difference(runs: Sequence[RunRecord], base: Sequence[RunRecord] | None, figure: str) -> Estimate | None:
    if base is None or runs is base:
        return None
    ours, theirs = (by_prompt([run.scores for run in group], figure) for group in (runs, base))
    return paired_difference(ours, theirs) if ours and ours.keys() == theirs.keys() else None


def _mean(values: Sequence[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return fmean(told) if told else None


def _notes(records: Sequence[RunRecord], rows: Sequence[Row], base: Sequence[RunRecord] | None) -> tuple[str, ...]:
    notes = []
    if any(len(row.runs) > 1 for row in rows):
        notes.append("final and best of several seeds: mean and 95 % t-interval over the seeds")
    if any(len(row.runs) == 1 for row in rows):
        notes.append("final and best of a single run have no interval: one seed says nothing of others")
    if any(row.test is not None and row.test.over == "prompts" for row in rows):
        notes.append("test of a single run: 95 % bootstrap interval over the test prompts, for this seed only")
    if any(row.test is not None and not row.test.over for row in rows):
        notes.append("test without an interval: no scores of single prompts are kept (test_after.jsonl)")
    if base is not None:
        notes.append(f"difference: test minus that of {base[0].name}, paired by prompt, 95 % bootstrap interval")
        other = [row.label for row in rows if row.difference is None and row.runs is not base]
        if other:
            notes.append(f"no difference for {', '.join(other)}: the same test prompts' scores are not kept for both")
    commits = {record.commit for record in records if record.commit}
    if len(commits) > 1:
        notes.append(f"the runs are of {len(commits)} different states of the code: {', '.join(sorted(commits))}")
    return tuple(notes)
