"""The custom Lightning loop: one Lightning batch is one prompt batch, rolled out in groups and learned from.

Lightning has no public custom loop. `GroupedRolloutLoop` takes the place of the loop that runs a manual
`training_step` (``trainer.fit_loop.epoch_loop.manual_optimization``), the least invasive seam: callbacks,
loggers, progress bars, strategies and checkpoints go on working. This is the one private import of the
project, and the reason for ``lightning>=2.6,<2.7``.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from math import nan
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loops.optimization.manual import _ManualOptimization
from lightning.pytorch.trainer import call
from torch import Tensor

from src.algorithms import MAXIMA, share_without_signal
from src.rewards.base import RewardError
from src.rewards.ensemble import report_metrics
from src.training.collect import Collected, NonFiniteError
from src.training.groups import joined_reports
from src.training.module import BiCoTModule
from src.training.ranks import ALONE, Ranks, current_ranks
from src.training.update import Metrics, MicroBatch, microbatches, run_update, shown
from src.values import IMAGE, PLAN, Experience, PromptBatch, RewardReport

# Figures of dynamic sampling that are not sums over ranks: each rank refills for itself, the last one ends the rounds.
FIGURE_MAXIMA = frozenset({"refill/rounds"})
_DETAIL, _FIGURE = "detail/", "figure/"


class GroupedRolloutLoop(_ManualOptimization):
    """Collects a group of rollouts for each prompt, then takes `updates_per_rollout` optimiser steps.

    Its own state in Lightning's checkpoint is the number of finished prompt batches: rollouts are keyed, so
    a run that starts again there re-rolls identically.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        super().__init__(trainer)
        self.finished_batches = 0

    @classmethod
    def install(cls, trainer: L.Trainer) -> GroupedRolloutLoop:
        """Make `trainer.fit` train with this loop."""
        loop = cls(trainer)
        trainer.fit_loop.epoch_loop.manual_optimization = loop
        return loop

    def on_save_checkpoint(self) -> dict[str, Any]:
        return {"finished_batches": self.finished_batches}

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        self.finished_batches = state_dict["finished_batches"]

    @property
    def _module(self) -> BiCoTModule:
        return self.trainer.lightning_module  # type: ignore[return-value]

    def advance(self, kwargs: OrderedDict[str, Any]) -> None:
        batch: PromptBatch = next(iter(kwargs.values()))
        start = time.perf_counter()
        try:
            collected = self._module.collect(batch)
            learning = time.perf_counter()
            metrics = self._learn(collected)
        except NonFiniteError as error:
            raise NonFiniteError(f"step {batch.step}: {error}") from error
        except RewardError as error:
            raise RewardError(error.expert, f"step {batch.step}: {error.problem}", error.prompt) from error
        end = time.perf_counter()
        bonus = self._module.entropy.coefficients() if self._module.entropy.used else {}
        figures = shown(metrics)
        self._module.step_metrics = {
            **figures,
            **{f"{name}/entropy_bonus": value for name, value in bonus.items()},
            **experience_metrics(collected, current_ranks()),
            **{f"seconds/{name}": value for name, value in collected.seconds.items()},
            "seconds/update": end - learning,
            "seconds": end - start,
        }
        self._module.entropy.observe({name: figures.get(f"{name}/entropy", nan) for name in metrics})
        self._module.refresh_reference(self.trainer.global_step)
        self.finished_batches = batch.step + 1

    def _learn(self, collected: Collected) -> Metrics:
        """All updates on one experience; returns the metrics of the last, over all ranks.

        How far the sampler was off is measured by the first one only, with the weights that sampled; it is kept.
        """
        module, experience = self._module, collected.experience
        metrics: Metrics = {}
        first: Metrics = {}
        for update in range(module.updates_per_rollout):
            if update:
                experience = module.refreshed(experience)
            parts = self._parts(experience)
            optimizer: Any = module.optimizers()
            optimizer.zero_grad()
            metrics, experience = run_update(experience, parts, self._forward, self._backward, self._no_sync)
            self._step(optimizer)
            first = first or metrics
        return self._metrics_over_ranks({name: {**first[name], **metrics[name]} for name in metrics})

    def _parts(self, experience: Experience) -> list[MicroBatch]:
        module = self._module
        longest = {PLAN: module.collecting.rollout.max_plan_tokens, IMAGE: module.policy.image_tokens}
        size, ranks = module.optim.microbatch, self.trainer.world_size
        return list(
            microbatches(
                experience,
                size,
                module.algorithm,
                longest,
                self._over_ranks,
                ranks,
                module.updating.level_shares,
                module.entropy.coefficients(),
            )
        )

    def _forward(self, part: MicroBatch) -> tuple[Tensor, Metrics, dict[str, Tensor]]:
        return call._call_strategy_hook(self.trainer, "training_step", part, 0)

    def _backward(self, loss: Tensor) -> None:
        self._module.manual_backward(loss)

    def _no_sync(self) -> AbstractContextManager[None]:
        model: Any = self.trainer.strategy.model
        return model.no_sync() if hasattr(model, "no_sync") else nullcontext()

    def _over_ranks(self, local: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return local
        return self.trainer.strategy.reduce(local.to(self._module.device), reduce_op="sum").cpu()

    def _metrics_over_ranks(self, metrics: Metrics) -> Metrics:
        """Sums summed and maxima taken over all ranks, so that figures (and what steers by them) agree on each."""
        if self.trainer.world_size == 1:
            return metrics
        names = [(level, name) for level in metrics for name in metrics[level]]
        values = torch.stack([metrics[level][name].double() for level, name in names])
        reduce = self.trainer.strategy.reduce
        summed, largest = reduce(values.clone(), reduce_op="sum"), reduce(values.clone(), reduce_op="max")
        merged: Metrics = {level: {} for level in metrics}
        for index, (level, name) in enumerate(names):
            merged[level][name] = (largest if name in MAXIMA else summed)[index]
        return merged

    def _step(self, optimizer: Any) -> None:
        module = self._module
        trained = [p for p in module.parameters() if p.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(trained, module.optim.grad_clip)
        if not torch.isfinite(norm):
            raise NonFiniteError(f"the gradient norm is {norm.item()}")
        optimizer.step()
        scheduler: Any = module.lr_schedulers()
        scheduler.step()


def experience_metrics(collected: Collected, ranks: Ranks = ALONE) -> dict[str, float]:
    """Reward in the scores' own units, groups without signal and plan figures of one prompt batch, over all ranks:
    the same on each. Without any judged group there is no reward to tell of.

    Every figure is computed once from all ranks' rollouts, in the order of ranks, so that it does not depend on how
    many there are. Rewards are those of the batch's own prompts, before dynamic sampling chose: comparable between
    variants.
    """
    sampled, group_size = collected.sampled, collected.experience.group_size
    parts = ranks.gather_named(_measured(collected))
    whole = joined_reports([_reported(sampled.names, part) for part in parts])
    report = report_metrics(whole, group_size)
    figures = {
        "plan/length": float(torch.cat([part["length"] for part in parts]).float().mean()),
        "plan/ended": float(torch.cat([part["ended"] for part in parts]).float().mean()),
    }
    judged = whole.total[whole.judged]
    if judged.numel():
        figures["reward"] = report.pop("total/mean")
        figures["reward_std"] = report.pop("total/std")
        figures["groups_without_signal"] = float(share_without_signal(judged, group_size))
    for name in collected.figures:
        values = [float(part[_FIGURE + name]) for part in parts]
        figures[name] = max(values) if name in FIGURE_MAXIMA else sum(values)
    if collected.kl_penalty is not None:
        figures["kl_penalty"] = float(torch.cat([part["kl_penalty"] for part in parts]).mean())
    return {**figures, **report}


def _measured(collected: Collected) -> dict[str, Tensor]:
    """What `experience_metrics` needs of one rank, by name."""
    report, rollouts = collected.sampled, collected.rollouts
    measured = {
        "scores": report.scores,
        "applicable": report.applicable,
        "total": report.total,
        "raw": report.raw,
        "failed": report.failed,
        "length": rollouts.levels[PLAN].mask.sum(1),
        "ended": rollouts.ended,
        **{_DETAIL + name: value for name, value in report.details.items()},
        **{_FIGURE + name: torch.tensor(value, dtype=torch.float64) for name, value in collected.figures.items()},
    }
    return measured if collected.kl_penalty is None else {**measured, "kl_penalty": collected.kl_penalty}


def _reported(names: tuple[str, ...], part: Mapping[str, Tensor]) -> RewardReport:
    """One rank's report out of what it measured."""
    details = {name.removeprefix(_DETAIL): value for name, value in part.items() if name.startswith(_DETAIL)}
    return RewardReport(names, part["scores"], part["applicable"], part["total"], details, part["raw"], part["failed"])
