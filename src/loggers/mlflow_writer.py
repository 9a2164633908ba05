"""The process that talks to MLflow: reads one JSON message per line and answers with one.

It is separate from the training process for three reasons: importing MLflow and the first migration of a
SQLite store take seconds of one core, which pass here while the model loads; the hot loop never waits for a
database or a server; and when the training process dies, the pipe closes and the run is closed as KILLED. Run as a
script by `src.loggers.mlflow_logger`; it imports nothing of this project.

Messages: ``prepare`` (store, experiment), ``begin`` (run), ``datasets``, ``system_metrics``, ``metrics``, ``image``,
``artifact``, ``finish``.
Answers: ``begun`` (with the run's id), ``failed`` or, for a server that does not answer, ``unreachable`` (nothing
further will come), ``warning``, ``lost`` (something was not written), ``finished``.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

# Limits of one request (MLflow's REST API).
METRICS_A_BATCH, PARAMS_A_BATCH = 1000, 100
ATTEMPTS = 4
# Seconds to wait after the last failed attempt, so a dead server does not block messages.
AWAY_SECONDS = 30.0
Metric = tuple[str, float, int, int]  # name, value, milliseconds since 1970, step


class Writer:
    """One MLflow run, written to as messages come."""

    def __init__(self, answer: Callable[..., None]) -> None:
        self.answer = answer
        self.client: Any = None
        self.experiment_id = ""
        self.run_id: str | None = None
        self.resumed = False
        self.uri = ""
        self._written: dict[str, int] = {}
        self._drawn: set[tuple[str, int]] | None = None
        self._system: Any = None
        self._warned: set[str] = set()
        self._away_until = 0.0

    def prepare(self, uri: str, experiment: str, artifacts: str | None) -> None:
        """Connect, migrate a new store, find or create the experiment."""
        with _impatient():
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient

            with _alone(uri):
                self.client, self.uri = MlflowClient(uri), uri
                found = self.client.get_experiment_by_name(experiment)
                if found is not None and found.lifecycle_stage != "active":
                    raise ValueError(f"logger.experiment={experiment}: deleted in this store; choose another name")
                if found is not None:
                    self.experiment_id = found.experiment_id
                    return
                location = None if artifacts is None else Path(artifacts).as_uri()
                try:
                    self.experiment_id = self.client.create_experiment(experiment, artifact_location=location)
                except MlflowException:
                    # Another run created it in the meantime.
                    self.experiment_id = self.client.get_experiment_by_name(experiment).experiment_id

    def begin(self, run_id: str | None, name: str, tags: dict[str, str], parameters: dict[str, str]) -> str:
        """Continue the run `run_id` if the store has it, else start one; returns its id."""
        with _impatient():
            return self._begun(run_id, name, tags, parameters)

    def _begun(self, run_id: str | None, name: str, tags: dict[str, str], parameters: dict[str, str]) -> str:
        if run_id is not None and self._known(run_id):
            self.run_id, self.resumed = run_id, True
            self.client.update_run(run_id, status="RUNNING")
            for key, value in tags.items():
                self.client.set_tag(run_id, key, value)
        else:
            self.run_id = self.client.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id
        self.parameters(parameters)
        return self.run_id

    def parameters(self, parameters: dict[str, str]) -> None:
        """Log parameters; MLflow's are fixed, so a value changed by a resume becomes a tag ``resumed.<name>``."""
        from mlflow.entities import Param

        there = self.client.get_run(self.run_id).data.params if self.resumed else {}
        fresh = [Param(_name(key), value) for key, value in parameters.items() if _name(key) not in there]
        for start in range(0, len(fresh), PARAMS_A_BATCH):
            self.client.log_batch(self.run_id, params=fresh[start : start + PARAMS_A_BATCH])
        for key, value in parameters.items():
            if there.get(_name(key), value) != value:
                self.client.set_tag(self.run_id, f"resumed.{_name(key)}", value)

    def metrics(self, rows: list[Metric]) -> None:
        """Log metrics; a resumed run skips steps that are already there."""
        from mlflow.entities import Metric as Entry

        def send() -> None:
            entries = [
                Entry(_name(name), value, stamp, step)
                for name, value, stamp, step in rows
                if step > self._last_step(_name(name))
            ]
            for start in range(0, len(entries), METRICS_A_BATCH):
                part = entries[start : start + METRICS_A_BATCH]
                self.client.log_batch(self.run_id, metrics=part)

        self._persistently("metrics", send)

    def fill(self, rows: list[Metric]) -> int:
        """Log those metrics whose name has no entry at their step; returns how many. Raises what MLflow raises."""
        from mlflow.entities import Metric as Entry

        missing: list[Metric] = []
        for name in dict.fromkeys(_name(row[0]) for row in rows):
            there = {metric.step for metric in self.client.get_metric_history(self.run_id, name)}
            missing += [row for row in rows if _name(row[0]) == name and row[3] not in there]
        for start in range(0, len(missing), METRICS_A_BATCH):
            part = [Entry(_name(row[0]), *row[1:]) for row in missing[start : start + METRICS_A_BATCH]]
            self.client.log_batch(self.run_id, metrics=part)
        return len(missing)

    def image(self, path: str, key: str, step: int) -> None:
        """A picture of a step; an existing one (a resumed run draws some again) is left unchanged."""
        self._persistently(path, lambda: self.fill_image(path, key, step))

    def fill_image(self, path: str, key: str, step: int) -> bool:
        """`image`; whether it was missing. Raises what MLflow raises."""
        from PIL import Image

        if (key, step) in self._images():
            return False
        with Image.open(path) as picture:
            self.client.log_image(self.run_id, picture.convert("RGB"), key=key, step=step)
        self._images().add((key, step))
        return True

    def artifact(self, path: str) -> None:
        """Upload a file, or a folder under its own name."""
        if Path(path).is_dir():
            self._persistently(path, lambda: self.client.log_artifacts(self.run_id, path, Path(path).name))
        else:
            self._persistently(path, lambda: self.client.log_artifact(self.run_id, path))

    def finish(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        if self._system is not None:
            self._system.finish()
        if self.run_id is not None:
            self._away_until = 0.0  # the last chance
            self._persistently("status", lambda: self.client.set_terminated(self.run_id, status))

    def datasets(self, datasets: Sequence[Mapping[str, Any]]) -> None:
        """The data sets a run uses (`src.loggers.facts.DatasetFacts` as mappings)."""
        self._persistently("datasets", lambda: self.fill_datasets(datasets))

    def fill_datasets(self, datasets: Sequence[Mapping[str, Any]]) -> None:
        """`datasets`; MLflow leaves one that the run has as it is. Raises what MLflow raises."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(
                    name=facts["name"],
                    digest=facts["digest"],
                    source_type="local",
                    source=json.dumps({"uri": facts["source"]}),
                    profile=json.dumps({"num_rows": facts["prompts"]}),
                ),
                [InputTag("mlflow.data.context", facts["context"])],
            )
            for facts in datasets
        ]
        self.client.log_inputs(self.run_id, inputs)

    def system_metrics(self, every: float) -> None:
        """MLflow's own monitor as a thread of this process; it samples the machine, not a process."""
        try:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
        except ImportError as error:
            self.answer("warning", f"no system metrics: {_told(error)}; pip install psutil")
            return
        self._system = SystemMetricsMonitor(
            self.run_id, sampling_interval=every, resume_logging=self.resumed, tracking_uri=self.uri
        )
        self._system.start()

    def _images(self) -> set[tuple[str, int]]:
        """(name, step) of the run's pictures, as far as MLflow's file names tell."""
        if self._drawn is None:
            listed = self.client.list_artifacts(self.run_id, "images") if self.resumed else []
            found = [re.match(r"(.+)[+%]step[+%](\d+)[+%]", Path(item.path).name) for item in listed]
            self._drawn = {(match[1].replace("~", "/"), int(match[2])) for match in found if match is not None}
        return self._drawn

    def _known(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException:
            self.answer("warning", f"run {run_id} is not in the store any more; a new one was started")
            return False

    def _last_step(self, name: str) -> int:
        """The last step of a metric in the store when this process took over the run; -1 for none."""
        if not self.resumed:
            return -1
        if name not in self._written:
            history = self.client.get_metric_history(self.run_id, name)
            self._written[name] = max((metric.step for metric in history), default=-1)
        return self._written[name]

    def _persistently(self, what: str, action: Callable[[], object]) -> None:
        """Try a few times: a SQLite file may be locked, a server briefly unreachable. Then report the loss.

        A server that did not answer is not asked again for a while.
        """
        attempts = 0 if time.monotonic() < self._away_until else 1 if self._warned else ATTEMPTS
        told = "the store did not answer a moment ago"
        for attempt in range(attempts):
            try:
                action()
                return
            except Exception as error:
                told = _told(error)
                if attempt + 1 < attempts:
                    time.sleep(0.5 * 4**attempt)
        if attempts:
            self._away_until = time.monotonic() + AWAY_SECONDS
        self.answer("lost", what)
        if what not in self._warned:
            self._warned.add(what)
            self.answer("warning", f"{what} not written: {told}")


def _name(text: str) -> str:
    """A metric's or parameter's name with only the characters MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", text)[:250]


def _told(error: BaseException) -> str:
    """The first line of an exception, for a person."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def _no_answer(error: BaseException | None) -> bool:
    """Whether a request failed without an answer: refused, timed out, or too many gateway errors."""
    from requests import RequestException

    while error is not None:
        if isinstance(error, RequestException):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _impatient() -> Iterator[None]:
    """A first request that fails soon: MLflow's defaults retry an unreachable server for minutes."""
    patience = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "15"}
    before = {name: os.environ.get(name) for name in patience}
    os.environ.update({name: value for name, value in patience.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Hold a lock on a SQLite store's folder: two runs that start at once must not both migrate a new file."""
    if not uri.startswith("sqlite"):
        yield
        return
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    folder = os.open(Path(re.sub(r"^sqlite(\+\w+)?:///", "", uri)).parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def serve(messages: TextIO, answer: Callable[..., None]) -> None:
    """Handle messages until ``finish`` or the end of the pipe; a run left open then is closed as KILLED."""
    writer = Writer(answer)
    finished = False
    for line in messages:
        kind, given = json.loads(line)
        try:
            if kind == "prepare":
                writer.prepare(**given)
            elif kind == "begin":
                answer("begun", writer.begin(**given))
            elif kind == "datasets":
                writer.datasets(given)
            elif kind == "system_metrics":
                writer.system_metrics(given)
            elif kind == "metrics":
                writer.metrics(given)
            elif kind == "image":
                writer.image(**given)
            elif kind == "artifact":
                writer.artifact(given)
            elif kind == "finish":
                writer.finish(given)
                finished = True
                break
        except Exception as error:
            if kind in ("prepare", "begin"):
                answer("unreachable" if _no_answer(error) else "failed", _told(error))
                return
            answer("warning", f"{kind}: {_told(error)}")
    if not finished:
        writer.finish("KILLED")
    answer("finished", "")


def main() -> None:
    """Speak over the pipes this process was started with; whatever libraries print goes elsewhere."""
    # `Writer` tries again by itself; MLflow's seven retries would keep every message back for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(kind: str, text: str) -> None:
        try:
            answers.write(json.dumps([kind, text]) + "\n")
            answers.flush()
        except BrokenPipeError:
            pass  # the other side has closed; carry on

    with open(0, encoding="utf-8", closefd=False) as messages:
        serve(messages, answer)


if __name__ == "__main__":
    main()
