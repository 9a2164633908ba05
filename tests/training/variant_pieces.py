"""Collecting with the settings of variants, on tiny models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from src import algorithms
from src.config.schema import AlgorithmConfig, Config, RolloutConfig
from src.rewards.base import RewardExpert
from src.rewards.ensemble import RewardEnsemble
from src.training.collect import Collected, collect
from src.training.ranks import ALONE, Ranks
from src.training.update import Metrics, MicroBatch, microbatches, run_update, step_loss
from src.values import Experience, PromptBatch, PromptRecord
from tests.training.experts import Red
from tests.training.pieces import BETA, LONGEST, OPERATIONS, ROLLOUT, gradients, update_settings

GROUP = 4
PROMPTS = ("a red circle", "two blue square left of a green circle", "one triangle .", "a green square")


class RedUnlessDull(RewardExpert):
    """`Red` in two steps, and 0.5 for every picture of a prompt that says "dull"."""

    name = "red_unless_dull"
    score_range = (0.0, 1.0)

    def score(self, pixels: Tensor, records: Sequence[PromptRecord]) -> Tensor:
        channels = pixels.flatten(2).mean(2)
        score = 0.5 + 0.5 * (channels[:, 0] - channels[:, 1:].mean(1))
        dull = torch.tensor(["dull" in record.prompt for record in records])
        return torch.where(dull, torch.full_like(score, 0.5), score)


def batch_of(prompts: Sequence[str], step: int = 0, positions: Sequence[int] | None = None) -> PromptBatch:
    records = tuple(PromptRecord(prompt) for prompt in prompts)
    return PromptBatch(records, tuple(range(len(prompts)) if positions is None else positions), step)


def gathered(
    policy: Any,
    batch: PromptBatch | None = None,
    *,
    algorithm: str = "grpo",
    expert: Any = None,
    rewards: RewardEnsemble | None = None,
    guided: bool = True,
    reference: bool = True,
    rollout: RolloutConfig = ROLLOUT,
    score_rows: int | None = None,
    refills: Any = None,
    ranks: Ranks = ALONE,
    **settings: Any,
) -> Collected:
    """One prompt batch collected with `settings` of `AlgorithmConfig`."""
    variant = replace(update_settings(guided=guided, beta=BETA if reference else 0.0), **settings)
    return collect(
        policy,
        rewards or RewardEnsemble([expert or Red()]),
        OPERATIONS,
        algorithms.load(algorithm),
        batch or batch_of(PROMPTS[:3]),
        Config(algorithm=variant, rollout=replace(rollout, group_size=GROUP)),
        refills,
        ranks,
        score_rows,
    )


def stepped(
    policy: Any,
    experience: Experience,
    settings: AlgorithmConfig,
    *,
    algorithm: str = "grpo",
    size: int | None = 5,
    bonus: dict[str, float] | None = None,
    split_levels: bool = False,
) -> tuple[float, dict[str, Tensor], Metrics, Experience]:
    """Loss, gradients, metrics and the experience afterwards, accumulated over microbatches of `size`."""
    variant = algorithms.load(algorithm)
    shares, world = settings.shares, lambda local: local
    parts = list(microbatches(experience, size, variant, LONGEST, world, 1, shares, bonus, split_levels))
    losses: list[float] = []
    policy.zero_grad(set_to_none=True)

    def forward(part: MicroBatch) -> tuple[Tensor, Metrics, dict[str, Tensor]]:
        return step_loss(policy(part.levels), part, OPERATIONS, variant, settings)

    def backward(loss: Tensor) -> None:
        losses.append(loss.item())
        loss.backward()

    metrics, after = run_update(experience, parts, forward, backward)
    return sum(losses), gradients(policy), metrics, after
