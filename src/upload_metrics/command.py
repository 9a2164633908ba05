"""Write to MLflow what did not get there: ``python -m src.upload_metrics run=RUN``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from src.cli import command as cli
from src.cli.compose import MLFLOW_EXPERIMENT
from src.config.errors import UserError
from src.config.masking import masked_text

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from src.loggers.mlflow_journal import Journal
    from src.loggers.mlflow_writer import Metric, Writer
    from src.runs.folder import RunFolder


def upload(config: DictConfig) -> int:
    """Fill the run's MLflow run from its folder, or begin one; returns the exit code.

    Only what is missing is written, so that a second time changes nothing: of each metric the steps that the store
    has no entry for, the parameters, data sets, pictures and artifacts it lacks. A run that was logged elsewhere, or
    to metrics.csv alone, gets an MLflow run of its own. Not for a run that is still going on: it may be writing the
    same.
    """
    from src.runs.folder import RunFolder
    from src.runs.folder_lock import owned, owner
    from src.trained import find_run

    if config.run is None:
        raise UserError("run: expected a run folder, as in run=runs/bicot_lora-20260101-120000")
    folder = RunFolder(find_run(config.run))
    if (who := owner(folder.path)) is not None:
        raise UserError(f"run={config.run}: the run is still active ({who}); upload it when it has ended")
    rows = metric_rows(folder)
    with owned(folder.path, f"run={config.run}"):
        return _upload(config, folder, rows)


def _upload(config: DictConfig, folder: RunFolder, rows: list[Metric]) -> int:
    from src.loggers.mlflow_journal import write_journal
    from src.loggers.store import check_artifacts, locate_store, named, noted_uri

    journal, summary = journal_of(folder), folder.read_summary() or {}
    experiment = config.experiment_name or journal.experiment
    root = folder.path.parent
    noted = config.tracking_uri or noted_uri(journal.tracking_uri, root)
    store = locate_store(noted, root, key="tracking_uri")
    if store.unreachable is not None:
        raise UserError(f"tracking_uri={store.uri}: no MLflow server answers there ({store.unreachable})")
    from mlflow.exceptions import MlflowException

    from src.loggers.mlflow_writer import Writer

    writer = Writer(
        lambda kind, text: print(masked_text(f"mlflow: {text}"), file=sys.stderr) if kind == "warning" else None
    )
    try:
        writer.prepare(store.uri, experiment, None if store.artifacts is None else str(store.artifacts))
        known = journal.run_in(store.uri)
        run_id = writer.begin(known, journal.name, dict(journal.tags), dict(journal.parameters))
        check_artifacts(writer.client.get_run(run_id).info.artifact_uri, store.uri, named(config.tracking_uri))
        # Before the first figure: cut off here, the next time goes on in the same run.
        write_journal(folder, journal.with_run(store.uri, run_id, pending=True))
        if journal.datasets:
            writer.fill_datasets(journal.datasets)
        written = writer.fill(rows)
        files = upload_files(writer, folder)
    except (MlflowException, ValueError) as error:
        raise UserError(f"tracking_uri={store.uri}: MLflow cannot use it ({error}); try again later") from error
    writer.finish("FINISHED" if summary.get("finished") else "KILLED")
    write_journal(folder, journal.with_run(store.uri, run_id, pending=False))
    where = masked_text(f"{store.uri}, run {run_id}")
    print(f"{where}: {written} of {len(rows)} figures and {files} files were missing and have been uploaded")
    return 0


def metric_rows(folder: RunFolder) -> list[Metric]:
    """Every figure of metrics.csv as (name, value, milliseconds since 1970, step), the time being the file's.

    Raises:
        UserError: if there is no such file, or it is damaged.
    """
    from src.runs.files import read_metrics
    from src.trained import nearest_run

    if not folder.metrics.is_file():
        near = nearest_run(folder.path)
        raise UserError(f"run={folder.path}: no metrics.csv there; give a run folder of src.train.{near}")
    stamp = int(folder.metrics.stat().st_mtime * 1000)
    return [
        (name, float(value), stamp, step)
        for step, row in sorted(read_metrics(folder.metrics).items())
        for name, value in row.items()
    ]


def journal_of(folder: RunFolder) -> Journal:
    """The run's journal; made up from its folder where another logger was chosen."""
    from src.loggers.facts import run_parameters
    from src.loggers.mlflow_journal import Journal, read_journal
    from src.runs.config import read_run_config

    known = read_journal(folder)
    if known is not None:
        return known
    if not folder.config.is_file():
        raise UserError(f"run={folder.path}: no config.yaml there; give a run folder of src.train")
    config = read_run_config(folder.config)
    summary = folder.read_summary() or {}
    path, run = folder.path.resolve(), config.get("run", {})
    if not {"name", "seed"} <= run.keys():
        raise UserError(f"{folder.config}: has no run.name and run.seed; give a run folder of src.train")
    facts = {"experiment": run["name"], "seed": run["seed"], "run_folder": path}
    facts |= {name: summary[name] for name in ("hardware", "git_commit") if summary.get(name)}
    tags = {name: str(value) for name, value in facts.items()}
    return Journal(None, "bicot_grpo", path.name, tags, run_parameters(config))


def upload_files(writer: Writer, folder: RunFolder) -> int:
    """Upload the run's artifacts and validation sheets that the store lacks; returns how many (a folder is one)."""
    from src.runs.folder import leads_out
    from src.training.callbacks.sheets import KEY

    there = {item.path for item in writer.client.list_artifacts(writer.run_id)}
    sheets = [folder.samples("before"), folder.samples("after")]
    paths = (folder.config, *sheets, folder.adapter, folder.test_samples("after"), folder.summary)
    missing = [path for path in paths if path.exists() and path.name not in there]
    pictures = folder.validation_sheets()
    # A run folder may be somebody else's: only what lies in it is sent away.
    for path in (*missing, *pictures.values()):
        if (link := leads_out(folder.path, path)) is not None:
            raise UserError(f"{link}: is a link out of the run's folder; replace it with the file itself, or delete it")
    for path in missing:
        if path.is_dir():
            writer.client.log_artifacts(writer.run_id, str(path), path.name)
        else:
            writer.client.log_artifact(writer.run_id, str(path))
    drawn = [writer.fill_image(str(path), KEY, step) for step, path in pictures.items()]
    return len(missing) + sum(drawn)


COMMAND = cli.Command(
    name="upload_metrics",
    about="Write a run's figures, settings and files to MLflow where they are missing; a second time changes nothing.",
    examples=("run=runs/bicot_lora-20260101-120000", "run=RUN tracking_uri=http://127.0.0.1:5000"),
    task=upload,
    config="upload_metrics",
    groups=(),
    keys=(
        "run=RUN                               a run folder, of a run that is over",
        "tracking_uri=URI                      MLflow's; else the one the run was logged to",
        "experiment=NAME                       else the run's",
    ),
    own_words=MLFLOW_EXPERIMENT,
)


def main() -> int:
    """Entry point."""
    return cli.run(COMMAND)


if __name__ == "__main__":
    sys.exit(main())
