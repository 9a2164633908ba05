"""The custom Lightning loop: one Lightning batch is one prompt batch, rolled out in groups and learned from.

Lightning has no public custom loop. `GroupedRolloutLoop` takes the place of the loop that runs a manual
`training_step` (``trainer.fit_loop.epoch_loop.manual_optimization``), the least invasive seam: callbacks,
loggers, progress bars, strategies and checkpoints go on working. This is the one private import of the
project, and the reason for ``lightning>=2.6,<2.7``.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import inf, nan
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loops.optimization.manual import _ManualOptimization
from lightning.pytorch.trainer import call
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from src.algorithms import MAXIMA, share_without_signal
from src.policies.dtensors import whole
from src.rewards.base import RewardError
from src.rewards.ensemble import report_metrics
from src.runs.phases import phase, progress
from src.training.collect import Collected, NonFiniteError
from src.training.groups import joined_reports
from src.training.module import BiCoTModule
from src.training.out_of_memory import (
    SMALLER_ROLLOUT,
    DoesNotFit,
    give_up_cache,
    is_out_of_memory,
    memory_told,
    release_memory,
    smaller_microbatch,
)
from src.training.ranks import ALONE, Ranks, current_ranks
from src.training.skipped_steps import SkippedSteps
from src.training.update import NOT_FINITE, Metrics, MicroBatch, microbatches, run_update, shown
from src.values import IMAGE, PLAN, Experience, PromptBatch, RewardReport

# Figures of dynamic sampling that are not sums over ranks: each rank refills for itself, the last one ends the rounds.
FIGURE_MAXIMA = frozenset({"refill/rounds"})
_DETAIL, _FIGURE = "detail/", "figure/"


class GroupedRolloutLoop(_ManualOptimization):
    """Collects a group of rollouts for each prompt, then takes `updates_per_rollout` optimiser steps.

    Its own state in Lightning's checkpoint is the number of finished prompt batches (rollouts are keyed, so
    a run that starts again there re-rolls identically) and of skipped steps.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        super().__init__(trainer)
        self.finished_batches = 0
        self.skipped = SkippedSteps()

    @classmethod
    def install(cls, trainer: L.Trainer) -> GroupedRolloutLoop:
        """Make `trainer.fit` train with this loop."""
        loop = cls(trainer)
        trainer.fit_loop.epoch_loop.manual_optimization = loop
        return loop

    def on_save_checkpoint(self) -> dict[str, Any]:
        return {"finished_batches": self.finished_batches, "skipped": self.skipped.state_dict()}

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        self.finished_batches = state_dict["finished_batches"]
        if "skipped" in state_dict:  # absent in checkpoints made before steps could be skipped
            self.skipped.load_state_dict(state_dict["skipped"])

    @property
    def _module(self) -> BiCoTModule:
        return self.trainer.lightning_module  # type: ignore[return-value]

    def advance(self, kwargs: OrderedDict[str, Any]) -> None:
        batch: PromptBatch = next(iter(kwargs.values()))
        start = time.perf_counter()
        try:
            with phase(f"step {batch.step}"):
                collected = self._collect(batch)
                learning = time.perf_counter()
                with phase("updating the weights"):
                    metrics = self._learn(collected)
        except (NonFiniteError, DoesNotFit) as error:
            raise type(error)(f"step {batch.step}: {error}") from error
        except RewardError as error:
            raise RewardError(error.expert, f"step {batch.step}: {error.problem}", error.prompt) from error
        end = time.perf_counter()
        bonus = self._module.entropy.coefficients() if self._module.entropy.used else {}
        figures = shown(metrics)
        self._module.step_metrics = {
            **figures,
            **{f"{name}/entropy_bonus": value for name, value in bonus.items()},
            **experience_metrics(collected, current_ranks()),
            "skipped_steps": float(self.skipped.total),
            "microbatch": float(min(self._module.microbatch or inf, len(collected.experience))),
            **{f"seconds/{name}": value for name, value in collected.seconds.items()},
            "seconds/update": end - learning,
            "seconds": end - start,
        }
        self._module.entropy.observe({name: figures.get(f"{name}/entropy", nan) for name in metrics})
        self._module.refresh_reference(self.trainer.global_step)
        self.finished_batches = batch.step + 1

    def _collect(self, batch: PromptBatch) -> Collected:
        with memory_told(f"while rolling out and scoring: {SMALLER_ROLLOUT}"):
            return self._module.collect(batch)

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
            optimizer: Any = module.optimizers()
            metrics, experience = self._accumulate(experience, optimizer)
            self._step(optimizer, [name for name, part in metrics.items() if part.pop(NOT_FINITE, None) is not None])
            first = first or metrics
        return self._metrics_over_ranks({name: {**first[name], **metrics[name]} for name in metrics})

    def _accumulate(self, experience: Experience, optimizer: Any) -> tuple[Metrics, Experience]:
        """The gradient of one update; out of memory in a single process, again without the rollouts' cache, then
        with half the microbatch.

        The objective does not depend on the microbatch, and the rollouts are kept.
        """
        module = self._module
        while True:
            optimizer.zero_grad()
            try:
                return run_update(experience, self._parts(experience), self._forward, self._backward, self._no_sync)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                size, processes = module.microbatch or len(experience), self.trainer.world_size
                if not give_up_cache(module.policy, processes):
                    module.microbatch = smaller_microbatch(size, len(experience), processes, error)
            # Only here, behind the handler: the error's traceback holds the graph.
            optimizer.zero_grad()
            release_memory()

    def _parts(self, experience: Experience) -> list[MicroBatch]:
        module = self._module
        longest = {PLAN: module.config.rollout.max_plan_tokens, IMAGE: module.policy.image_tokens}
        return list(
            microbatches(
                experience,
                module.microbatch,
                module.algorithm,
                longest,
                self._over_ranks,
                self.trainer.world_size,
                module.variant.shares,
                module.entropy.coefficients(),
                module.cut.split_levels,
            )
        )

    def _forward(self, part: MicroBatch) -> tuple[Tensor, Metrics, dict[str, Tensor]]:
        progress()
        loss, metrics, logps = call._call_strategy_hook(self.trainer, "training_step", part, 0)
        if self._module.cut.split_levels and isinstance(self.trainer.strategy.model, DistributedDataParallel):
            loss = loss + nothing_of(self._module)
        return loss, metrics, logps

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

    def _step(self, optimizer: Any, broken: Sequence[str]) -> None:
        """One optimiser step, unless a loss (of the levels `broken`) or the gradient is none to follow.

        All ranks decide alike: one that skipped alone would have other weights from there on.
        """
        module, settings = self._module, self._module.optim
        trained = [p for p in module.parameters() if p.requires_grad]
        norm = whole(torch.nn.utils.clip_grad_norm_(trained, settings.grad_clip))
        reasons = [f"level {name!r}: the loss is not finite" for name in broken]
        if not torch.isfinite(norm):
            reasons.append(f"the gradient norm is {norm.item()}")
        elif settings.max_grad_norm is not None and norm > settings.max_grad_norm:
            reasons.append(f"the gradient norm is {norm.item():.3g}, more than optim.max_grad_norm")
        if self.trainer.strategy.reduce_boolean_decision(bool(reasons), all=False):
            self.optim_step_progress.increment_ready()
            self.optim_step_progress.increment_completed()
            self.skipped.skipped(reasons, settings.max_skipped_steps)
        else:
            optimizer.step()
            module.weights_changed()
            self.skipped.taken()
        scheduler: Any = module.lr_schedulers()
        scheduler.step()


def nothing_of(module: nn.Module) -> Tensor:
    """A zero whose gradient, zero too, reaches every trained parameter.

    DDP waits for the gradient of each in every backward pass; a part of one level has none for the other's head.
    """
    return 0.0 * torch.stack([p.sum() for p in module.parameters() if p.requires_grad]).sum()


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
