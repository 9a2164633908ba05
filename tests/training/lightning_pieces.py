"""The LightningModule on the toy policy, and a Trainer with the grouped loop: a whole run without a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L

from src import algorithms
from src.data.module import PromptDataModule
from src.rewards.ensemble import RewardEnsemble
from src.rollout.levels import RolloutSettings
from src.training.collect import CollectSettings
from src.training.loop import GroupedRolloutLoop
from src.training.module import BiCoTModule, OptimSettings
from src.training.update import UpdateSettings
from src.values import Sampling
from tests.policies.toy import ToyPolicy
from tests.training.experts import NamedColour
from tests.training.pieces import OPERATIONS

SAMPLING = RolloutSettings(plan=Sampling(), image=Sampling(1.0, 1.5), max_plan_tokens=5)


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
    **optim: Any,
) -> BiCoTModule:
    """A `BiCoTModule` around `ToyPolicy`."""
    return BiCoTModule(
        policy or ToyPolicy(),
        RewardEnsemble([expert or NamedColour()]),
        OPERATIONS,
        algorithms.load("grpo"),
        CollectSettings(0, group_size, SAMPLING, guided, beta > 0),
        UpdateSettings(beta, "k3", guided, 0.2, 0.2),
        OptimSettings(lr, microbatch=microbatch, **optim),
        updates,
        max_steps,
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
