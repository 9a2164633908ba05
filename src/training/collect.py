"""From a prompt batch to an `Experience`: roll out, score, ask the reference, compare within groups."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kernels import Operations, TokenStatistics
from src.algorithms import Algorithm, weigh_levels
from src.algorithms.kl import kl_estimate, needs_reference_logits, penalised_reward
from src.algorithms.plan_length import mask_unfinished
from src.policies.base import Decoder, Policy
from src.rewards.ensemble import RewardEnsemble
from src.rollout.levels import Rollouts, RolloutSettings, roll_out
from src.rollout.noise import RolloutKey, group_keys
from src.training.groups import Groups, PlanPenalties, Refilled, RefillSource, SampleGroups, refill
from src.training.ranks import ALONE, Ranks
from src.training.statistics import (
    joined_statistics,
    level_rows,
    level_statistics,
    row_chunks,
    sampled_logp,
    score_level,
)
from src.values import PLAN, Experience, LevelOutput, PromptBatch, PromptRecord, RewardReport, TokenLevel


class NonFiniteError(RuntimeError):
    """A reward, loss or gradient is NaN or infinite; names where and at which step."""


@dataclass(frozen=True, slots=True)
class CollectSettings:
    """What collecting needs to know besides the policy and the prompts; see `AlgorithmConfig`.

    guided: train the log-probs of the guided distribution (else of the conditional branch). reference: run
    the reference at all (beta > 0). penalties_on: whether a plan's penalties count against "both" levels or
    the "plan" alone. kl: which KL; reward_beta: its weight where it stands in the reward, else 0.
    max_refills: rounds of dynamic sampling, None for none of it, 0 only drops groups without signal. score_rows:
    so many rollouts at a time are scored under given weights (the reference, refreshed branches); None: all.
    """

    seed: int
    group_size: int
    rollout: RolloutSettings
    guided: bool
    reference: bool
    unfinished_plan_penalty: float = 0.0
    overlong_penalty: float = 0.0
    overlong_margin: int = 1
    penalties_on: str = "both"
    mask_unfinished: bool = False
    level_weights: Mapping[str, float] = field(default_factory=dict)
    kl: str = "k3"
    reward_beta: float = 0.0
    max_refills: int | None = None
    signal_tolerance: float = 0.0
    score_rows: int | None = None

    @property
    def penalties(self) -> PlanPenalties:
        return PlanPenalties(
            self.rollout.max_plan_tokens, self.unfinished_plan_penalty, self.overlong_penalty, self.overlong_margin
        )


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
    settings: CollectSettings,
    refills: RefillSource | None = None,
    ranks: Ranks = ALONE,
) -> Collected:
    """Roll out G times each prompt of `batch` and prepare everything the update needs. Builds no graph.

    refills: where dynamic sampling takes further prompts from, needed with ``settings.max_refills``.
    """
    watch, decoder, failures = _Stopwatch(), policy.decoder(), _Failures(settings.group_size)

    def scored(records: Sequence[PromptRecord], keys: Sequence[RolloutKey]) -> tuple[Rollouts, RewardReport]:
        rollouts, report = _scored(policy, decoder, rewards, records, keys, settings, watch)
        failures.count(report)
        return rollouts, report

    keys = group_keys(settings.seed, "train", batch.step, batch.positions, settings.group_size)
    rollouts, report = scored(batch.records, keys)
    # Of the batch's own prompts, before any refill: every rank asks once, however often it refills.
    scale = rewards.scale(report, ranks.gather)

    def groups_of(records: Sequence[PromptRecord], rollouts: Rollouts, report: RewardReport) -> Groups:
        bare = rewards.normalised(report, scale, settings.group_size)
        return Groups(tuple(records), rollouts, settings.penalties.apply(bare, rollouts), bare.total)

    def sample(records: Sequence[PromptRecord], keys: Sequence[RolloutKey]) -> Groups:
        return groups_of(records, *scored(records, keys))

    first = groups_of(batch.records, rollouts, report)
    groups, kept, figures = _with_signal(first, batch, settings, refills, sample)
    if rewards.on_error == "drop":
        figures |= failures.figures(groups.report)
    levels: dict[str, TokenLevel] = dict(groups.rollouts.levels)
    if settings.reference:
        levels = with_reference(policy, operations, levels, settings)
    totals = _level_totals(groups, settings)
    penalty: Tensor | None = None
    if settings.reward_beta:
        levels, penalty = kl_penalty(decoder, operations, levels, settings)
        totals = {name: total - penalty for name, total in totals.items()}
    watch.lap("reference")
    advantages = level_advantages(algorithm, totals, kept, settings, ranks)
    levels = _counted(levels, groups.rollouts.ended, kept, settings)
    experience = Experience(levels, advantages, groups.report, settings.group_size)
    return Collected(experience, groups.rollouts, watch.seconds, groups.records, first.report, figures, penalty)


def _scored(
    policy: Policy,
    decoder: Decoder,
    rewards: RewardEnsemble,
    records: Sequence[PromptRecord],
    keys: Sequence[RolloutKey],
    settings: CollectSettings,
    watch: _Stopwatch,
) -> tuple[Rollouts, RewardReport]:
    """Rollouts of each record, and what the experts say of them."""
    repeated = [record for record in records for _ in range(settings.group_size)]
    rollouts = roll_out(policy, decoder, [record.prompt for record in repeated], keys, settings.rollout)
    watch.lap("rollout")
    report = rewards(rollouts.pixels, repeated, settings.group_size)
    watch.lap("reward")
    for name, seconds in rewards.seconds.items():
        watch.add(f"reward/{name}", seconds)
    return rollouts, report


def _with_signal(
    first: Groups, batch: PromptBatch, settings: CollectSettings, refills: RefillSource | None, sample: SampleGroups
) -> tuple[Groups, Tensor, dict[str, float]]:
    """The groups to learn from, which of their rollouts count (N,), and figures; see `refill`."""
    if settings.max_refills is None:
        return first, first.report.judged, {}
    if refills is None:
        raise ValueError("dynamic sampling: collect() was given no source of further prompts (refills)")
    done: Refilled = refill(
        first,
        batch,
        settings.group_size,
        settings.seed,
        settings.max_refills,
        settings.signal_tolerance,
        refills,
        sample,
    )
    dropped = float((done.groups.report.judged & ~done.kept).sum()) / settings.group_size
    figures = {"refill/rounds": float(done.rounds), "refill/groups": float(done.replaced), "refill/dropped": dropped}
    return done.groups, done.kept, figures


def with_reference(
    policy: Policy, operations: Operations, levels: Mapping[str, TokenLevel], settings: CollectSettings
) -> dict[str, TokenLevel]:
    """The levels with the reference's log-probs of their tokens, or with its whole rows for the exact KL."""
    guided, rows = settings.guided, settings.score_rows
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


