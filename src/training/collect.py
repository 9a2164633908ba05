"""From a prompt batch to an `Experience`: roll out, score, compare within groups, ask the reference."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels import Operations
from src.algorithms import Algorithm
from src.policies.base import Policy
from src.rewards.ensemble import RewardEnsemble
from src.rollout.levels import Rollouts, RolloutSettings, roll_out
from src.rollout.noise import group_keys
from src.training.statistics import score_level
from src.values import Experience, PromptBatch, RewardReport, TokenLevel


class NonFiniteError(RuntimeError):
    """A reward, loss or gradient is NaN or infinite; names where and at which step."""


@dataclass(frozen=True, slots=True)
class CollectSettings:
    """What collecting needs to know besides the policy and the prompts.

    guided: train the log-probs of the guided distribution (else of the conditional branch). reference: run
    the reference at all (beta > 0). unfinished_plan_penalty is taken off the reward of a plan that never ends.
    """

    seed: int
    group_size: int
    rollout: RolloutSettings
    guided: bool
    reference: bool
    unfinished_plan_penalty: float = 0.0


@dataclass(frozen=True, slots=True)
class Collected:
    """An experience with what only the logs read: plans as text, which of them ended (N,), seconds by phase."""

    experience: Experience
    rollouts: Rollouts
    seconds: Mapping[str, float]


def collect(
    policy: Policy,
    rewards: RewardEnsemble,
    operations: Operations,
    algorithm: Algorithm,
    batch: PromptBatch,
    settings: CollectSettings,
) -> Collected:
    """Roll out G times each prompt of `batch` and prepare everything the update needs. Builds no graph."""
    records = [record for record in batch.records for _ in range(settings.group_size)]
    keys = group_keys(settings.seed, "train", batch.step, batch.positions, settings.group_size)
    watch = _Stopwatch()
    rollouts = roll_out(policy, policy.decoder(), [record.prompt for record in records], keys, settings.rollout)
    watch.lap("rollout")
    report = penalise_unfinished(rewards(rollouts.pixels, records), rollouts.ended, settings.unfinished_plan_penalty)
    watch.lap("reward")
    levels = rollouts.levels
    if settings.reference:
        levels = with_reference(policy, operations, levels, settings.guided)
    watch.lap("reference")
    advantages = algorithm.advantages(report.total, settings.group_size)
    experience = Experience(levels, dict.fromkeys(levels, advantages), report, settings.group_size)
    return Collected(experience, rollouts, watch.seconds)


def penalise_unfinished(report: RewardReport, ended: Tensor, penalty: float) -> RewardReport:
    """The report with `penalty` taken off the total of every plan that did not end."""
    if not penalty:
        return report
    return replace(report, total=report.total - penalty * (~ended).to(report.total))


def with_reference(
    policy: Policy, operations: Operations, levels: Mapping[str, TokenLevel], guided: bool
) -> dict[str, TokenLevel]:
    """The levels with the reference's log-probs of their tokens."""
    with policy.reference() as reference:
        return {
            name: replace(level, ref_logp=score_level(operations, reference, name, level, guided).logp)
            for name, level in levels.items()
        }


class _Stopwatch:
    """Seconds by phase; on a GPU each lap waits for the work it times."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now
