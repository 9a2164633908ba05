"""From a prompt batch to an `Experience`: roll out, score, ask the reference, compare within groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kernels import Operations
from src.algorithms import Algorithm, weigh_levels
from src.algorithms.kl import needs_reference, needs_reference_logits
from src.config.schema import AlgorithmConfig, Config
from src.policies.base import Policy
from src.rewards.ensemble import RewardEnsemble, Scale
from src.rollout.levels import Rollouts, RolloutSettings, roll_out
from src.rollout.noise import RolloutKey, group_keys
from src.training.groups import Groups
from src.training.options.dynamic_sampling import RefillSource, groups_with_signal
from src.training.options.kl_reward import kl_penalty
from src.training.options.length_penalty import PlanPenalties
from src.training.options.masking import counted
from src.training.ranks import ALONE, Ranks
from src.training.stopwatch import Stopwatch
from src.training.token_statistics import level_rows, score_level
from src.values import PLAN, Experience, PromptBatch, PromptRecord, RewardReport, TokenLevel


class NonFiniteError(RuntimeError):
    """A reward, loss or gradient is NaN or infinite; names where and at which step."""


@dataclass(frozen=True, slots=True)
class Collected:
    """An experience with what only the logs read.

    rollouts: all of them, whatever the experience masks; seconds by phase; records (B): the prompts, refilled
    ones included; sampled: the report of the batch's own prompts, before any refill; figures: of dynamic sampling and
    of experts that failed; kl_penalty (N,): what the KL took off each reward, None where it does not stand there. All
    of this rank alone.
    """

    experience: Experience
    rollouts: Rollouts
    seconds: Mapping[str, float]
    records: tuple[PromptRecord, ...]
    sampled: RewardReport
    figures: Mapping[str, float] = field(default_factory=dict)
    kl_penalty: Tensor | None = None


def collect(
    policy: Policy,
    rewards: RewardEnsemble,
    operations: Operations,
    algorithm: Algorithm,
    batch: PromptBatch,
    config: Config,
    refills: RefillSource | None = None,
    ranks: Ranks = ALONE,
    score_rows: int | None = None,
) -> Collected:
    """Roll out G times each prompt of `batch` and prepare everything the update needs. Builds no graph.

    refills: where dynamic sampling takes further prompts from, needed where it is on. score_rows: so many rollouts at
    a time are scored under given weights (the reference, refreshed branches); None: all.

    Options step in at three places: a plan's length costs reward (in `GroupSampler`), groups without signal give way
    to others, and before the comparison the KL may be taken off the reward.
    """
    variant, seed, group_size = config.algorithm, config.run.seed, config.rollout.group_size
    sample = GroupSampler(policy, rewards, config, ranks)
    first = groups = sample(batch.records, group_keys(seed, "train", batch.step, batch.positions, group_size))
    kept: Tensor = first.report.judged
    figures: dict[str, float] = {}
    if variant.dynamic_sampling:
        rounds, tolerance = variant.max_refills, variant.signal_tolerance
        groups, kept, figures = groups_with_signal(first, batch, seed, rounds, tolerance, refills, sample)
    levels: dict[str, TokenLevel] = dict(groups.rollouts.levels)
    if needs_reference(variant.beta):
        levels = with_reference(policy, operations, levels, variant, score_rows)
    totals, penalty = level_totals(groups, variant), None
    if variant.reward_beta:
        levels, penalty = kl_penalty(sample.decoder, operations, levels, variant, score_rows)
        totals = {name: total - penalty for name, total in totals.items()}
    sample.watch.lap("reference")
    advantages = level_advantages(algorithm, totals, kept, config, ranks)
    levels = counted(levels, groups.rollouts.ended, kept, not variant.mask_unfinished)
    experience = Experience(levels, advantages, groups.report, group_size)
    figures |= sample.failures(groups.report)
    return Collected(experience, groups.rollouts, sample.watch.seconds, groups.records, first.report, figures, penalty)


class GroupSampler:
    """Rolls out and scores groups of one step, under the weights as they are.

    What an expert's scores are normalised by is taken from the first groups, the batch's own: every rank asks once,
    however often it refills.
    """

    def __init__(self, policy: Policy, rewards: RewardEnsemble, config: Config, ranks: Ranks) -> None:
        self.policy, self.rewards, self.ranks = policy, rewards, ranks
        self.group_size, self.sampling = config.rollout.group_size, RolloutSettings.of(config.rollout)
        self._penalties = PlanPenalties.of(config)
        self.watch, self.decoder = Stopwatch(), policy.decoder()
        self._scale: Scale | None = None
        self._failed_groups = 0

    def __call__(self, records: Sequence[PromptRecord], keys: Sequence[RolloutKey]) -> Groups:
        """The groups of `records`; keys: of their N rollouts."""
        rewards, group_size = self.rewards, self.group_size
        repeated = [record for record in records for _ in range(group_size)]
        prompts = [record.prompt for record in repeated]
        rollouts = roll_out(self.policy, self.decoder, prompts, keys, self.sampling)
        self.watch.lap("rollout")
        report = rewards(rollouts.pixels, repeated, group_size)
        self.watch.lap("reward")
        for name, seconds in rewards.seconds.items():
            self.watch.add(f"reward/{name}", seconds)
        self._failed_groups += int(report.failed.any(1).view(-1, group_size).any(1).sum())
        if self._scale is None:
            self._scale = rewards.scale(report, self.ranks.gather)
        bare = rewards.normalised(report, self._scale, group_size)
        return Groups(tuple(records), rollouts, self._penalties.apply(bare, rollouts), bare.total)

    def failures(self, report: RewardReport) -> dict[str, float]:
        """Where failing experts are dropped: of all groups scored, refills included, those that lost an expert; of
        the step's, those that lost all.
        """
        if self.rewards.on_error != "drop":
            return {}
        dropped = float((~report.judged).sum()) / self.group_size
        return {"rewards/failed_groups": float(self._failed_groups), "rewards/dropped_groups": dropped}


def with_reference(
    policy: Policy,
    operations: Operations,
    levels: Mapping[str, TokenLevel],
    settings: AlgorithmConfig,
    score_rows: int | None = None,
) -> dict[str, TokenLevel]:
    """The levels with the reference's log-probs of their tokens, or with its whole rows for the exact KL."""
    guided, rows = settings.guided, score_rows
    with policy.reference() as reference:
        if needs_reference_logits(settings.kl):
            return {
                name: replace(level, reference=level_rows(reference, name, level, guided, rows))
                for name, level in levels.items()
            }
        return {
            name: replace(level, ref_logp=score_level(operations, reference, name, level, guided, rows).logp)
            for name, level in levels.items()
        }


