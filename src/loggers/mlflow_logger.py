"""MLflow as a Lightning logger: one run, its metrics by step, samples, adapter and config as artifacts.

MLflow itself is only imported in a separate process (`src.loggers.mlflow_writer` explains why). This side
checks the store before any weight is loaded, sends messages through a queue, and never waits inside a step.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from src.config.errors import UserError
from src.config.masking import masked, masked_text
from src.loggers.facts import RunFacts, is_rank_zero
from src.loggers.mlflow_journal import UPLOAD, Journal, read_journal, write_journal
from src.loggers.store import Store, locate_store
from src.loggers.writer_process import NoAnswer, NoServer, WriterProcess
from src.runs.console import say
from src.runs.provenance import git_commit, hardware

SEND_EVERY = 5.0  # seconds between batches of metrics
START_SECONDS = 180.0  # for importing MLflow, migrating a store, creating the run
PATIENCE_SECONDS = 10.0  # until a message says what the end of a run waits for
FINISH_SECONDS = 300.0  # for uploads at the end


class MLflowLogger(Logger):
    """One MLflow run per training run; a resumed run continues the same one and writes no step twice.

    The store is checked and its process started at once; the MLflow run itself begins with the first
    metrics, so that a start that fails for another reason leaves no trace. Only rank 0 writes.

    Args:
        run: folder, settings and whether a signal came.
        tracking_uri: MLflow's; None: MLFLOW_TRACKING_URI, else ``sqlite:///<run.root>/mlflow.db``.
        experiment: MLflow's experiment, created where it does not exist.
        parent: id of the parent MLflow run (of a sweep).
        system_metrics_every: seconds between samples of the machine's load; None: none.

    Raises:
        UserError: for a store that cannot be used, before anything is loaded or written.
    """

    def __init__(
        self,
        run: RunFacts,
        tracking_uri: str | None = None,
        experiment: str = "bicot_grpo",
        parent: str | None = None,
        system_metrics_every: float | None = None,
    ) -> None:
        super().__init__()
        self.run = run
        self.experiment_name = experiment
        self.parent = parent
        self.system_metrics_every = system_metrics_every
        self.run_id: str | None = None
        self._parameters: dict[str, str] = {}
        self._rows: list[tuple[str, float, int, int]] = []
        self._sent: set[Path] = set()
        self._last_sent = 0.0
        self._begun = False
        self._closed = False
        self._writer: WriterProcess | None = None
        if is_rank_zero():
            self.store = _usable_store(tracking_uri, Path(run.config["run"]["root"]))
            if self.store.unreachable is None:
                self._writer = _prepared(self.store, experiment)
            else:
                self._go_on_without(self.store.unreachable)

    @property
    def name(self) -> str:
        return self.experiment_name

    @property
    def version(self) -> str | None:
        """The MLflow run's id, once it began."""
        return self.run_id

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        self._parameters |= {name: str(value) for name, value in masked(_mapping(params)).items()}

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._closed:
            return
        self._begin()
        if self._writer is None:
            return  # metrics.csv has them
        # A server may still refuse: no step without it. A local store was checked already, and its first
        # migration may go on meanwhile; what goes wrong there shows with the next figures.
        self._meet_run(START_SECONDS if self.store.artifacts is None else 0.0)
        if self._closed:
            return
        stamp = int(time.time() * 1000)
        self._rows += [(name, float(value), stamp, int(step or 0)) for name, value in metrics.items()]
        if time.monotonic() - self._last_sent >= SEND_EVERY:
            self._send_metrics()

    @rank_zero_only
    def log_image(self, key: str, images: Sequence[str | Path], step: int | None = None) -> None:
        """Picture files under one name and step: MLflow's pages show a run's, or several runs', by step."""
        if self._writer is None or self._closed:
            return
        self._begin()
        for path in images:
            message = {"path": str(Path(path).resolve()), "key": key, "step": int(step or 0)}
            self._writer.send("image", message)

    @rank_zero_only
    def save(self) -> None:
        """Send what is waiting: called with every checkpoint."""
        if self._begun and not self._closed and self._writer is not None:
            self._send_metrics()
            self._send_artifacts(self.run.folder.config, self.run.folder.samples("before"))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        writer = self._writer
        if writer is None or self._closed:
            return
        if self._begun:
            folder = self.run.folder
            self.save()
            self._send_artifacts(folder.samples("after"), folder.adapter, folder.test_samples("after"), folder.summary)
            killed = self.run.interrupted()
            writer.send("finish", "KILLED" if killed else "FINISHED" if status == "success" else "FAILED")
            self._await_finish(writer)
        self._closed = True
        writer.close()
        writer.wait(10)

    def _await_finish(self, writer: WriterProcess) -> None:
        """Wait for what is still to be written; a failure is only reported, since the run is over."""
        ended = False
        try:
            self._meet_run(START_SECONDS)
            try:
                writer.wait_for("finished", PATIENCE_SECONDS)
            except NoAnswer:
                say("mlflow: still writing ...")
                writer.wait_for("finished", FINISH_SECONDS)
            ended = True
        except (RuntimeError, UserError) as error:
            say(f"mlflow: the run could not be closed there: {error} (metrics.csv has everything)")
        writer.tell_warnings()
        self._note(self.run_id, writer.lost or not ended)
        if writer.lost or not ended:
            say(f"mlflow: some entries were not written; {UPLOAD} run={self.run.folder.path} adds what is missing")

    def _begin(self) -> None:
        """Ask for the MLflow run to start or continue, once."""
        if self._begun or not is_rank_zero():
            return
        self._begun = True
        self._note(self._recorded(), self._writer is None)
        if self._writer is None:
            return
        begins = {"name": self._name(), "tags": self._tags(), "parameters": self._parameters}
        self._writer.send("begin", {"run_id": self._recorded(), **begins})
        if self.run.datasets:
            self._writer.send("datasets", self._datasets())
        if self.system_metrics_every is not None:
            self._writer.send("system_metrics", self.system_metrics_every)

    def _meet_run(self, seconds: float) -> None:
        """Take the MLflow run's id, once it is there; with 0 seconds it only looks.

        Raises:
            UserError: if the store cannot be used. A server that does not answer is not an error: the run continues.
        """
        writer = self._writer
        if self.run_id is not None or writer is None or self._closed:
            return
        try:
            self.run_id = writer.wait_for("begun", seconds)
        except RuntimeError as error:
            if isinstance(error, NoAnswer) and not seconds:
                return
            self._closed = True
            writer.close()
            if isinstance(error, NoServer):
                self._note(self._recorded(), True)
                self._go_on_without(str(error))
                return
            raise _unusable(self.store, error) from None
        self._note(self.run_id, writer.lost)

    def _go_on_without(self, reason: str) -> None:
        say(
            f"mlflow: no answer from {self.store.uri} ({reason}); the run continues without it, metrics.csv has"
            f" everything: {UPLOAD} run={self.run.folder.path} writes it there later"
        )

    def _note(self, run_id: str | None, pending: bool) -> None:
        """Record in the run folder which MLflow run this is, and whether something is missing there."""
        known = read_journal(self.run.folder)
        if known is None or known.tracking_uri != masked_text(self.store.uri):
            known = Journal(masked_text(self.store.uri), self.experiment_name, self._name())
        changed = replace(
            known,
            tags=known.tags or self._tags(),
            parameters=known.parameters or self._parameters,
            datasets=known.datasets or self._datasets(),
            run_id=run_id,
            pending=pending or known.pending,
        )
        if changed != known:
            write_journal(self.run.folder, changed)

    def _recorded(self) -> str | None:
        """The MLflow run of an earlier start of this run in the same store."""
        known = read_journal(self.run.folder)
        return None if known is None else known.run_in(self.store.uri)

    def _name(self) -> str:
        """The folder's name: unlike run.name it differs between two runs of one recipe."""
        return self.run.folder.path.resolve().name

    def _datasets(self) -> list[dict[str, Any]]:
        return [masked(asdict(facts)) for facts in self.run.datasets]

    def _tags(self) -> dict[str, str]:
        run, commit = self.run.config["run"], git_commit()
        tags = {
            # Each file of configs/experiment gives its runs its own name.
            "experiment": str(run["name"]),
            "seed": str(run["seed"]),
            "hardware": hardware(),
            "run_folder": str(self.run.folder.path.resolve()),
            "mlflow.source.name": "src.train",
            "mlflow.source.type": "LOCAL",
        }
        if commit is not None:
            tags |= {"git_commit": commit, "mlflow.source.git.commit": commit.removesuffix("-dirty")}
        if self.parent is not None:
            tags["mlflow.parentRunId"] = self.parent
        return tags

    def _send_metrics(self) -> None:
        assert self._writer is not None
        if self._rows:
            self._writer.send("metrics", self._rows)
            self._rows = []
        self._last_sent = time.monotonic()
        self._writer.tell_warnings()
        if self._writer.lost:
            self._note(self.run_id, True)

    def _send_artifacts(self, *paths: Path) -> None:
        assert self._writer is not None
        for path in paths:
            if path not in self._sent and path.exists():
                self._sent.add(path)
                self._writer.send("artifact", str(path.resolve()))


