"""The MLflow logger, read back from the database it wrote, by SQL and (slow) by MLflow's own server over REST."""

from __future__ import annotations

import csv
import http.server
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from src.config.errors import UserError
from src.loggers import mlflow_logger
from src.loggers.facts import DatasetFacts, RunFacts
from src.loggers.mlflow_logger import MLflowLogger, start_parent
from src.runs.folder import RunFolder, write_json, write_text
from tests.conftest import ROOT, RunPython
from tests.mlflow_server import mlflow_server
from tests.tiny_run import SHORT, train


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs' root whose store is migrated once for the tests of this file."""
    return tmp_path_factory.mktemp("runs")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


def facts(folder: Path, root: Path, killed: bool = False) -> RunFacts:
    config = {"run": {"name": folder.name, "root": str(root), "seed": 7}}
    return RunFacts(RunFolder(folder), config, lambda: killed)


def sql(root: Path, query: str, *values: Any) -> list[tuple[Any, ...]]:
    with sqlite3.connect(root / "mlflow.db") as database:
        return database.execute(query, values).fetchall()


def stored(root: Path, run_id: str | None) -> dict[str, Any]:
    """What the database holds of a run."""
    of_run = "where run_uuid = ?"
    return {
        "run": sql(root, f"select name, status from runs {of_run}", run_id)[0],
        "metrics": sorted(sql(root, f"select key, step, value from metrics {of_run}", run_id)),
        "params": dict(sql(root, f"select key, value from params {of_run}", run_id)),
        "tags": dict(sql(root, f"select key, value from tags {of_run}", run_id)),
    }


def test_a_run_is_written_whole(root: Path) -> None:
    folder = root / "whole"
    logger = MLflowLogger(facts(folder, root))
    write_text(folder / "config.yaml", "a: 1\n")
    logger.log_hyperparams({"beta": "0.02", "lora.r": 16})
    logger.log_metrics({"validation/reward": 0.25}, step=0)
    for step in (1, 2, 3):
        logger.log_metrics({"reward": step / 4, "plan/kl": float("nan") if step == 2 else 0.5}, step=step)
    write_text(folder / "adapter/adapter_config.json", "{}")
    write_json(folder / "summary.json", {"finished": True})
    logger.finalize("success")
    logger.finalize("success")

    assert json.loads((folder / "mlflow.json").read_text())["run_id"] == logger.version
    found = stored(root, logger.run_id)
    assert found["run"] == ("whole", "FINISHED")
    assert found["metrics"] == [
        ("plan/kl", 1, 0.5), ("plan/kl", 2, 0.0), ("plan/kl", 3, 0.5),  # NaN is kept as a flag beside 0
        ("reward", 1, 0.25), ("reward", 2, 0.5), ("reward", 3, 0.75),
        ("validation/reward", 0, 0.25),
    ]  # fmt: skip
    nan = "select step from metrics where run_uuid = ? and is_nan"
    assert sql(root, nan, logger.run_id) == [(2,)]
    assert found["params"] == {"beta": "0.02", "lora.r": "16"}
    assert found["tags"]["seed"] == "7"
    assert found["tags"]["hardware"]
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert found["tags"].get("git_commit", "").removesuffix("-dirty") == commit.stdout.strip()
    artifacts = root / "mlartifacts" / str(logger.run_id) / "artifacts"
    names = {str(path.relative_to(artifacts)) for path in artifacts.rglob("*") if path.is_file()}
    assert names == {"config.yaml", "adapter/adapter_config.json", "summary.json"}


def test_a_resumed_run_goes_on_without_a_step_written_twice(root: Path) -> None:
    folder = root / "resumed"
    first = MLflowLogger(facts(folder, root, killed=True))
    first.log_hyperparams({"max_steps": 4})
    for step in range(1, 5):
        first.log_metrics({"reward": float(step)}, step=step)
    first.finalize("failed")
    assert stored(root, first.run_id)["run"][1] == "KILLED"

    # The last checkpoint was step 2: steps 3 and 4 come again, and a metric that was not there before.
    second = MLflowLogger(facts(folder, root))
    second.log_hyperparams({"max_steps": 6, "lr": 0.1})
    for step in range(3, 7):
        second.log_metrics({"reward": float(step), "new": 0.5}, step=step)
    second.finalize("success")
    assert second.run_id == first.run_id
    found = stored(root, second.run_id)
    assert found["run"][1] == "FINISHED"
    assert found["metrics"] == [
        *(("new", step, 0.5) for step in range(3, 7)), *(("reward", step, float(step)) for step in range(1, 7)),
    ]  # fmt: skip
    assert found["params"] == {"max_steps": "4", "lr": "0.1"}
    assert found["tags"]["resumed.max_steps"] == "6"


def test_an_error_gives_failed_and_a_start_without_metrics_no_run(root: Path) -> None:
    logger = MLflowLogger(facts(root / "failed", root))
    logger.log_metrics({"reward": 1.0}, step=1)
    logger.finalize("failed")
    assert stored(root, logger.run_id)["run"][1] == "FAILED"
    before = sql(root, "select count(*) from runs")
    MLflowLogger(facts(root / "nothing", root)).finalize("failed")
    assert sql(root, "select count(*) from runs") == before


