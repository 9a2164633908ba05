"""Runs read from their folders: config.yaml, metrics.csv, summary.json, test_after.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.compare.records import PromptScores, RunRecord, Series, read_scores
from src.config.errors import UserError
from src.loggers.facts import run_parameters
from src.loggers.mlflow_journal import read_journal
from src.runs.config import read_run_config
from src.runs.files import damaged, read_metrics, read_text
from src.runs.folder import RunFolder


def find_runs(path: Path) -> list[Path]:
    """`path` itself if it is a run's folder, else the runs directly in it, sorted by name.

    Raises:
        UserError: if there are none.
    """
    if RunFolder(path).config.is_file():
        return [path]
    found = sorted(child for child in path.iterdir() if RunFolder(child).config.is_file())
    if not found:
        raise UserError(f"runs={path}: no run there (a run's folder holds a config.yaml); give another folder")
    return found


def read_run(path: Path) -> RunRecord:
    """The run of a folder, whether or not it is finished.

    Raises:
        UserError: for a file that cannot be read, with its name.
    """
    folder = RunFolder(path)
    series = _metrics(folder.metrics)
    summary = folder.read_summary()
    known: Mapping[str, Any] = summary or {}
    steps = int(known.get("steps", max((step for values in series.values() for step, _ in values), default=0)))
    return RunRecord(
        name=path.resolve().name,
        status=_status(summary),
        folder=path,
        parameters=run_parameters(read_run_config(folder.config)),
        metrics=frozenset(series),
        history=lambda name: series.get(name, ()),
        scores=scores_of(folder),
        steps=steps,
        seconds_per_step=known.get("seconds_per_step", seconds_per_step(series.get("seconds", ()))),
        seconds_total=known.get("seconds_total"),
        peak_memory_gib=known.get("peak_memory_gib"),
        commit=known.get("git_commit"),
        run_id=_mlflow_run(path),
    )


def scores_of(folder: RunFolder) -> tuple[PromptScores, ...]:
    """Every test sample's scores after training; empty if the run did not get that far, or has no such file."""
    path = folder.test_samples("after")
    if not path.is_file():
        return ()
    fix = "delete it, and the run is compared without its single scores"
    try:
        return read_scores(read_text(path, fix))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}", fix) from error


def seconds_per_step(seconds: Series) -> float | None:
    """The mean over the steps so far, of the ``seconds`` that each rollout with its updates took."""
    return sum(value for _, value in seconds) / max(step for step, _ in seconds) if seconds else None


def _status(summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return "unfinished"  # a folder cannot tell an active run from a killed one
    if summary.get("interrupted_by_signal") is not None:
        return "interrupted"
    return "finished" if summary.get("finished") else "unfinished"


def _metrics(path: Path) -> dict[str, Series]:
    if not path.is_file():
        return {}
    columns: dict[str, list[tuple[int, float]]] = {}
    for step, row in read_metrics(path).items():
        for name, value in row.items():
            columns.setdefault(name, []).append((step, float(value)))
    return {name: tuple(sorted(values)) for name, values in columns.items()}


def _mlflow_run(path: Path) -> str | None:
    """The MLflow run that belongs to the folder."""
    journal = read_journal(RunFolder(path))
    return None if journal is None else journal.run_id
