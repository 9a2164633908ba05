"""Compare runs: ``python -m src.compare experiment=bicot_grpo metric=validation/reward``.

Prints runs side by side (what differs in their configs, final and best value, test score, seconds, memory), writes
``comparison.md``, ``comparison.csv`` and ``curves.png``, and names the best run with the line that exports it.

    python -m src.compare experiment=bicot_grpo
    python -m src.compare runs=runs metric=validation/all_correct baseline=bicot_lora-20260101-120000
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from src.cli import command as cli
from src.cli.compose import MLFLOW_EXPERIMENT
from src.cli.errors import nearest
from src.config.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from src.compare.records import RunRecord

WRITTEN = ("comparison.md", "comparison.csv", "curves.png")
PREFERRED = ("validation/reward", "validation/all_correct", "reward")


def compare(config: DictConfig) -> int:
    """One comparison; returns the exit code."""
    from src.compare import curves, render, table
    from src.runs.output_folder import check_free, written_whole

    out = Path(config.out).expanduser()
    check_free(out, config.overwrite, WRITTEN)
    records = collect(config)
    metric = chosen_metric(records, config.metric)
    if config.baseline is not None:
        _known(config.baseline, (record.name for record in records), "baseline", "no such run among those compared")
    comparison = table.compare(records, metric, config.mode, config.baseline)
    best = closing_line(comparison.best_run)
    with written_whole(out, config.overwrite) as folder:
        (folder / "comparison.md").write_text(render.markdown(comparison, best), encoding="utf-8")
        (folder / "comparison.csv").write_text(render.table_csv(comparison), encoding="utf-8")
        curves.plot(comparison, folder / "curves.png")
    print(f"{render.text(comparison)}\n\n{best}\nwritten: {out}")
    return 0


def collect(config: DictConfig) -> list[RunRecord]:
    """The runs that the config names; a run in both sources counts once.

    Raises:
        UserError: naming what is missing and the nearest match.
    """
    from src.compare.folders import find_runs, read_run

    given = [] if config.runs is None else [str(item) for item in _listed(config.runs)]
    folders = [Path(item).expanduser() for item in given if Path(item).expanduser().is_dir()]
    names = [item for item in given if not Path(item).expanduser().is_dir()]
    if config.experiment_name is None:
        if not given:
            raise UserError("experiment, runs: give one, as in experiment=bicot_grpo or runs=runs")
        for name in names:
            parent = Path(name).expanduser().parent
            there = [child.name for child in parent.iterdir() if child.is_dir()] if parent.is_dir() else []
            raise UserError(f"runs={name}: no such folder.{nearest(Path(name).name, there)}")
    records = []
    if config.experiment_name is not None:
        from src.compare.mlflow_runs import read_experiment

        records = read_experiment(config.tracking_uri, config.experiment_name, Path(config.root))
        for name in names:
            _known(name, (record.name for record in records), "runs", "no such folder, and no such run there")
        records = [record for record in records if not names or record.name in names]
    known = {record.run_id for record in records if record.run_id is not None}
    found = [read_run(path) for folder in folders for path in find_runs(folder)]
    records += [record for record in found if record.run_id not in known]
    if not records:
        raise UserError(f"experiment={config.experiment_name}: has no runs yet")
    return records


def chosen_metric(records: Sequence[RunRecord], asked: str | None) -> str:
    """The metric asked for, or the first preferred one that a run has logged.

    Raises:
        UserError: if no run has logged it.
    """
    logged = sorted(set().union(*(record.metrics for record in records)))
    if not logged:
        raise UserError("none of these runs has logged anything yet")
    if asked is not None:
        _known(asked, logged, "metric", "no run has logged it")
        return asked
    return next((name for name in PREFERRED if name in logged), logged[0])


def closing_line(best: RunRecord | None) -> str:
    """The best run, and how to export it or why that cannot be done here."""
    if best is None:
        return "best: none, no run has logged the metric yet"
    if best.folder is None:
        return f"best: {best.name} (its run folder is not on this machine; export it where it was made)"
    from src.runs.folder import RunFolder

    folder = RunFolder(best.folder)
    if not (folder.adapter / "adapter_config.json").is_file() and best.parameters.get("lora.r", "null") != "null":
        return f"best: {best.name} (nothing to export yet, it is {best.status}: the adapter is written at its end)"
    return f"best: {best.name}\nexport: python -m src.export run={best.folder} out=exported/{best.name}"


def _known(name: str, there: Iterable[str], key: str, trouble: str) -> None:
    names = list(dict.fromkeys(there))
    if name not in names:
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise UserError(f"{key}={name}: {trouble}.{nearest(name, names)} There are: {shown}")


def _listed(value: object) -> list[object]:
    from omegaconf import ListConfig

    return list(value) if isinstance(value, ListConfig) else [value]


COMMAND = cli.Command(
    name="compare",
    about="Compare runs side by side: what differs in their configs, what they reached, what they cost.",
    examples=(
        "experiment=bicot_grpo",
        "experiment=bicot_grpo metric=validation/all_correct tracking_uri=http://127.0.0.1:5000",
        "runs=runs baseline=bicot_lora-20260101-120000 out=comparison",
    ),
    task=compare,
    config="compare",
    groups=(),
    keys=(
        "experiment=NAME            MLflow's experiment (logger.experiment of the runs); runs=[NAME,...] picks of it",
        "tracking_uri=URI           where; else MLFLOW_TRACKING_URI, else sqlite:///runs/mlflow.db",
        "runs=DIR                   a folder of run folders, one run folder, or a list of such",
        "metric=NAME mode=max|min   what to compare by, as it was logged",
        "baseline=RUN               paired differences to this run on the test prompts",
        "out=DIR                    where to; overwrite=true replaces what is there",
    ),
    own_words=MLFLOW_EXPERIMENT,
)


def main() -> int:
    """Entry point."""
    return cli.run(COMMAND)


if __name__ == "__main__":
    sys.exit(main())
