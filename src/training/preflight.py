"""Before a run starts: how much memory it will need, whether that is there, and how its steps are cut to fit."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig

from src import build
from src.algorithms.kl import needs_reference
from src.config.errors import UserError
from src.policies.base import Policy
from src.policies.janus import JanusPolicy
from src.policies.sizes import model_sizes
from src.rewards.ensemble import RewardEnsemble
from src.runs.console import say
from src.training.memory import GIB, MemoryEstimate, StepCut, StepShape, choose_cut, estimate, rows_at_once
from src.training.sharded import ShardedStrategy
from src.values import IMAGE, PLAN

# The prompts looked at for the longest context, longest texts first.
LOOKED_AT = 64
# What makes a phase smaller.
SMALLER = {
    "rollout": "rollout.max_rows or rollout.max_plan_tokens",
    "evaluation": "rollout.max_rows or evaluation.batch_size",
    "reference": "optim.microbatch or rollout.max_plan_tokens",
    "update": "optim.microbatch (and set optim.activation_checkpointing=true, optim.split_levels=true)",
}


@dataclass(frozen=True, slots=True)
class Fitted:
    """How steps are cut, and what the run then needs; no estimate for a policy whose sizes are unknown."""

    cut: StepCut
    estimate: MemoryEstimate | None = None

    def figures(self) -> dict[str, float] | None:
        """GiB by part, for the run's summary."""
        if self.estimate is None:
            return None
        parts = {"weights": self.estimate.weights, "optimiser": self.estimate.optimiser}
        named = {"total": self.estimate.needs(), **parts, "experts": self.estimate.experts, **self.estimate.phases}
        return {name: round(size / GIB, 3) for name, size in named.items()}


def fit_to_memory(config: DictConfig, policy: Policy, data: Any, rewards: RewardEnsemble, trainer: L.Trainer) -> Fitted:
    """The cut of this run's steps. On a GPU it is chosen by the estimate, which is said; a CPU just keeps it.

    Raises:
        UserError: where the weights and the optimiser alone are more than the card has.
    """
    optim = config.optim
    again = None if optim.activation_checkpointing == "auto" else bool(optim.activation_checkpointing)
    if not isinstance(policy, JanusPolicy):
        split = bool(again) if optim.split_levels is None else optim.split_levels
        return Fitted(StepCut(optim.microbatch, split, bool(again)))
    device = trainer.strategy.root_device
    sizes = model_sizes(policy, device)
    shape = step_shape(config, policy, data, rewards, trainer)
    card = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    if card is not None and shape.max_rows is None:
        shape = replace(shape, max_rows=rows_at_once(sizes, shape, card))
    cut = choose_cut(sizes, shape, optim.microbatch, optim.split_levels, again, card)
    needed = estimate(sizes, shape, cut)
    if card is not None:
        say(f"{needed.described(card)}; {described(cut, shape)}")
        check(needed, card)
    return Fitted(cut, needed)


def check(needed: MemoryEstimate, card: int) -> None:
    """Refuse a run whose constant parts exceed the card; warn, naming the keys, where a phase may.

    Raises:
        UserError: see above.
    """
    if needed.constant > card:
        raise UserError(
            f"model: weights, optimiser and experts need {needed.constant / GIB:.1f} GiB, the card has"
            f" {card / GIB:.1f}: train adapters (model.lora), a smaller model, or use a larger card"
        )
    for phase in needed.phases:
        if not needed.fits(card, phase):
            warnings.warn(
                f"the {phase} may need {needed.needs(phase) / GIB:.1f} GiB, the card has {card / GIB:.1f}:"
                f" lower {SMALLER[phase]} if it runs out of memory",
                RuntimeWarning,
                stacklevel=2,
            )


def described(cut: StepCut, shape: StepShape) -> str:
    """The cut in words."""
    rows = min(cut.microbatch or shape.rollouts, shape.rollouts)
    levels = "one level" if cut.split_levels else "both levels"
    again = ", activations checkpointed" if cut.activation_checkpointing else ""
    return f"a backward takes {levels} of {rows} of {shape.rollouts} rollouts{again}"


def step_shape(
    config: DictConfig, policy: JanusPolicy, data: Any, rewards: RewardEnsemble, trainer: L.Trainer
) -> StepShape:
    """What one process computes in a step of this run."""
    rollout, variant = config.rollout, config.algorithm
    contexts = longest_contexts(policy, [record.prompt for record in data.train_records], rollout.max_plan_tokens)
    reference = needs_reference(variant.beta)
    strategy = trainer.strategy
    evaluated = max(len(data.validation_records), len(data.test_records)) * config.evaluation.samples_per_prompt
    return StepShape(
        rollouts=rollout.prompts_per_step * rollout.group_size // trainer.world_size,
        group_size=rollout.group_size,
        contexts=contexts,
        plan_tokens=rollout.max_plan_tokens,
        guided=rollout.guidance_scale != 1.0,
        guided_logp=variant.logp == "guided",
        reference=reference,
        exact_kl=reference and variant.kl == "exact",
        evaluation_rows=min(config.evaluation.batch_size, evaluated),
        mixed=trainer.precision == "bf16-mixed"
        or (isinstance(strategy, ShardedStrategy) and strategy.dtype is not None),
        fused_head=build.build_operations(config).prefers_one_pass,
        mask_per_layer=trainer.strategy.root_device.type == "cuda",
        processes=trainer.world_size,
        sharded=isinstance(strategy, ShardedStrategy),
        max_rows=rollout.max_rows,
        expert_bytes=rewards.device_bytes(strategy.root_device),
    )


def longest_contexts(policy: Policy, prompts: list[str], plan_tokens: int) -> dict[str, int]:
    """The longest context of each level; an image's holds the whole plan."""
    longest = sorted(prompts, key=len)[-LOOKED_AT:]
    image = policy.image_context(longest, [""] * len(longest)).ids.shape[1]
    return {PLAN: policy.plan_context(longest).ids.shape[1], IMAGE: image + plan_tokens}