def level_totals(groups: Groups, settings: AlgorithmConfig) -> dict[str, Tensor]:
    """What each level is rewarded with: the penalties on a plan may spare the image."""
    total = groups.report.total
    spared = groups.bare if settings.penalties_on == PLAN else total
    return {name: total if name == PLAN else spared for name in groups.rollouts.levels}


def level_advantages(
    algorithm: Algorithm, totals: Mapping[str, Tensor], kept: Tensor, config: Config, ranks: Ranks = ALONE
) -> dict[str, Tensor]:
    """Advantages (N,) of each level, weighed; 0 for rollouts that are not `kept`."""
    group_size, weights = config.rollout.group_size, vars(config.algorithm.level_weights)
    return {
        name: weigh_levels(shared_advantages(algorithm, total, kept, group_size, ranks), weights)[name]
        for name, total in totals.items()
    }


def shared_advantages(algorithm: Algorithm, total: Tensor, kept: Tensor, group_size: int, ranks: Ranks) -> Tensor:
    """The variant's advantages (N,) of this rank's rollouts, compared over all ranks where it asks for the batch."""
    mine = total[kept]
    parts, rank = (ranks.gather(mine), ranks.rank) if algorithm.whole_batch else ([mine], 0)
    whole, advantages = torch.cat(parts), torch.zeros_like(total)
    if whole.numel():
        compared = algorithm.advantages(whole, group_size)
        advantages[kept] = compared.split([len(part) for part in parts])[rank]
    return advantages
