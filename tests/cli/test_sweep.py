"""Sweeps over a cluster: what Hydra's launchers carry to other processes, and submitit's local executor for real."""

from __future__ import annotations

import pickle
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from src.cli.sweep import Job, JobFailed
from src.train import COMMAND
from tests.training.runs import overrides, run_process, summary, write_world


def test_a_job_is_found_again_by_its_name() -> None:
    job = pickle.loads(pickle.dumps(Job(COMMAND)))
    assert job.command is COMMAND


def test_a_failure_keeps_its_code_on_the_way_back() -> None:
    failure = pickle.loads(pickle.dumps(JobFailed(143)))
    assert failure.code == 143
    assert str(failure) == "a job of the sweep ended with exit code 143"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("submitit") is None, reason="needs the extra [cluster]")
def test_a_sweep_through_submitit(tmp_path: Path) -> None:
    """Each job in a process of its own, as on a cluster; one that cannot be gives the sweep its message."""
    world = write_world(tmp_path / "world")
    words = overrides(world, None, run__root=tmp_path / "runs", trainer__max_steps=1, evaluation__every=9)
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"]
    command = [sys.executable, "-m", "src.train", "-m", *launcher, *words]
    done = run_process([*command, "algorithm.beta=0.01,0.02"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    runs = sorted((tmp_path / "runs").glob("bicot_lora-*"))
    assert [run.name[-2:] for run in runs] == ["-0", "-1"]
    assert all(summary(run)["finished"] for run in runs)
    done = run_process([*command, "rollout.group_size=1,0"], tmp_path)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "error: rollout.group_size=1: expected an integer >= 2" in done.stderr
