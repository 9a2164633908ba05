"""MLflow as a Lightning logger: one run, its metrics by step, samples, adapter and config as artifacts.

MLflow itself is imported in a process of its own only (`src.loggers.mlflow_writer` says why). This side
checks the store before any weight is loaded, sends messages through a queue, and never waits inside a step.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from src.config import UserError
from src.loggers.facts import RunFacts, is_rank_zero
from src.loggers.store import Store, locate_store
from src.training.console import say
from src.training.provenance import git_commit, hardware
from src.training.run_folder import write_json

WRITER = Path(__file__).with_name("mlflow_writer.py")
SEND_EVERY = 5.0  # seconds between batches of metrics
START_SECONDS = 180.0  # for importing MLflow, migrating a store, creating the run
PATIENCE_SECONDS = 10.0  # until the user is told what the end of a run waits for
FINISH_SECONDS = 300.0  # for uploads at the end


class NoAnswer(RuntimeError):
    """The writer is at work, but did not answer in time."""


class WriterProcess:
    """The writer and the two threads that keep this process from ever waiting for it."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        # -P: the script's own folder must not come before the packages it imports.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WRITER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # Ctrl-C is for the training process; this one ends after it
            text=True,
            encoding="utf-8",
        )
        self._outgoing: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._warnings: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._died: str | None = None
        for work in (self._send_all, self._receive_all):
            threading.Thread(target=work, name=f"mlflow {work.__name__}", daemon=True).start()

    def send(self, kind: str, content: Any) -> None:
        """Queue a message; returns at once."""
        self._outgoing.put(json.dumps([kind, content], ensure_ascii=False) + "\n")

    def wait_for(self, kind: str, seconds: float) -> str:
        """The text of the next answer of this kind.

        Raises:
            RuntimeError: with what went wrong, if the writer failed or died; NoAnswer if it took too long.
        """
        until = time.monotonic() + seconds
        while True:
            if self._died is not None and self._answers.empty():
                raise RuntimeError(self._died)
            try:
                answer, text = self._answers.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise NoAnswer(f"no answer within {seconds:.0f} s") from None
            if answer == kind:
                return text
            if answer in ("failed", "died"):
                raise RuntimeError(text)

    def tell_warnings(self) -> None:
        """Pass on what the writer had to say since the last time."""
        while not self._warnings.empty():
            say(f"mlflow: {self._warnings.get()} (the run goes on; metrics.csv has everything)")

    def close(self) -> None:
        """No message will follow: the writer closes an open run as KILLED and ends."""
        self._outgoing.put(None)

    def wait(self, seconds: float) -> None:
        """Wait for the process to end."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _send_all(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        try:
            while (line := self._outgoing.get()) is not None:
                pipe.write(line)
                pipe.flush()
            pipe.close()
        except (BrokenPipeError, ValueError):
            pass  # the receiving thread tells that the process ended

    def _receive_all(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        last = ""
        for line in pipe:
            last, text = json.loads(line)
            if last == "warning":
                self._warnings.put(text)
            else:
                self._answers.put((last, text))
        if last not in ("finished", "failed"):
            words = f"its process ended: {self._last_words()}"
            self._warnings.put(words)
            self._answers.put(("died", words))
            self._died = words

    def _last_words(self) -> str:
        self._process.wait(10)
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"ended with code {self._process.returncode}"


class MLflowLogger(Logger):
    """One MLflow run a training run; a resumed run goes on in the same one, without a step written twice.

    The store is checked and its process started at once; the MLflow run itself begins with the first
    metrics, so that a start that fails for another reason leaves no trace. Only rank 0 writes.

    Args:
        run: folder, settings and whether a signal came.
        tracking_uri: MLflow's; None: MLFLOW_TRACKING_URI, else ``sqlite:///<run.root>/mlflow.db``.
        experiment: MLflow's experiment, created where it does not exist.
        parent: id of the MLflow run this one stands under (a sweep's).
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
            self._writer = _prepared(self.store, experiment)

    @property
    def name(self) -> str:
        return self.experiment_name

    @property
    def version(self) -> str | None:
        """The MLflow run's id, once it began."""
        return self.run_id

    @property
    def record(self) -> Path:
        """Where the run folder keeps which MLflow run is its own."""
        return self.run.folder.path / "mlflow.json"

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        self._parameters |= {name: str(value) for name, value in _mapping(params).items()}

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._closed:
            return
        self._begin()
        # A server may still refuse: no step without it. A local store was checked already, and its first
        # migration may go on meanwhile; what goes wrong there shows with the next figures.
        self._meet_run(START_SECONDS if self.store.artifacts is None else 0.0)
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
        if self._begun and not self._closed:
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
        """Wait for what is still to be written; a failure is told, the run is over anyway."""
        try:
            self._meet_run(START_SECONDS)
            try:
                writer.wait_for("finished", PATIENCE_SECONDS)
            except NoAnswer:
                say("mlflow: still writing ...")
                writer.wait_for("finished", FINISH_SECONDS)
        except (RuntimeError, UserError) as error:
            say(f"mlflow: the run could not be closed there: {error} (metrics.csv has everything)")
        writer.tell_warnings()

    def _begin(self) -> None:
        """Ask for the MLflow run to start or to go on, once."""
        if self._begun or self._writer is None:
            return
        self._begun = True
        message = {
            "run_id": self._recorded(),
            # The folder's name, unlike run.name, tells two runs of one recipe apart.
            "name": self.run.folder.path.resolve().name,
            "tags": self._tags(),
            "parameters": self._parameters,
            "datasets": [asdict(facts) for facts in self.run.datasets],
            "system_metrics_every": self.system_metrics_every,
        }
        self._writer.send("begin", message)

    def _meet_run(self, seconds: float) -> None:
        """Take the MLflow run's id, once it is there; with 0 seconds it only looks.

        Raises:
            UserError: if the store cannot be used.
        """
        writer = self._writer
        if self.run_id is not None or writer is None:
            return
        try:
            self.run_id = writer.wait_for("begun", seconds)
        except RuntimeError as error:
            if isinstance(error, NoAnswer) and not seconds:
                return
            self._closed = True
            writer.close()
            raise _unusable(self.store, error) from None
        write_json(self.record, {"tracking_uri": self.store.uri, "run_id": self.run_id})

    def _recorded(self) -> str | None:
        """The MLflow run of an earlier sitting in the same store."""
        if not self.record.is_file():
            return None
        known = json.loads(self.record.read_text(encoding="utf-8"))
        return known["run_id"] if known["tracking_uri"] == self.store.uri else None

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

    def _send_artifacts(self, *paths: Path) -> None:
        assert self._writer is not None
        for path in paths:
            if path not in self._sent and path.exists():
                self._sent.add(path)
                self._writer.send("artifact", str(path.resolve()))


def start_parent(tracking_uri: str | None, root: Path, experiment: str, name: str, tags: Mapping[str, str]) -> str:
    """An MLflow run for a sweep's jobs to stand under, closed at once; returns its id for ``logger.parent``.

    Raises:
        UserError: for a store that cannot be used.
    """
    store = _usable_store(tracking_uri, root)
    writer = _prepared(store, experiment)
    try:
        writer.send("begin", {"run_id": None, "name": name, "tags": dict(tags), "parameters": {}})
        run_id = writer.wait_for("begun", START_SECONDS)
        writer.send("finish", "FINISHED")
        writer.wait_for("finished", START_SECONDS)
    except RuntimeError as error:
        raise _unusable(store, error) from None
    finally:
        writer.close()
        writer.wait(10)
    return run_id


def _usable_store(tracking_uri: str | None, root: Path) -> Store:
    if find_spec("mlflow") is None:
        raise UserError("logger=mlflow: mlflow is not installed; pip install mlflow, or choose logger=csv")
    return locate_store(tracking_uri, root)


def _prepared(store: Store, experiment: str) -> WriterProcess:
    """A writer that has begun to connect."""
    writer = WriterProcess()
    artifacts = None if store.artifacts is None else str(store.artifacts)
    writer.send("prepare", {"uri": store.uri, "experiment": experiment, "artifacts": artifacts})
    return writer


def _unusable(store: Store, error: RuntimeError) -> UserError:
    return UserError(
        f"logger.tracking_uri={store.uri}: MLflow cannot use it ({error}); correct it, or choose logger=csv"
    )


def _mapping(params: Any) -> Mapping[str, Any]:
    return vars(params) if isinstance(params, Namespace) else params
