"""Processes that others start (torchrun, SLURM): two of them here, on one node and as two, and who ends whom."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_only

from src.cli.compose import compose
from src.runs.launched import can_tell, is_first, job_name, tell, told
from tests.training.runs import (
    environment,
    metrics_rows,
    overrides,
    rollout_lines,
    run_process,
    summary,
    train,
    write_world,
)

SETTINGS: dict[str, Any] = {"trainer__max_steps": 2, "evaluation__every": 9}
LAUNCHED = {"trainer": "multinode", **SETTINGS}
SLURM = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2", "SLURM_PROCID": "3"}
SLURM |= {"SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "bicot"}
TORCHRUN = {"LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2", "WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}
TORCHRUN |= {"TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}


def launched(world: Path, run: Path | None, *flags: str, **settings: Any) -> list[str]:
    """The command line under torchrun, which says how many processes there are."""
    words = [word for word in overrides(world, run, **settings) if not word.startswith("trainer.devices")]
    return [sys.executable, "-m", "torch.distributed.run", *flags, "-m", "src.train", *words]


@pytest.fixture(autouse=True)
def own_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer that is told it is rank 3 tells all of this process; and what earlier runs told is not for this one."""
    monkeypatch.setattr(rank_zero_only, "rank", getattr(rank_zero_only, "rank", 0))
    monkeypatch.delenv("BICOT_FIRST_PLACE", raising=False)


@pytest.mark.parametrize(
    ("variables", "kind"), [(SLURM, SLURMEnvironment), (TORCHRUN, TorchElasticEnvironment)], ids=["SLURM", "torchrun"]
)
def test_the_launcher_says_how_many_there_are(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], kind: type
) -> None:
    """Two nodes of two processes; this one is the last."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = compose(["experiment=bicot_lora", "trainer=multinode"]).trainer
    assert (settings.strategy, settings.devices, settings.num_nodes) == ("ddp", 2, 2)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=settings.strategy,
        logger=False,
        enable_checkpointing=False,
    )
    found = trainer.strategy.cluster_environment
    assert isinstance(found, kind)
    assert found.creates_processes_externally
    assert (trainer.world_size, found.global_rank(), found.node_rank(), found.local_rank()) == (4, 3, 1, 1)


def test_who_is_first_and_what_the_others_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, as a child of Lightning's launcher, and under SLURM, where nobody can be told but all know the job."""
    monkeypatch.setenv("BICOT_FIRST_PLACE", "of another run")
    assert is_first()
    assert job_name() is None
    tell("PLACE", "here")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not is_first()
    assert told("PLACE") == "here"
    for name, value in {**SLURM, "SLURM_STEP_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    assert not can_tell()
    assert job_name() == "job77.1"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert job_name() == "job77.1.2", "a requeued job begins in a folder of its own"
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert is_first()


def test_without_a_store_the_folder_must_be_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**TORCHRUN, "TORCHELASTIC_USE_AGENT_STORE": "False"}.items():
        monkeypatch.setenv(name, value)
    assert train(tmp_path, None, run__root=tmp_path / "runs") == 2
    assert "run.dir: required here" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    """Full fine-tuning, 1 -> 2 (weights cut over both) -> 1, against 1 all the way: the same rollouts and figures."""
    world, run, straight = write_world(tmp_path / "world"), tmp_path / "run", tmp_path / "straight"
    full = {"model__lora": "null", "optim__lr": 1e-3, "evaluation__every": 9, "optim__microbatch": 3}
    assert train(world, straight, **full, trainer__max_steps=6) == 0
    assert train(world, run, **full, trainer__max_steps=2) == 0
    first = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    two = {**full, "trainer": "multinode", "trainer__strategy": "fsdp", "trainer__max_steps": 4, "resume": "auto"}
    done = run_process(launched(world, run, "--nproc_per_node=2", **two), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    second = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert train(world, run, **full, trainer__max_steps=6, resume="auto") == 0
    for kind, parts in (("weights", "state_dict"), ("moments", "optimizer_states")):
        shapes = [shapes_of(checkpoint[parts]) for checkpoint in (first, second)]
        assert shapes[0] == shapes[1] != {}, f"one file with whole {kind}, whoever wrote it"
    assert [line["prompt"] for line in rollout_lines(run)] == [line["prompt"] for line in rollout_lines(straight)]
    assert rollout_lines(run)[:3] == rollout_lines(straight)[:3], "the third step is the first of two ranks"
    rows = [{row["step"]: row for row in metrics_rows(path)} for path in (run, straight)]
    assert rows[0].keys() == rows[1].keys()
    for step in ("3", "4", "5", "6"):
        for name in ("reward", "plan/kl", "image/kl", "image/logp", "plan/length"):
            tolerance = 1e-5 if step == "3" else 1e-2
            assert float(rows[0][step][name]) == pytest.approx(float(rows[1][step][name]), rel=tolerance, abs=1e-5)


def shapes_of(state: Any) -> dict[str, Any]:
    """Names and shapes of the tensors in a nest of dicts and lists."""
    if isinstance(state, torch.Tensor):
        return {"": tuple(state.shape)}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, (list, tuple)) else ()
    return {f"{key}.{name}": shape for key, part in items for name, shape in shapes_of(part).items()}


@pytest.mark.slow
def test_two_nodes_make_one_run(tmp_path: Path) -> None:
    """Two torchrun agents on this machine, without run.dir: one folder, one adapter, one bar's worth of lines."""
    world = write_world(tmp_path / "world")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ("--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={port}")
    nodes = [
        subprocess.Popen(
            launched(world, None, *flags, f"--node_rank={rank}", **LAUNCHED, run__root=tmp_path / "runs"),
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [node.communicate(timeout=240) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    (run,) = (tmp_path / "runs").glob("bicot_lora-*")
    assert summary(run)["finished"] is True
    assert [row["step"] for row in metrics_rows(run)] == ["0", "1", "2"]
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert [out.count("run folder:") for out, _ in said] == [1, 0]
    assert [out.count("test before:") for out, _ in said] == [2, 0]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_all_end_with_one_message_where_one_does_not_fit(tmp_path: Path, rank: int) -> None:
    """Lightning's own two processes: the failing one says what to change, and none is left waiting."""
    world = write_world(tmp_path / "world")
    words = overrides(world, tmp_path / "run", trainer="ddp", trainer__devices=2, trainer__max_steps=3)
    worker = [sys.executable, "-m", "tests.training.failing_worker", str(rank), *words]
    done = run_process(worker, tmp_path, timeout=200)
    assert done.returncode not in (0, -9)
    assert done.stderr.count("out of memory in one of 2 processes") == 1
    assert "Traceback" not in done.stderr