def test_pictures_data_sets_and_the_machines_load_are_logged(root: Path) -> None:
    """Each picture once a step, also where a resumed run draws it again; data sets with their digests."""
    folder = root / "pictured"
    datasets = tuple(
        DatasetFacts("prompts", "data/prompts", digest * 12, number, context)
        for digest, number, context in (("a", 30, "training"), ("b", 6, "validation"))
    )
    run = RunFacts(RunFolder(folder), facts(folder, root).config, datasets=datasets)
    for steps in ((0, 5), (5, 10)):
        logger = MLflowLogger(run, system_metrics_every=0.2)
        for step in steps:
            logger.log_metrics({"reward": 0.5}, step=step)
            path = RunFolder(folder).validation_samples(step)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (step, 0, 0)).save(path)
            logger.log_image("validation", [path], step=step)
        logger._meet_run(60)
        time.sleep(1.5)
        logger.finalize("success")

    images = root / "mlartifacts" / str(logger.run_id) / "artifacts" / "images"
    found = sorted((int(path.name.split("+")[2]), path) for path in images.glob("validation+step+*.png"))
    assert [step for step, _ in found] == [0, 5, 10]
    for step, path in found:
        with Image.open(path) as picture:
            assert picture.getpixel((0, 0)) == (step, 0, 0)
    assert sorted(
        sql(
            root,
            "select d.name, d.digest, t.value, d.dataset_profile from inputs i join datasets d on d.dataset_uuid ="
            " i.source_id join input_tags t on t.input_uuid = i.input_uuid where i.destination_id = ?",
            logger.run_id,
        )
    ) == [
        ("prompts", "a" * 12, "training", '{"num_rows": 30}'), ("prompts", "b" * 12, "validation", '{"num_rows": 6}'),
    ]  # fmt: skip
    load = [row for row in stored(root, logger.run_id)["metrics"] if row[0] == "system/cpu_utilization_percentage"]
    steps = [step for _, step, _ in load]
    assert steps == list(range(len(steps))), "the resumed run's samples go on where the first one's ended"
    assert len(steps) >= 2
    assert all(0 <= value <= 100 for _, _, value in load)


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_a_killed_run(root: Path, run_python: RunPython) -> None:
    done = run_python(f"""
import os, signal
from pathlib import Path
from src.loggers.facts import DatasetFacts, RunFacts
from src.loggers.mlflow_logger import MLflowLogger
from src.runs.folder import RunFolder
folder, root = Path({str(root / "killed")!r}), {str(root)!r}
logger = MLflowLogger(RunFacts(RunFolder(folder), {{"run": {{"name": "killed", "root": root, "seed": 0}}}}))
import time
logger.log_metrics({{"reward": 1.0}}, step=1)
logger.save()
for step in range(2, 600):
    if logger.run_id is not None:
        break
    time.sleep(0.1)
    logger.log_metrics({{}}, step=step)
time.sleep(0.5)
print(logger.run_id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
""")
    assert done.returncode == -signal.SIGKILL, done.stderr
    run_id = done.stdout.strip()
    until = time.monotonic() + 30
    while stored(root, run_id)["run"][1] == "RUNNING" and time.monotonic() < until:
        time.sleep(0.1)
    assert stored(root, run_id)["run"] == ("killed", "KILLED")
    assert stored(root, run_id)["metrics"] == [("reward", 1, 1.0)]


@pytest.mark.slow
def test_a_sweep_has_a_parent(root: Path) -> None:
    parent = start_parent(None, root, "bicot_grpo", "sweep of algorithm.beta", {"sweep": "algorithm.beta=0.01,0.02"})
    child = MLflowLogger(facts(root / "child", root), parent=parent)
    child.log_metrics({"reward": 1.0}, step=1)
    child.finalize("success")
    assert stored(root, parent)["run"] == ("sweep of algorithm.beta", "FINISHED")
    assert stored(root, child.run_id)["tags"]["mlflow.parentRunId"] == parent