def start_parent(
    tracking_uri: str | None, root: Path, experiment: str, name: str, tags: Mapping[str, str]
) -> str | None:
    """The parent MLflow run of a sweep's jobs, closed at once; returns its id for ``logger.parent``.

    None if no server answers: the jobs then have no parent.

    Raises:
        UserError: for a store that cannot be used.
    """
    store = _usable_store(tracking_uri, root)
    if store.unreachable is not None:
        say(f"mlflow: no server answers at {store.uri} ({store.unreachable}); the sweep has no parent run")
        return None
    writer = _prepared(store, experiment)
    try:
        writer.send("begin", {"run_id": None, "name": name, "tags": masked(tags), "parameters": {}})
        run_id = writer.wait_for("begun", START_SECONDS)
        writer.send("finish", "FINISHED")
        writer.wait_for("finished", START_SECONDS)
    except NoServer as error:
        say(f"mlflow: {store.uri} stopped answering ({error}); the sweep has no parent run")
        return None
    except RuntimeError as error:
        raise _unusable(store, error) from None
    finally:
        writer.close()
        writer.wait(10)
    return run_id


def _usable_store(tracking_uri: str | None, root: Path) -> Store:
    if find_spec("mlflow") is None:
        raise UserError("logger=mlflow: mlflow is not installed; pip install mlflow, or use logger=csv")
    return locate_store(tracking_uri, root)


def _prepared(store: Store, experiment: str) -> WriterProcess:
    """A writer that has begun to connect."""
    writer = WriterProcess()
    artifacts = None if store.artifacts is None else str(store.artifacts)
    writer.send("prepare", {"uri": store.uri, "experiment": experiment, "artifacts": artifacts})
    return writer


def _unusable(store: Store, error: RuntimeError) -> UserError:
    return UserError(f"logger.tracking_uri={store.uri}: MLflow cannot use it ({error}); correct it, or use logger=csv")


def _mapping(params: Any) -> Mapping[str, Any]:
    return vars(params) if isinstance(params, Namespace) else params
