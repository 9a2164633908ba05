"""The LightningModule on the toy policy, and a Trainer with the grouped loop: a whole run without a checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L

from src import algorithms
from src.config.schema import Config, OptimConfig, RolloutConfig, TrainerConfig
from src.data.module import PromptDataModule
from src.rewards.ensemble import RewardEnsemble
from src.rollout.levels import RolloutSettings
from src.training.loop import GroupedRolloutLoop
from src.training.memory import StepCut
from src.training.module import BiCoTModule
from tests.policies.toy import ToyPolicy
from tests.training.experts import NamedColour
from tests.training.pieces import OPERATIONS, update_settings

ROLLOUT = RolloutConfig(guidance_scale=1.5, max_plan_tokens=5)
SAMPLING = RolloutSettings.of(ROLLOUT)


def toy_module(
    *,
    policy: Any = None,
    expert: Any = None,
    lr: float = 1e-2,
    beta: float = 0.02,
    guided: bool = True,
    updates: int = 1,
    max_steps: int = 10,
    microbatch: int | None = None,
    group_size: int = 4,
    split_levels: bool = False,
    **optim: Any,
) -> BiCoTModule:
    """A `BiCoTModule` around `ToyPolicy`; optim: of `OptimConfig`."""
    config = Config(
        algorithm=replace(update_settings(guided=guided, beta=beta), updates_per_rollout=updates),
        rollout=replace(ROLLOUT, group_size=group_size),
        optim=OptimConfig(lr=lr, **optim),
        trainer=TrainerConfig(max_steps=max_steps),
    )
    return BiCoTModule(
        config,
        policy or ToyPolicy(),
        RewardEnsemble([expert or NamedColour()]),
        OPERATIONS,
        algorithms.load("grpo"),
        StepCut(microbatch, split_levels),
    )


def write_prompts(folder: Path) -> Path:
    """Three disjoint files of prompts that name a colour."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, thing in (("train", "circle"), ("validation", "square"), ("test", "triangle")):
        lines = [
            json.dumps({"prompt": f"{thing} in {colour}", "task_type": "color", "nouns": [colour]})
            for colour in ("red", "green", "blue")
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def fit(
    module: BiCoTModule, folder: Path, callbacks: tuple[L.Callback, ...] = (), prompts_per_step: int = 3
) -> tuple[L.Trainer, GroupedRolloutLoop]:
    """Train through Lightning with the grouped loop, writing nothing."""
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=module.max_steps,
        max_epochs=1,
        limit_train_batches=-(-module.max_steps // module.updates_per_rollout),
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=list(callbacks),
    )
    loop = GroupedRolloutLoop.install(trainer)
    trainer.fit(module, datamodule=PromptDataModule(write_prompts(folder), prompts_per_step))
    return trainer, loop