@pytest.mark.slow
def test_logging_does_not_wait_for_the_store(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the writer stopped, a hundred steps of 60 figures (several pipes full) go by in no time."""
    monkeypatch.setattr(mlflow_logger, "SEND_EVERY", 0.0)
    logger = MLflowLogger(facts(root / "stopped", root))
    logger.log_metrics({"reward": 0.0}, step=0)
    assert logger._writer is not None
    process = logger._writer._process
    os.kill(process.pid, signal.SIGSTOP)
    try:
        start = time.perf_counter()
        for step in range(1, 101):
            logger.log_metrics({f"metric {i}": 0.5 for i in range(60)}, step=step)
        assert time.perf_counter() - start < 2.0
    finally:
        os.kill(process.pid, signal.SIGCONT)
    logger.finalize("success")
    assert len(stored(root, logger.run_id)["metrics"]) == 6_001


@pytest.mark.slow
def test_a_writer_that_dies_does_not_end_the_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = MLflowLogger(facts(root / "died", root))
    logger.log_metrics({"reward": 0.0}, step=0)
    assert logger._writer is not None
    logger._writer._process.kill()
    logger._writer._process.wait()
    for step in range(1, 4):
        logger.log_metrics({"reward": 0.0}, step=step)
        logger.save()
    logger.finalize("success")
    assert "mlflow: " in capsys.readouterr().out


class _NotMLflow(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        """Be quiet."""


@pytest.fixture
def not_mlflow() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _NotMLflow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_server_that_is_no_mlflow_is_the_users_error(tmp_path: Path, not_mlflow: str) -> None:
    logger = MLflowLogger(facts(tmp_path / "run", tmp_path), tracking_uri=not_mlflow)
    with pytest.raises(UserError, match=r"logger\.tracking_uri=http") as caught:
        logger.log_metrics({"reward": 1.0}, step=0)
    assert "404" in str(caught.value)
    logger.finalize("failed")


# As if mlflow were not installed: no finder finds it, so that an import fails and a probe says no.
NO_MLFLOW = """
import sys
class Blind:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *rest):
        return None if name.partition(".")[0] == "mlflow" else self.finder.find_spec(name, *rest)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Blind(finder) for finder in sys.meta_path]
from src.cli import command as cli
from src.train import COMMAND
code = cli.run(COMMAND, sys.argv[1:])
assert not [name for name in sys.modules if name.partition(".")[0] == "mlflow"]
raise SystemExit(code)
"""


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["csv", "tensorboard", "wandb"])
def test_other_loggers_never_import_mlflow(tmp_path: Path, choice: str) -> None:
    if choice != "csv":
        pytest.importorskip(choice)
    extra = ["logger.offline=true"] if choice == "wandb" else []
    command = [sys.executable, "-c", NO_MLFLOW, *SHORT, f"logger={choice}", "trainer.max_steps=1", *extra]
    done = subprocess.run(
        [*command, f"run.dir={tmp_path / 'run'}"], cwd=tmp_path, env=environment(),
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").is_file()
    assert (tmp_path / "run" / "metrics.csv").is_file()
    assert not list(tmp_path.rglob("mlflow.db"))


@pytest.fixture
def server(root: Path) -> Iterator[str]:
    """MLflow's own server on the store of a short training run."""
    with mlflow_server(root) as url:
        yield url


def rest(url: str, endpoint: str, **query: Any) -> Any:
    request = f"{url}/api/2.0/mlflow/{endpoint}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        return json.load(answer)


@pytest.mark.slow
def test_mlflow_server_reads_a_training_run(root: Path, server: str) -> None:
    """Over REST: the run of a real training with its parameters, metrics by step, tags and artifacts."""
    run = train(root / "trained", "trainer.max_steps=3", "logger=mlflow", f"run.root={root}", "run.name=trained")
    run_id = json.loads((run.path / "mlflow.json").read_text())["run_id"]
    found = rest(server, "runs/get", run_id=run_id)["run"]
    assert found["info"]["status"] == "FINISHED"
    assert found["info"]["run_name"] == "trained"
    params = {item["key"]: item["value"] for item in found["data"]["params"]}
    assert {name: params[name] for name in ("beta", "lr", "group_size", "max_steps", "lora.r", "run.seed")} == {
        "beta": "0.02", "lr": "0.002", "group_size": "2", "max_steps": "3", "lora.r": "16", "run.seed": "0",
    }  # fmt: skip
    tags = {item["key"]: item["value"] for item in found["data"]["tags"]}
    summary = json.loads(run.summary.read_text())
    assert tags.get("git_commit") == summary["git_commit"]
    assert tags["hardware"] == summary["hardware"]

    # Every figure of metrics.csv, name by name and step by step.
    with run.metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name != "step"]
    assert {key for item in found["data"]["metrics"] if not (key := item["key"]).startswith("system/")} == set(names)
    assert {"test/reward", "seconds_total", "peak_memory_gib"} <= set(names)
    for name in names:
        history = rest(server, "metrics/get-history", run_id=run_id, metric_key=name)["metrics"]
        wanted = {int(row["step"]): float(row[name]) for row in rows if row[name]}
        assert {item["step"]: item["value"] for item in history} == pytest.approx(wanted, rel=1e-12), name
        assert len(history) == len(wanted)

    listed = rest(server, "artifacts/list", run_id=run_id)["files"]
    assert {item["path"] for item in listed} == {
        "adapter", "config.yaml", "images", "samples_before.png", "samples_after.png", "summary.json",
        "test_after.jsonl",
    }  # fmt: skip
    inside = rest(server, "artifacts/list", run_id=run_id, path="adapter")["files"]
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= {item["path"] for item in inside}
    for path in ("samples_after.png", "adapter/adapter_model.safetensors", "config.yaml"):
        query = urllib.parse.urlencode({"run_uuid": run_id, "path": path})
        with urllib.request.urlopen(f"{server}/get-artifact?{query}", timeout=30) as answer:  # noqa: S310
            assert answer.read() == (run.path / path).read_bytes()
