"""A real training run of a few steps, made once a test session for the tests that need its folder."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from src import build
from src.cli import command as cli
from src.cli.compose import compose
from src.runs.folder import RunFolder
from src.runs.sound_files import write_whole
from src.train import COMMAND

SHORT = (
    "experiment=bicot_lora",
    "trainer.progress_bar=false",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "algorithm.beta=0.02",
    "optim.lr=2e-3",
    "optim.warmup_steps=0",
    "rollout.group_size=2",
    "rollout.prompts_per_step=4",
    "evaluation.test_prompts=4",
    "evaluation.validation_prompts=4",
    "evaluation.picture_prompts=2",
)


# Removed when the test session ends.
_HOME = tempfile.TemporaryDirectory(prefix="bicot-test-")


def train(folder: Path, *overrides: str) -> RunFolder:
    """``python -m src.train`` in this process; later overrides win."""
    merged = {item.partition("=")[0]: item for item in (*SHORT, f"run.dir={folder}", "logger=csv", *overrides)}
    code = cli.run(COMMAND, list(merged.values()))
    assert code == 0
    return RunFolder(folder)


@cache
def lora_run() -> RunFolder:
    """Three large steps of LoRA; `adapter/` holds the last weights, so that they surely differ from the base."""
    run = train(Path(_HOME.name) / "lora", "trainer.max_steps=3", "optim.lr=1e-2")
    trained_policy(run).adapter.save_pretrained(str(run.adapter))
    return run


@cache
def full_run() -> RunFolder:
    """Two steps of full fine-tuning; its best weights are the last ones."""
    from safetensors.torch import save

    run = train(Path(_HOME.name) / "full", "model.lora=null", "trainer.max_steps=2", "optim.lr=1e-3")
    state = {name: value.contiguous() for name, value in last_state(run).items()}
    write_whole(run.best_weights, lambda file: file.write(save(state)))
    return run


def run_config(run: RunFolder) -> DictConfig:
    """The config of a run as it was resolved."""
    config = OmegaConf.load(run.config)
    assert isinstance(config, DictConfig)
    return config


def last_state(run: RunFolder) -> dict[str, torch.Tensor]:
    """The trained parameters of the last checkpoint."""
    return torch.load(run.last_checkpoint, map_location="cpu", weights_only=True)["state_dict"]


def trained_policy(run: RunFolder) -> Any:
    """The policy as training left it: rebuilt from the config, the last checkpoint's weights copied in by name."""
    policy: Any = build.build_policy(run_config(run))
    own = dict(policy.named_parameters())
    with torch.no_grad():
        for name, value in last_state(run).items():
            own[name.removeprefix("policy.")].copy_(value)
    return policy


def default_config(*overrides: str) -> DictConfig:
    """The composed config of a short run."""
    return compose([*SHORT, *overrides])  # type: ignore[return-value]
