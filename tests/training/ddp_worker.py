"""One process of a run: ``python ddp_worker.py OUT WORLD KIND [STRATEGY [ACCELERATOR]]``.

Writes what it saw to OUT/<KIND>-<WORLD>-<rank>.pt.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch

import src  # noqa: F401 (before the packages it mends)
from src.data.module import PromptDataModule
from src.policies.dtensors import whole
from src.training.loop import GroupedRolloutLoop
from src.training.module import BiCoTModule
from src.training.sharded import ShardedStrategy
from src.values import PLAN, PromptBatch
from tests.policies.tiny import exact_policy
from tests.policies.toy import ToyPolicy
from tests.training.experts import Red
from tests.training.lightning_pieces import toy_module


class Recorder(L.Callback):
    """Keeps each step's rollouts and logged figures, and the gradients as they were before clipping."""

    def __init__(self) -> None:
        self.ids: list[dict[str, Any]] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.figures: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        found = {n: p.grad for n, p in pl_module.policy.named_parameters() if p.grad is not None}
        self.gradients.append({name: whole(gradient).cpu().clone() for name, gradient in found.items()})

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        levels = pl_module.collected.experience.levels
        rows = {
            name: [row[keep].tolist() for row, keep in zip(v.ids, v.mask, strict=True)] for name, v in levels.items()
        }
        self.ids.append({"positions": batch.positions, **rows, "tokens": int(levels[PLAN].mask.sum())})
        # Seconds are each process's own.
        self.figures.append({k: v for k, v in pl_module.step_metrics.items() if not k.startswith("seconds")})


def module_of(kind: str) -> BiCoTModule:
    """toy; split: one level a backward, which has no gradient for the other's parameters; janus: all of a Janus so.

    lora: the adapters of a Janus; full: all of it, compared with whole rows of a reference that moves along.
    """
    settings: dict[str, Any] = {"max_steps": 3, "lr": 1e-3, "microbatch": 5, "grad_clip": 1e9}
    if kind == "janus":
        policy = exact_policy(lora=None)
        policy.checkpoint_activations()
        return toy_module(policy=policy, expert=Red(), split_levels=True, **settings)
    if kind in ("lora", "full"):
        policy = exact_policy(lora={"r": 4} if kind == "lora" else None)
        # Parts that are the same rows on one process and on two.
        module = toy_module(policy=policy, expert=Red(), **{**settings, "microbatch": 4})
        if kind == "full":
            module.reference_refresh = 2
            module.config = replace(module.config, algorithm=replace(module.variant, kl="exact", beta=1.0))
        return module
    return toy_module(policy=ToyPolicy(dtype=torch.float64), split_levels=kind == "split", **settings)


def main(out: Path, world: int, kind: str, strategy: str, accelerator: str = "cpu") -> None:
    module = module_of(kind)
    recorder = Recorder()
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=world,
        strategy=ShardedStrategy() if strategy == "fsdp" else strategy,
        max_steps=3,
        max_epochs=1,
        limit_train_batches=3,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        callbacks=[recorder],
    )
    GroupedRolloutLoop.install(trainer)
    trainer.fit(module, datamodule=PromptDataModule(out / "prompts", prompts_per_step=4))
    weights = {name: whole(value).cpu().clone() for name, value in module.policy.state_dict().items()}
    torch.save(
        (recorder.ids, recorder.gradients, weights, recorder.figures), out / f"{kind}-{world}-{trainer.global_rank}.pt"
    )


if __name__ == "__main__":
    processes = int(sys.argv[2])
    chosen, accelerator = (sys.argv[4:] + ["auto", "cpu"][len(sys.argv) - 4 :])[:2]
    main(Path(sys.argv[1]), processes, sys.argv[3], chosen if processes > 1 else "auto", accelerator)