def kl_penalty(
    decoder: Decoder, operations: Operations, levels: Mapping[str, TokenLevel], settings: CollectSettings
) -> tuple[dict[str, TokenLevel], Tensor]:
    """What the KL takes off each reward, (N,) float32: beta times its sum over the tokens of both levels.

    Returns the levels with `ref_logp` in any case: in the update the KL is for the logs only.
    """
    scored, kls = dict(levels), []
    for name, level in levels.items():
        if level.reference is not None:
            statistics = _exact_statistics(decoder, operations, name, level, settings)
            assert statistics.kl is not None
            assert statistics.log_ratio is not None
            scored[name] = replace(level, reference=None, ref_logp=statistics.logp + statistics.log_ratio)
            kls.append((statistics.kl, level.mask))
        else:
            assert level.ref_logp is not None
            log_ratio = level.ref_logp - sampled_logp(name, level, settings.guided)
            kls.append((kl_estimate(log_ratio, settings.kl), level.mask))
    nothing = torch.zeros_like(kls[0][0][:, 0])
    return scored, -penalised_reward(nothing, kls, settings.reward_beta).float()


@torch.no_grad()
def _exact_statistics(
    decoder: Decoder, operations: Operations, name: str, level: TokenLevel, settings: CollectSettings
) -> TokenStatistics:
    """Statistics of a level under `decoder`, its KL over the whole vocabulary, `score_rows` rollouts at a time."""
    parts = []
    for part in row_chunks(level, settings.score_rows):
        output = LevelOutput(decoder.evaluate(name, part.context, part.ids), decoder.head(name))
        parts.append(level_statistics(operations, output, part, settings.guided, kl=settings.kl))
    return joined_statistics(parts)


def _level_totals(groups: Groups, settings: CollectSettings) -> dict[str, Tensor]:
    """What each level is rewarded with: the penalties on a plan may spare the image."""
    total = groups.report.total
    spared = groups.bare if settings.penalties_on == PLAN else total
    return {name: total if name == PLAN else spared for name in groups.rollouts.levels}


def level_advantages(
    algorithm: Algorithm, totals: Mapping[str, Tensor], kept: Tensor, settings: CollectSettings, ranks: Ranks = ALONE
) -> dict[str, Tensor]:
    """Advantages (N,) of each level, weighed; 0 for rollouts that are not `kept`."""
    weights = {name: settings.level_weights.get(name, 1.0) for name in totals}
    return {
        name: weigh_levels(shared_advantages(algorithm, total, kept, settings.group_size, ranks), weights)[name]
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


def _counted(
    levels: Mapping[str, TokenLevel], ended: Tensor, kept: Tensor, settings: CollectSettings
) -> dict[str, TokenLevel]:
    """The levels with the masks of what is learned from: dropped groups never, cut plans if so configured.

    Dropped groups stay as masked rows: so all ranks go on in step, however many groups each has left.
    """
    counted = dict(levels)
    if settings.mask_unfinished:
        counted[PLAN] = replace(counted[PLAN], mask=mask_unfinished(counted[PLAN].mask, ended))
    if not kept.all():
        counted = {name: replace(level, mask=level.mask & kept[:, None]) for name, level in counted.items()}
    return counted


class _Failures:
    """The groups of one step that lost an expert to a failure."""

    def __init__(self, group_size: int) -> None:
        self.group_size = group_size
        self.groups = 0

    def count(self, report: RewardReport) -> None:
        self.groups += int(report.failed.any(1).view(-1, self.group_size).any(1).sum())

    def figures(self, report: RewardReport) -> dict[str, float]:
        """Of all groups scored, refills included, those that lost an expert; of the step's, those that lost all."""
        dropped = float((~report.judged).sum()) / self.group_size
        return {"rewards/failed_groups": float(self.groups), "rewards/dropped_groups": dropped}


class _Stopwatch:
    """Seconds by phase; on a GPU each lap waits for the work it times."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.add(name, now - self._last)
        self._last = now

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
