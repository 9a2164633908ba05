"""Runs read from an MLflow store: a local SQLite file or a server, as `src.loggers.mlflow_logger` writes them."""

from __future__ import annotations

import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

from src.cli.errors import nearest
from src.compare.folders import scores_of, seconds_per_step
from src.compare.records import PromptScores, RunRecord, Series, read_scores
from src.config.errors import UserError
from src.loggers.store import check_artifacts, locate_store, named
from src.runs.folder import RunFolder

STATUS = {"FINISHED": "finished", "RUNNING": "running", "SCHEDULED": "running", "FAILED": "failed", "KILLED": "killed"}


def read_experiment(tracking_uri: str | None, experiment: str, root: Path = Path("runs")) -> list[RunRecord]:
    """The training runs of an experiment, oldest first; a sweep's parent, which trained nothing, is left out.

    tracking_uri: None is MLFLOW_TRACKING_URI, else ``sqlite:///<root>/mlflow.db``. Metrics are fetched when asked for.

    Raises:
        UserError: for a store that is missing or cannot be read, or an unknown experiment.
    """
    # Looking for runs must not create a database.
    store = locate_store(tracking_uri, root, key="tracking_uri", create=False)
    if store.unreachable is not None:
        raise UserError(
            f"tracking_uri={store.uri}: no MLflow server answers there ({store.unreachable}); start it, or give runs="
        )
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from sqlalchemy.exc import SQLAlchemyError

    try:
        client = MlflowClient(store.uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            known = [item.name for item in client.search_experiments()]
            there = f"{nearest(experiment, known)} There are: {', '.join(known)}"
            raise UserError(f"experiment={experiment}: not in {store.uri}.{there}")
        runs = _all_runs(client, found.experiment_id)
        for run in runs:
            check_artifacts(run.info.artifact_uri, store.uri, named(tracking_uri))
        return [_record(client, run) for run in runs if "sweep" not in run.data.tags]
    except (MlflowException, SQLAlchemyError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"tracking_uri={store.uri}: MLflow cannot read it ({first})") from error


def _all_runs(client: Any, experiment_id: str) -> list[Any]:
    runs, token = [], None
    while True:
        page = client.search_runs([experiment_id], order_by=["attributes.start_time ASC"], page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def _record(client: Any, run: Any) -> RunRecord:
    info, data = run.info, run.data
    named = data.tags.get("run_folder")
    folder = Path(named) if named and RunFolder(Path(named)).config.is_file() else None
    latest = data.metrics
    history = cache(partial(_history, client, info.run_id))
    ended = info.end_time - info.start_time if info.end_time else None
    per_step = latest.get("seconds_per_step")
    if per_step is None and "seconds" in latest:
        per_step = seconds_per_step(history("seconds"))
    return RunRecord(
        name=info.run_name,
        status=STATUS.get(info.status, info.status.lower()),
        folder=folder,
        parameters=data.params,
        metrics=frozenset(latest),
        history=history,
        scores=scores_of(RunFolder(folder)) if folder is not None else _logged_scores(client, info.run_id),
        steps=max((step for step, _ in history("lr")), default=0),
        seconds_per_step=per_step,
        seconds_total=latest.get("seconds_total", None if ended is None else ended / 1000),
        peak_memory_gib=latest.get("peak_memory_gib"),
        commit=data.tags.get("git_commit"),
        run_id=info.run_id,
    )


def _history(client: Any, run_id: str, name: str) -> Series:
    return tuple(sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, name)))


def _logged_scores(client: Any, run_id: str) -> tuple[PromptScores, ...]:
    """The test prompts' scores among the artifacts, where the run's folder is on another machine."""
    name = RunFolder(Path()).test_samples("after").name
    if name not in {item.path for item in client.list_artifacts(run_id)}:
        return ()
    with tempfile.TemporaryDirectory() as scratch:
        return read_scores(Path(client.download_artifacts(run_id, name, scratch)).read_text(encoding="utf-8"))
