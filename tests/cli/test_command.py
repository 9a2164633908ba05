"""The command line: wrong input gives one message that names key, value and fix; help is a quick screen."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.cli import command as cli
from src.config.errors import UserError
from src.config.schema import CONFIGS, ROOT
from src.train import COMMAND


def message(*overrides: str) -> str:
    with pytest.raises(UserError) as raised:
        cli.compose(overrides)
    return str(raised.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("experiment=bicot_lor", ["experiment=bicot_lor", "no such option", "Did you mean bicot_lora?"]),
        ("model=janus", ["model=janus", "There are:", "janus_tiny"]),
        ("rollout.grup_size=4", ["rollout.grup_size", "Did you mean rollout.group_size?"]),
        ("algoritm.beta=1", ["algoritm.beta", "Did you mean algorithm.beta?"]),
        ("+rollout.grup_size=4", ["rollout.grup_size", "group_size"]),
        ("+nonsense.key=4", ["nonsense", "no such key"]),
        ("algorithm.beta=high", ["algorithm.beta=high", "expected a number"]),
        ("evaluation.every=1.5", ["evaluation.every=1.5", "expected an integer"]),
        ("trainer.progress_bar=maybe", ["trainer.progress_bar=maybe", "true or false"]),
        ("rollout.group_size=1", ["rollout.group_size=1", ">= 2"]),
        ("algorithm.beta=-1", ["algorithm.beta=-1", ">= 0"]),
        ("rollout.guidance_scale=-2", ["rollout.guidance_scale=-2", ">= 1"]),
        ("optim.schedule=cosin", ["optim.schedule=cosin", "cosine"]),
        ("algorithm.beta", ["algorithm.beta", "key=value"]),
        ("run.name=a, b", ["run.name", "quote the value"]),
    ],
)
def test_wrong_overrides_are_explained(override: str, expected: list[str]) -> None:
    told = message(override)
    assert all(part in told for part in expected), told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rollout:\n  grup_size: 4\n", ["zz_test.yaml", "rollout.grup_size", "Did you mean rollout.group_size?"]),
        ("rolout:\n  group_size: 4\n", ["zz_test.yaml", "rolout", "Did you mean rollout?"]),
        ("rollout:\n  group_size: four\n", ["zz_test.yaml", "rollout.group_size=four", "expected an integer"]),
        ("rollout:\n  group_size: [1\n", ["zz_test.yaml:", "not valid YAML"]),
    ],
)
def test_wrong_experiment_files_are_named(text: str, expected: list[str]) -> None:
    path = CONFIGS / "experiment" / "zz_test.yaml"
    path.write_text("# @package _global_\n" + text)
    try:
        told = message("experiment=zz_test")
    finally:
        path.unlink()
    assert all(part in told for part in expected), told


def test_exit_code_2_without_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(COMMAND, ["rollout.group_size=1"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: rollout.group_size=1")
    assert "Traceback" not in printed.err
    assert len(printed.err.strip().splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--nonsense"], ["--cfg"], ["--cfg", "hydra"]])
def test_unknown_flags(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(COMMAND, arguments) == 2
    assert arguments[0] in capsys.readouterr().err


def test_cfg_job_shows_the_resolved_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(COMMAND, ["experiment=bicot_lora", "--cfg", "job", "run.seed=7"]) == 0
    shown = capsys.readouterr().out
    assert "seed: 7" in shown
    assert str(ROOT / "src" / "shapes" / "checkpoint") in shown


def test_help_is_a_quick_screen_with_options_and_three_examples() -> None:
    fastest = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "src.train", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        fastest = min(fastest, time.perf_counter() - start)
    assert fastest < 2
    page = done.stdout
    for group in COMMAND.groups:
        for option in (path.stem for path in (CONFIGS / group).glob("*.yaml")):
            assert option in page, f"{group}={option} is not on the help page"
    assert page.count("python -m src.train ") >= 4
    assert len(page.splitlines()) <= 50


@pytest.mark.slow
def test_a_sweep_runs_every_combination(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "src.train", "experiment=bicot_lora", "-m", "algorithm.beta=0.01,0.02"),
            *(f"run.root={tmp_path}", "trainer.max_steps=1", "trainer.progress_bar=false"),
            *("evaluation.validation_prompts=4", "evaluation.test_prompts=4", "rollout.prompts_per_step=1"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    betas = sorted(
        line.split(":")[1].strip()
        for config in tmp_path.glob("bicot_lora-*/config.yaml")
        for line in config.read_text().splitlines()
        if line.strip().startswith("beta:")
    )
    assert betas == ["0.01", "0.02"]
    assert len(list(tmp_path.glob("*/summary.json"))) == 2
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        parents = store.execute("select value from tags where key = 'mlflow.parentRunId'").fetchall()
        runs = store.execute("select run_uuid from runs").fetchall()
    assert len(parents) == 2
    assert len(set(parents)) == 1, "one parent for both"
    assert set(parents) < set(runs)
