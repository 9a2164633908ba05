"""Whole training runs on a tiny random Janus, through the command line's own entry, in process or as a process."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.conftest import ROOT
from tests.policies.tiny import save_tiny_checkpoint

COLOURS = ("red", "blue", "green")
SHAPES = {"train": ("circle", "square"), "validation": ("triangle",), "test": ("triangle",)}
COUNTS = {"train": "one", "validation": "two", "test": "a"}


def write_world(folder: Path) -> Path:
    """A checkpoint directory ``model`` and prompts ``data`` under `folder`."""
    save_tiny_checkpoint(folder / "model")
    (folder / "data").mkdir(parents=True)
    for split, shapes in SHAPES.items():
        lines = [
            json.dumps({"prompt": f"{COUNTS[split]} {colour} {shape}", "task_type": shape, "nouns": [colour]})
            for colour in COLOURS
            for shape in shapes
        ]
        (folder / "data" / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def overrides(world: Path, run: Path | None, **settings: Any) -> list[str]:
    """The command line of a short run; `settings` name keys with ``__`` for the dot."""
    chosen: dict[str, Any] = {
        "experiment": "bicot_lora",
        "model.path": world / "model",
        "data.path": world / "data",
        "plugins": "[tests]",
        "+rewards.experts.red._target_": "tests.training.experts.Red",
        "rollout.prompts_per_step": 2,
        "rollout.group_size": 3,
        "rollout.max_plan_tokens": 5,
        "trainer.max_steps": 6,
        "trainer.progress_bar": "false",
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "evaluation.every": 3,
        "evaluation.picture_prompts": 2,
        "checkpoint.every": 2,
        "checkpoint.rollouts_every": 1,
        "optim.microbatch": 4,
        "optim.lr": 0.01,
        "logger": "csv",
    }
    if run is not None:
        chosen["run.dir"] = run
    chosen |= {name.replace("__", "."): value for name, value in settings.items()}
    return ["~rewards.experts.shapes", *(f"{key}={value}" for key, value in chosen.items())]


def train(world: Path, run: Path | None, **settings: Any) -> int:
    """One run in this process; returns the exit code."""
    from src.cli import command as cli
    from src.train import COMMAND

    return cli.run(COMMAND, overrides(world, run, **settings))


def command(world: Path, run: Path | None, **settings: Any) -> list[str]:
    """The same run as a command for a process of its own."""
    return [sys.executable, "-m", "src.train", *overrides(world, run, **settings)]


def environment() -> dict[str, str]:
    """One thread, no network, this checkout's modules."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def run_process(arguments: list[str], cwd: Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )


def metrics_rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def rollout_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()]


def summary(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text(encoding="utf-8"))


def checkpoint_weights(run: Path) -> dict[str, Tensor]:
    """What the run's last checkpoint says is trained."""
    return torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)["state_dict"]


def without_times(row: dict[str, str]) -> dict[str, str]:
    """A row without what depends on the machine."""
    measured = ("seconds", "peak_memory")
    return {name: value for name, value in row.items() if not name.startswith(measured) and value != ""}
