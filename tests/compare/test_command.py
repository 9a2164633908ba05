"""The command: what it writes, and that wrong input ends with one message and nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from src.build import plain
from src.cli import command as cli
from src.compare.command import COMMAND
from src.loggers.facts import RunFacts, run_parameters
from src.loggers.mlflow_logger import MLflowLogger, start_parent
from src.runs.folder import RunFolder
from tests.compare.runs import write_run
from tests.tiny_run import run_config


def run(*words: str) -> int:
    return cli.run(COMMAND, words)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "strong", {0: 0.25, 5: 0.375, 10: 0.5}, "algorithm.beta=0.1", test=[0.0, 0.5, 1.0])
    write_run(root / "weak", {0: 0.25, 5: 0.75, 10: 0.625}, "algorithm.beta=0", test=[0.5, 1.0, 1.0])
    write_run(root / "going", {0: 0.25}, "algorithm.beta=0.05", finished=False)
    return root


@pytest.fixture(scope="module")
def store(runs: Path) -> Path:
    """The finished runs in MLflow, under a sweep's parent; the folder's own store."""
    parent = start_parent(None, runs, "study", "sweep", {"sweep": "algorithm.beta=0,0.1"})
    for name, history in (("strong", (0.25, 0.5)), ("weak", (0.25, 0.75, 0.625))):
        folder = RunFolder(runs / name)
        config = {"run": {"name": "bicot", "root": str(runs), "seed": 0}}
        logger = MLflowLogger(RunFacts(folder, config), experiment="study", parent=parent)
        logger.log_hyperparams(run_parameters(plain(run_config(folder))))
        for number, value in enumerate(history):
            logger.log_metrics({"validation/reward": value, "lr": 0.1}, step=5 * number)
        logger.finalize("success")
    return runs


def test_folders_are_compared_and_the_best_is_named(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(f"runs={runs}", f"out={out}", "baseline=strong") == 0
    told = capsys.readouterr().out
    lines = told.splitlines()
    assert lines[0].split()[:3] == ["run", "beta", "seed"]
    assert [line.split()[:2] for line in lines[1:4]] == [["weak", "0.0"], ["strong", "0.1"], ["going", "0.05"]]
    assert "0.75 at 5" in lines[1]
    assert "+0.3333 [" in lines[1]
    assert "unfinished" in lines[3]
    assert "best: weak" in lines
    assert f"export: python -m src.export run={runs / 'weak'} out=exported/weak" in lines
    assert {path.name for path in out.iterdir()} == {"comparison.md", "comparison.csv", "curves.png"}
    assert f"run={runs / 'weak'}" in (out / "comparison.md").read_text()
    with Image.open(out / "curves.png") as picture:
        colours = picture.convert("RGB").getcolors(1 << 24) or ()
    # Matplotlib's first three colours: every run has a curve.
    assert {(31, 119, 180), (255, 127, 14), (44, 160, 44)} <= {colour for _, colour in colours}


def test_an_experiment_is_compared_from_its_store(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parent of a sweep is no run; the run folders are found, and given beside the store they count once."""
    assert run("experiment=study", f"root={store}", f"runs={store}", f"out={tmp_path / 'out'}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [["weak", "0.0"], ["strong", "0.1"], ["going", "0.05"]]
    assert f"export: python -m src.export run={store / 'weak'} out=exported/weak" in lines
    assert run("experiment=study", f"root={store}", "runs=[strong]", f"out={tmp_path / 'one'}") == 0
    assert "best: strong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["runs={runs}", "metric=validation/rewrd"], "no run has logged it. Did you mean validation/reward?"),
        (["runs={runs}", "baseline=stron"], "baseline=stron: no such run among those compared. Did you mean strong?"),
        (["runs={runs}/wek"], "no such folder. Did you mean weak?"),
        (["runs={runs}", "mode=up"], "mode=up: expected one of max, min"),
        ([], "experiment, runs: give one"),
        (["experiment=x", "tracking_uri=sqlite:///{runs}/none.db"], "no such file"),
        (["experiment=x", "tracking_uri=http://127.0.0.1:1"], "no MLflow server answers there"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_message_and_nothing_is_written(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert run(*(word.format(runs=runs) for word in words), f"out={tmp_path / 'out'}") == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert told in errors[0]
    assert list(tmp_path.iterdir()) == []
    assert not (runs / "none.db").exists()


def test_an_experiment_and_a_run_that_do_not_exist_bring_the_nearest(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("experiment=studi", f"root={store}", f"out={tmp_path / 'out'}") == 2
    assert "Did you mean study?" in capsys.readouterr().err
    assert run("experiment=study", f"root={store}", "runs=wek", f"out={tmp_path / 'out'}") == 2
    assert "runs=wek: no such folder, and no such run there. Did you mean weak?" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_trained_nothing_yet_is_not_offered_for_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "going", {0: 0.25, 5: 0.5}, finished=False)
    assert run(f"runs={tmp_path / 'going'}", f"out={tmp_path / 'out'}") == 0
    assert "best: going (nothing to export yet, it is unfinished" in capsys.readouterr().out


def test_what_is_there_is_not_replaced_unasked(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("x")
    assert run(f"runs={runs}", f"out={tmp_path}") == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
