"""The process that talks to MLflow: reads one JSON message a line, answers with one.

It stands apart from the training process for three reasons: importing MLflow and the first migration of a
SQLite store take seconds of one core, which pass here while the model loads; the hot loop never waits for a
database or a server; and when the training process dies without a word, the end of the pipe says so and the
run is closed as KILLED. Run as a script by `src.loggers.mlflow_logger`; it imports nothing of this project.

Messages: ``prepare`` (store, experiment), ``begin`` (run), ``metrics``, ``image``, ``artifact``, ``finish``.
Answers: ``begun`` (with the run's id), ``failed`` (nothing further will come), ``warning``, ``finished``.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TextIO

# Limits of one request (MLflow's REST API).
METRICS_A_BATCH, PARAMS_A_BATCH = 1000, 100
ATTEMPTS = 4
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

    def begin(
        self,
        run_id: str | None,
        name: str,
        tags: dict[str, str],
        parameters: dict[str, str],
        datasets: Sequence[dict[str, Any]] = (),
        system_metrics_every: float | None = None,
    ) -> None:
        """Continue the run `run_id` if the store has it, else start one; answers with its id."""
        if run_id is not None and self._known(run_id):
            self.run_id, self.resumed = run_id, True
            self.client.update_run(run_id, status="RUNNING")
            for key, value in tags.items():
                self.client.set_tag(run_id, key, value)
        else:
            self.run_id = self.client.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id
        self.parameters(parameters)
        self.answer("begun", self.run_id)
        if datasets:
            self._persistently("datasets", partial(self._datasets, datasets))
        if system_metrics_every is not None:
            self._watch_system(system_metrics_every)

    def parameters(self, parameters: dict[str, str]) -> None:
        """Log parameters; MLflow's cannot change, so what a resumed run sets anew becomes a tag ``resumed.<name>``."""
        from mlflow.entities import Param

        there = self.client.get_run(self.run_id).data.params if self.resumed else {}
        fresh = [Param(_name(key), value) for key, value in parameters.items() if _name(key) not in there]
        for start in range(0, len(fresh), PARAMS_A_BATCH):
            self.client.log_batch(self.run_id, params=fresh[start : start + PARAMS_A_BATCH])
        for key, value in parameters.items():
            if there.get(_name(key), value) != value:
                self.client.set_tag(self.run_id, f"resumed.{_name(key)}", value)

    def metrics(self, rows: list[Metric]) -> None:
        """Log metrics; a resumed run leaves out the steps that stand there already."""
        from mlflow.entities import Metric as Entry

        entries = [
            Entry(_name(name), value, stamp, step)
            for name, value, stamp, step in rows
            if step > self._last_step(_name(name))
        ]
        for start in range(0, len(entries), METRICS_A_BATCH):
            part = entries[start : start + METRICS_A_BATCH]
            self._persistently("metrics", partial(self.client.log_batch, self.run_id, metrics=part))

    def image(self, path: str, key: str, step: int) -> None:
        """A picture of a step; one that stands there already (a resumed run draws some again) is left as it is."""
        from PIL import Image

        def write() -> None:
            if (key, step) not in self._images():
                with Image.open(path) as picture:
                    self.client.log_image(self.run_id, picture.convert("RGB"), key=key, step=step)
                self._images().add((key, step))

        self._persistently(path, write)

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
            self._persistently("status", lambda: self.client.set_terminated(self.run_id, status))

    def _datasets(self, datasets: Sequence[dict[str, Any]]) -> None:
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

    def _watch_system(self, every: float) -> None:
        """MLflow's own monitor as a thread of this process: what it samples is the machine, not a process."""
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
        """The last step of a metric that stood in the store when this process took the run over; -1 for none."""
        if not self.resumed:
            return -1
        if name not in self._written:
            history = self.client.get_metric_history(self.run_id, name)
            self._written[name] = max((metric.step for metric in history), default=-1)
        return self._written[name]

    def _persistently(self, what: str, action: Callable[[], object]) -> None:
        """Try a few times: a SQLite file may be locked, a server away for a moment. Then warn, once a subject."""
        for attempt in range(ATTEMPTS):
            try:
                action()
                return
            except Exception as error:
                if attempt + 1 < ATTEMPTS:
                    time.sleep(0.5 * 4**attempt)
                elif what not in self._warned:
                    self._warned.add(what)
                    self.answer("warning", f"{what} not written: {_told(error)}")


def _name(text: str) -> str:
    """A metric's or parameter's name with only the characters MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", text)[:250]


def _told(error: BaseException) -> str:
    """The first line of an exception, for a person."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


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
                writer.begin(**given)
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
                answer("failed", _told(error))
                return
            answer("warning", f"{kind}: {_told(error)}")
    if not finished:
        writer.finish("KILLED")
    answer("finished", "")


def main() -> None:
    """Speak over the pipes this process was started with; whatever libraries print goes elsewhere."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(kind: str, text: str) -> None:
        try:
            answers.write(json.dumps([kind, text]) + "\n")
            answers.flush()
        except BrokenPipeError:
            pass  # nobody listens any more; the work goes on

    with open(0, encoding="utf-8", closefd=False) as messages:
        serve(messages, answer)


if __name__ == "__main__":
    main()
