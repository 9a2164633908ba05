"""An MLflow server that is not there, at the start or in mid-run: the run goes on, and an upload makes up for it."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from src.cli import command as cli
from src.loggers import mlflow_logger
from src.runs.folder import RunFolder
from src.training.loop import GroupedRolloutLoop
from src.upload_metrics.command import COMMAND, metric_rows
from tests.mlflow_server import MLflowServer
from tests.training.forked import Ended, forked
from tests.training.runs import overrides, train, write_world
from tests.training.test_kills import SETTINGS

pytestmark = [pytest.mark.slow, pytest.mark.faults]

ARTIFACTS = {
    "adapter", "config.yaml", "images", "samples_before.png", "samples_after.png", "summary.json", "test_after.jsonl",
}  # fmt: skip
UNFINISHED = ".artifact.uploading."


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    server = MLflowServer(tmp_path_factory.mktemp("store") / "mlflow.db")
    yield server
    server.kill()


def query(server: MLflowServer, text: str, *values: Any) -> list[tuple[Any, ...]]:
    with sqlite3.connect(f"file:{server.database}?mode=ro", uri=True) as database:
        return database.execute(text, values).fetchall()


def stored(server: MLflowServer, run_id: str) -> list[tuple[str, int, float]]:
    """All of a run's figures, duplicates included, without the machine's load; MLflow keeps NaN as a flag beside 0."""
    found = query(server, "select key, step, value from metrics where run_uuid = ? and not is_nan", run_id)
    return sorted(row for row in found if not row[0].startswith("system/"))


def used(server: MLflowServer, run_id: str) -> list[str]:
    """What for the run uses data sets, once each."""
    joined = "inputs i join input_tags t on t.input_uuid = i.input_uuid where i.destination_id = ?"
    return sorted(value for (value,) in query(server, f"select t.value from {joined}", run_id))


def pictured(server: MLflowServer, run_id: str) -> list[int]:
    """The steps of the run's pictures, a step as often as it has one."""
    found = server.database.parent.rglob(f"{run_id}/artifacts/images/validation+step+*.png")
    return sorted(int(path.name.split("+")[2]) for path in found)


def expected(run: Path) -> list[tuple[str, int, float]]:
    return sorted((name, step, value) for name, value, _, step in metric_rows(RunFolder(run)) if value == value)


def journal(run: Path) -> dict[str, Any]:
    return json.loads((run / "mlflow.json").read_text())


def upload(run: Path, server: MLflowServer, *more: str) -> int:
    return cli.run(COMMAND, [f"run={run}", f"tracking_uri={server.url}", *more])


def run_with_a_server_killed(world: Path, run: Path, server: MLflowServer, log: Path) -> Ended:
    """A run in whose third step the server dies, once it has the figures of the first."""

    def prepare() -> None:
        mlflow_logger.SEND_EVERY = 0.0
        original = GroupedRolloutLoop.advance

        def advance(self: GroupedRolloutLoop, kwargs: Any) -> None:
            if next(iter(kwargs.values())).step == 2:
                until = time.monotonic() + 60
                while time.monotonic() < until and not query(server, "select 1 from metrics where step = 1"):
                    time.sleep(0.1)
                server.kill()
            original(self, kwargs)

        GroupedRolloutLoop.advance = advance  # type: ignore[method-assign]

    settings = SETTINGS | {"logger": "mlflow", "logger__tracking_uri": server.url, "run__root": run.parent}
    return forked(overrides(world, run, **settings), log, prepare)


def test_a_server_killed_in_mid_run_is_filled_later_and_only_once(
    world: Path, server: MLflowServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    server.start()
    started = time.monotonic()
    ended = run_with_a_server_killed(world, run, server, tmp_path / "log")
    assert server.process is not None  # of this process; the fork killed it
    server.kill()
    assert ended.code == 0, ended.output
    assert time.monotonic() - started < 90
    assert "not written" in ended.output
    assert f"python -m src.upload_metrics run={run} adds what is missing" in ended.output
    known = journal(run)
    assert known["pending"] is True
    before = stored(server, known["run_id"])
    assert 0 < len(before) < len(expected(run))
    assert set(before) < set(expected(run))

    assert upload(run, server) == 2, "the server is still away"
    assert "no MLflow server answers there" in capsys.readouterr().err
    server.start()
    for _ in range(2):
        assert upload(run, server) == 0
        assert stored(server, known["run_id"]) == expected(run), "no gap, nothing twice"
        assert journal(run)["pending"] is False
    missing = len(expected(run)) - len(before)
    told = capsys.readouterr().out
    assert f"{missing} of " in told
    assert " 0 of " in told
    assert query(server, "select status from runs where run_uuid = ?", known["run_id"]) == [("FINISHED",)]
    artifacts = {path.name: path for path in server.database.parent.rglob(f"{known['run_id']}/artifacts/*")}
    # What the killed server was just receiving it leaves behind under a name of its own.
    whole = {name for name in artifacts if not name.startswith(UNFINISHED)}
    assert whole == ARTIFACTS
    for name in whole - {"adapter", "images"}:
        assert artifacts[name].read_bytes() == (run / name).read_bytes(), name
    assert used(server, known["run_id"]) == ["test", "training", "validation"]
    assert pictured(server, known["run_id"]) == list(RunFolder(run).validation_sheets())


def test_a_run_begun_without_a_server_is_uploaded_as_a_whole(
    world: Path, server: MLflowServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "away"
    nobody = MLflowServer(tmp_path / "never.db").url
    settings = SETTINGS | {"logger": "mlflow", "logger__tracking_uri": nobody, "run__root": tmp_path}
    assert train(world, run, **settings) == 0
    assert f"mlflow: no answer from {nobody}" in capsys.readouterr().out
    assert (journal(run)["pending"], journal(run)["run_id"]) == (True, None)

    if server.process is None:
        server.start()
    for _ in range(2):
        assert upload(run, server) == 0
    run_id = journal(run)["uploaded"][server.url]
    assert stored(server, run_id) == expected(run)
    assert used(server, run_id) == ["test", "training", "validation"]
    assert pictured(server, run_id) == list(RunFolder(run).validation_sheets()) != []
    parameters = dict(query(server, "select key, value from params where run_uuid = ?", run_id))
    assert (parameters["group_size"], parameters["max_steps"]) == ("2", "4")
    assert query(server, "select count(*) from runs where name = 'away'") == [(1,)]

    # A run that was never meant for MLflow, cut off half-way through an upload: the same one is gone on with.
    bare = tmp_path / "bare"
    shutil.copytree(run, bare)
    (bare / "mlflow.json").unlink()
    assert upload(bare, server, "experiment=elsewhere") == 0
    run_id = journal(bare)["uploaded"][server.url]
    assert stored(server, run_id) == expected(run)
    joined = "experiments e join runs r on r.experiment_id = e.experiment_id where r.run_uuid = ?"
    assert query(server, f"select e.name from {joined}", run_id) == [("elsewhere",)]


def test_what_is_no_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "config.yaml").touch()
    assert cli.run(COMMAND, ["run=mime"]) == 2
    assert "Did you mean runs/mine?" in capsys.readouterr().err
    assert cli.run(COMMAND, ["run=mine"]) == 2
    assert "run=runs/mine: no metrics.csv there" in capsys.readouterr().err, "by its name below runs/"
    assert cli.run(COMMAND, [f"run={tmp_path}"]) == 2
    assert f"run={tmp_path}: no metrics.csv there" in capsys.readouterr().err
    assert cli.run(COMMAND, []) == 2
    assert "run: expected a run folder" in capsys.readouterr().err
